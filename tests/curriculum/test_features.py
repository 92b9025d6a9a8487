"""Categories from data sets: every container, joint and independent arms, bins."""

from __future__ import annotations

import time
from typing import Any

import datasets
import numpy as np
import pandas
import pytest

from sec_grpo.curriculum import SEC, Curriculum, CurriculumStateError, Factored, Ordered, Random

LEVEL = [3, 1, 2, 1, 3, 1]
KIND = ["b", "a", "b", "b", "a", "a"]
SCORE = [0.1, 0.9, 0.5, 0.3, 0.7, 0.2]
ROWS = [
    {"prompt": f"p{i}", "level": level, "info": {"kind": kind, "deep": {"score": score}}}
    for i, (level, kind, score) in enumerate(zip(LEVEL, KIND, SCORE, strict=True))
]


def containers() -> dict[str, Any]:
    table = datasets.Dataset.from_list(ROWS)
    return {
        "datasets": table,
        "selected": datasets.Dataset.from_list([*reversed(ROWS)]).select(range(5, -1, -1)),
        "pandas": pandas.DataFrame(ROWS),
        "columns": {"level": np.array(LEVEL), "info": [row["info"] for row in ROWS]},
        "rows": ROWS,
    }


@pytest.mark.parametrize("name", list(containers()))
def test_every_container_gives_the_same_arms(name: str) -> None:
    dataset = containers()[name]
    one = Curriculum.from_dataset(dataset, "level")
    assert one.arms == (1, 2, 3)
    assert one.arm_indices(np.arange(6)).tolist() == [2, 0, 1, 0, 2, 0]
    both = Curriculum.from_dataset(dataset, ["level", "info.kind"], seed=3)
    twin = Curriculum(list(zip(LEVEL, KIND, strict=True)), seed=3)
    assert both.arms == twin.arms == ((1, "a"), (1, "b"), (2, "b"), (3, "a"), (3, "b"))
    assert both.draw(20).tolist() == twin.draw(20).tolist()
    deep = Curriculum.from_dataset(dataset, "info.deep.score")
    assert deep.arms == tuple(sorted(SCORE))


@pytest.mark.parametrize("name", ["datasets", "pandas", "rows"])
def test_functions_of_the_row(name: str) -> None:
    def is_hard(row: Any) -> bool:
        return row["level"] > 1

    curriculum = Curriculum.from_dataset(containers()[name], [is_hard, "info.kind"])
    assert curriculum.arms == ((False, "a"), (False, "b"), (True, "a"), (True, "b"))
    with pytest.raises(ValueError, match="row 0: .* raised KeyError"):
        Curriculum.from_dataset(containers()[name], lambda row: row["nothing"])


def test_bins() -> None:
    by_count = Curriculum.from_dataset(ROWS, "info.deep.score", bins={"info.deep.score": 2})
    # .1 .2 .3 and .5 .7 .9, labelled by what they hold.
    assert by_count.arms == ("0.1..0.3", "0.5..0.9")
    assert by_count.arm_indices(np.arange(6)).tolist() == [0, 1, 1, 0, 1, 0]
    by_edge = Curriculum.from_dataset(
        ROWS, ["info.deep.score", "level"], bins={"info.deep.score": [0, 0.3, 1]}
    )
    # Closed below: .3 belongs to the upper bin.
    assert ("0.3..1", 1) in by_edge.arms
    assert ("0..0.3", 2) not in by_edge.arms
    assert len(Curriculum.from_dataset({"x": [5, 5, 5]}, "x", bins={"x": 4}).arms) == 1


