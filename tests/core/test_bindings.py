"""The boundary: what crosses without a copy, and what is refused."""

import ast
from pathlib import Path

import numpy as np
import pytest

import sec_grpo
from sec_grpo import _core


def make_engine() -> _core.Engine:
    return _core.Engine(np.array([0, 1, 0, 1, 2], np.int32), 3, 7, 0)


@pytest.mark.parametrize(
    ("array", "error"),
    [
        (np.zeros(4, np.int32), TypeError),
        (np.zeros(4, np.float64), TypeError),
        (np.zeros(8, np.int64)[::2], TypeError),
        (np.zeros(4, ">i8"), TypeError),
        ([0, 1], TypeError),
        (np.zeros((2, 2), np.int64), ValueError),
        (np.array([0, 5]), IndexError),
        (np.array([-1, 0]), IndexError),
    ],
)
def test_indices_are_never_converted(array: object, error: type[Exception]) -> None:
    engine = make_engine()
    with pytest.raises(error):
        engine.arm_indices(array)  # type: ignore[arg-type]
    with pytest.raises(error):
        engine.reduce(array, np.zeros((len(array), 2)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (np.zeros((2, 2), np.int64), TypeError, "float32 or float64 array, got dtype int64"),
        (np.zeros((2, 2), np.float16), TypeError, "float16"),
        (np.zeros((2, 4))[:, ::2], TypeError, "not C-contiguous"),
        ([[0.0, 1.0], [1.0, 0.0]], TypeError, "list"),
        (np.zeros(4), ValueError, r"\(B, G\).*shape \(4,\).*reshape"),
        (np.zeros((3, 2)), ValueError, r"B = 2.*got \(3, 2\)"),
        (np.zeros((2, 0)), ValueError, r"got \(2, 0\)"),
    ],
)
@pytest.mark.parametrize("name", ["advantages", "rewards"])
def test_group_arrays_are_never_converted(
    name: str, array: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"(?s){name} must.*{message}"):
        make_engine().reduce(np.array([0, 1]), **{name: array})


def test_codes_are_checked() -> None:
    with pytest.raises(TypeError, match="int32"):
        _core.Engine(np.array([0, 1]), 2, 0, 0)  # type: ignore[arg-type]
    with pytest.raises(IndexError, match=r"codes\[1\] must be in \[0, 2\), got 2"):
        _core.Engine(np.array([0, 2], np.int32), 2, 0, 0)
    with pytest.raises(ValueError, match="prompts"):
        _core.Engine(np.array([], np.int32), 2, 0, 0)


def test_weights_are_what_probabilities_show() -> None:
    engine = make_engine()
    engine.assign(np.array([0.1, -np.inf, 0.7]), 0.3)
    weights = engine.weights()
    assert weights[1] == 0
    assert weights[2] == 2**40
    np.testing.assert_array_equal(engine.probabilities(), weights / weights.sum())


def test_reduction_arrays_are_owned_copies() -> None:
    engine = make_engine()
    reduction = engine.reduce(np.array([0, 1, 2]), np.ones((3, 2), np.float32))
    arms = reduction.arms
    arms[0] = 99
    assert reduction.arms.tolist() == [0, 1]
    assert reduction.reward is None


def test_distinct_in_range() -> None:
    offsets, codes = _core.distinct_in_range(np.array([9, 5, 9, 7], np.int16), 5, 5)
    assert offsets.tolist() == [0, 2, 4]
    assert codes.dtype == np.int32
    assert codes.tolist() == [2, 0, 2, 1]
    numbers = np.array([1, 0, 2, 1], np.int32)
    assert _core.distinct_in_range(numbers, 0, 3)[1] is numbers  # nothing to copy
    assert _core.distinct_in_range(numbers + 1, 1, 3)[1].tolist() == numbers.tolist()
    with pytest.raises(ValueError, match="range of 4 integers, got one 4 above its low"):
        _core.distinct_in_range(np.array([9, 5]), 5, 4)
    for wrong in (np.array([0.5]), np.array([1, 2, 3])[::2], np.array([1, 2], ">i4")):
        with pytest.raises(TypeError, match="C-contiguous integer array, got dtype"):
            _core.distinct_in_range(wrong, 0, 9)


def test_stub_lists_what_the_module_has() -> None:
    stub = ast.parse((Path(sec_grpo.__file__).parent / "_core.pyi").read_text())
    classes = {node.name: node for node in stub.body if isinstance(node, ast.ClassDef)}
    functions = {node.name for node in stub.body if isinstance(node, ast.FunctionDef)}
    assert {*classes, *functions} == {name for name in vars(_core) if not name.startswith("_")}
    for name, node in classes.items():
        stubbed = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
        real = {key for key in vars(getattr(_core, name)) if not key.startswith("_")}
        assert stubbed - {"__init__"} == real, name
