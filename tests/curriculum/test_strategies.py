"""The built-in strategies: parameters, schedules, names."""

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sec_grpo import curriculum as curriculum_package
from sec_grpo.curriculum import (
    SEC,
    Curriculum,
    Ordered,
    Random,
    Reverse,
    Strategy,
    get_strategy,
    strategy_names,
)

CATEGORIES = [1, 2, 3, 1, 2, 3]


def test_ordered_splits_its_steps_evenly() -> None:
    curriculum = Curriculum(CATEGORIES, Ordered(steps=7), arms=[1, 9, 2, 3])
    arms = []
    for _ in range(10):
        (shown,) = np.flatnonzero(curriculum.probabilities())
        drawn = set(curriculum.arm_indices(curriculum.draw(4)).tolist())
        assert drawn == {shown}  # probabilities() are those of the next draw
        arms.append(curriculum.arms[shown])
    # Stage floor(3 t / 7); then the last arm for ever. The empty arm 9 has no stage.
    assert arms == [1, 1, 1, 2, 2, 3, 3, 3, 3, 3]


def test_reverse_goes_from_the_last_arm_to_the_first() -> None:
    curriculum = Curriculum(CATEGORIES, Reverse(steps=6))
    arms = [curriculum.arm_indices(curriculum.draw(1))[0] for _ in range(8)]
    assert arms == [2, 2, 1, 1, 0, 0, 0, 0]


def test_ordered_needs_a_step_for_each_arm() -> None:
    Curriculum(CATEGORIES, Ordered(3))
    with pytest.raises(ValueError, match=r"steps must be at least 3.*got 2"):
        Curriculum(CATEGORIES, Ordered(2))


def test_schedules_need_no_feedback_but_record_it() -> None:
    curriculum = Curriculum(CATEGORIES, Ordered(9))
    curriculum.observe([0], rewards=[[1.0, 0.0]])
    assert curriculum.probabilities().tolist() == [1.0, 0.0, 0.0]
    assert curriculum.arm_table()["reward"][0] == 0.5


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"alpha": 0.0}, ValueError, r"alpha must be a number in \(0, 1\], got 0.0"),
        ({"alpha": 1.01}, ValueError, "alpha"),
        ({"alpha": float("nan")}, ValueError, "alpha"),
        ({"alpha": True}, TypeError, "alpha.*bool"),
        ({"alpha": "0.5"}, TypeError, "alpha.*str"),
        ({"alpha": None}, TypeError, "alpha"),
        ({"temperature": 0}, ValueError, "temperature must be a finite number above 0, got 0"),
        ({"temperature": -1.0}, ValueError, "temperature"),
        ({"temperature": float("inf")}, ValueError, "temperature"),
        ({"temperature": float("nan")}, ValueError, "temperature"),
        ({"temperature": True}, TypeError, "temperature"),
        ({"undrawn": "zero"}, ValueError, '"keep" or "decay", got \'zero\''),
    ],
)
def test_sec_parameters(parameters: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SEC(**parameters)


@pytest.mark.parametrize("strategy", [Ordered, Reverse])
@pytest.mark.parametrize(
    ("steps", "error"),
    [(0, ValueError), (-3, ValueError), (2.0, TypeError), (True, TypeError), ("5", TypeError)],
)
def test_steps(strategy: type[Ordered], steps: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="steps must be an integer of at least 1, got"):
        strategy(steps)


def test_equal_parameters_are_equal_strategies() -> None:
    assert SEC(alpha=1, temperature=np.float32(2)) == SEC(alpha=1.0, temperature=2.0)
    assert SEC(alpha=1).parameters() == {"alpha": 1.0, "temperature": 1.0, "undrawn": "keep"}
    assert Ordered(np.int64(4)) == Ordered(4)
    assert hash(SEC()) == hash(SEC())
    with pytest.raises(AttributeError):
        SEC().alpha = 0.1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "parameters", "strategy"),
    [
        ("sec", {}, SEC()),
        ("SEC", {"alpha": 0.25, "undrawn": "decay"}, SEC(0.25, undrawn="decay")),
        ("Random", {}, Random()),
        ("ordered", {"steps": 9}, Ordered(9)),
        ("reverse", {"steps": 9}, Reverse(9)),
    ],
)
def test_get_strategy(name: str, parameters: dict[str, Any], strategy: Strategy) -> None:
    assert get_strategy(name, **parameters) == strategy


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("dumb", {}, "one of adarft, .*, sec, .*; got 'dumb'"),
        (None, {}, "one of"),
        ("ALP_GMM", {}, r"not arms: use sec_grpo.curriculum.ALPGMM\(low, high\)"),
        ("sec", {"tau": 1.0, "lr": 1}, "lr, tau; it has: alpha, temperature, undrawn, floor"),
        ("random", {"steps": 1}, "steps; it has: floor"),
        ("ordered", {}, "needs parameters: steps"),
        ("sec", {"alpha": 7}, "alpha must be"),
    ],
)
def test_get_strategy_refuses(name: Any, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_strategy(name, **parameters)


def test_names() -> None:
    assert strategy_names() == (
        "adarft",
        "beta_thompson",
        "composed",
        "dump",
        "e2h_gaussian",
        "learnability",
        "ordered",
        "pac",
        "plr",
        "random",
        "reverse",
        "sec",
        "staged",
        "static_weights",
        "tscl",
    )


def test_the_curriculum_imports_neither_torch_nor_transformers() -> None:
    sources = list(Path(curriculum_package.__file__).parent.glob("*.py"))
    assert len(sources) > 8
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"torch", "transformers"}, source