def test_bins_sort_by_value_not_by_text() -> None:
    values = [-20.0, -3.0, 1.5, 9.0, 10.0, 100.0]
    curriculum = Curriculum.from_dataset({"x": values}, "x", bins={"x": 6})
    assert curriculum.arm_indices(np.arange(6)).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("dataset", "features", "kwargs", "message"),
    [
        (ROWS, "nothing", {}, "no column 'nothing'; its columns are prompt, level, info"),
        (ROWS, [], {}, "features must name at least one column"),
        ([{"a": 1}, {"a": None}], "a", {}, "row 1: column 'a' is missing; drop the rows"),
        ({"a": [1.0, float("nan")]}, "a", {}, "row 1: column 'a' is missing"),
        (pandas.DataFrame({"a": ["x", None]}), "a", {}, "row 1: column 'a' is missing"),
        (ROWS, "level", {"bins": {"kind": 2}}, r"bins must name features \(level\), got 'kind'"),
        (ROWS, "level", {"bins": {"level": [3, 1]}}, "rising edges, got"),
        (ROWS, "level", {"bins": {"level": [0, 2]}}, "row 0: column 'level' is 3, outside"),
        (ROWS, "info.kind", {"bins": {"info.kind": 2}}, "row 0: .* bins are for finite numbers"),
        (ROWS, "level", {"arms": "both"}, 'arms must be "joint" or "independent"'),
        ({"a": [1, 2], "b": [1]}, ["a", "b"], {}, "columns must be equally long"),
        ([], "a", {}, "at least one row"),
    ],
)
def test_bad_input_names_the_row(dataset, features, kwargs, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Curriculum.from_dataset(dataset, features, **kwargs)


def test_bad_types() -> None:
    with pytest.raises(TypeError, match="row 0: column 'info' is .*name one of its keys"):
        Curriculum.from_dataset(ROWS, "info")
    with pytest.raises(TypeError, match="must be a column's name or a function of the row, got 3"):
        Curriculum.from_dataset(ROWS, [3])
    with pytest.raises(TypeError, match="got a str"):
        Curriculum.from_dataset("rows", "level")
    with pytest.raises(ValueError, match="one split, got a dict of the splits 'train'"):
        Curriculum.from_dataset({"train": datasets.Dataset.from_list(ROWS)}, "level")


# ---- Independent arms ---------------------------------------------------------------------------

CELLS = [(level, kind) for level in (1, 2, 3) for kind in ("a", "b")]
MISSING = (3, "a")


def labels() -> list[tuple[int, str]]:
    return [cell for cell in CELLS * 20 if cell != MISSING]


def softmax(values: np.ndarray) -> np.ndarray:
    weights = np.exp(values - values.max())
    return weights / weights.sum()


def test_independent_features_beside_a_loop() -> None:
    rows = [{"level": level, "kind": kind} for level, kind in labels()]
    curriculum = Curriculum.from_dataset(
        rows, ["level", "kind"], strategy=SEC(0.3, 0.2), arms="independent", seed=5
    )
    levels, kinds = {1: 0.0, 2: 0.0, 3: 0.0}, {"a": 0.0, "b": 0.0}
    generator = np.random.default_rng(0)
    for _ in range(20):
        indices = curriculum.draw(16)
        batch = [labels()[i] for i in indices]
        advantages = generator.normal(size=(16, 4)) * [[level * (kind == "a")] for level, kind in
                                                       batch]  # fmt: skip
        curriculum.observe(indices, advantages=advantages)
        for q, place in ((levels, 0), (kinds, 1)):
            for label in {cell[place] for cell in batch}:
                chosen = [abs(a).mean() for a, c in zip(advantages, batch, strict=True)
                          if c[place] == label]  # fmt: skip
                q[label] += 0.3 * (np.mean(chosen) - q[label])
        p_level = dict(zip(levels, softmax(np.array([*levels.values()]) / 0.2), strict=True))
        p_kind = dict(zip(kinds, softmax(np.array([*kinds.values()]) / 0.2), strict=True))
        joint = np.array([p_level[level] * p_kind[kind] for level, kind in curriculum.arms])
        assert curriculum.probabilities() == pytest.approx(joint / joint.sum(), abs=1e-8)
        assert curriculum.values() == pytest.approx([levels[a] + kinds[b] for a, b in
                                                     curriculum.arms])  # fmt: skip
    tables = curriculum.strategy.feature_tables()
    assert tables[0]["labels"] == (1, 2, 3)
    assert tables[0]["probability"] == pytest.approx(list(p_level.values()), abs=1e-8)
    assert tables[1]["value"] == pytest.approx(list(kinds.values()))


def test_independent_features_continue_identically() -> None:
    def make(seed: int) -> Curriculum:
        return Curriculum(labels(), Factored([SEC(), Ordered(30)]), seed)

    def step(curriculum: Curriculum, number: int) -> list[int]:
        indices = curriculum.draw(8)
        advantages = np.random.default_rng(number).normal(size=(8, 3))
        curriculum.observe(indices, advantages=advantages)
        return indices.tolist()

    whole = make(1)
    for number in range(9):
        step(whole, number)
    restored = make(2)
    restored.load_state_dict(whole.state_dict())
    for number in range(9, 40):
        assert step(whole, number) == step(restored, number)
        assert whole.probabilities().tolist() == restored.probabilities().tolist()
    with pytest.raises(CurriculumStateError, match="strategy"):
        Curriculum(labels(), Factored(SEC())).load_state_dict(whole.state_dict())


def test_a_strategy_for_each_feature() -> None:
    curriculum = Curriculum(labels(), Factored([Ordered(3), Random()]))
    # Level 1 only; of the kinds by their prompts over all levels, a in 40 and b in 60.
    assert curriculum.probabilities() == pytest.approx([0.4, 0.6, 0, 0, 0])
    assert np.isnan(curriculum.values()).all()


@pytest.mark.parametrize(
    ("categories", "strategy", "message"),
    [
        ([1, 2], Factored(SEC()), "the arms must be tuples with one label for each feature"),
        ([(1, 2), (1,)], Factored(SEC()), "the arms must be tuples"),
        ([(1, 2)], Factored([SEC()]), "one for each of the 2 features of the arms, got 1"),
    ],
)
def test_factored_needs_tuples(categories, strategy, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Curriculum(categories, strategy)
    with pytest.raises(TypeError, match="strategies must be a Strategy such as SEC"):
        Factored("sec")  # type: ignore[arg-type]


def test_schedules_that_meet_nowhere_are_refused() -> None:
    with pytest.raises(ValueError, match="leave no arm that has prompts a probability"):
        Curriculum([(1, "b"), (2, "a")], Factored(Ordered(4)))


def test_a_million_rows_take_seconds() -> None:
    level = np.arange(1_000_000) % 7
    table = datasets.Dataset.from_dict(
        {"prompt": ["p"] * len(level), "level": level, "kind": [f"k{i}" for i in level % 3]}
    )
    started = time.perf_counter()
    curriculum = Curriculum.from_dataset(table, ["level", "kind"])
    assert time.perf_counter() - started < 8  # 1 s on a free core
    assert curriculum.arms == tuple((i, f"k{i % 3}") for i in range(7))
