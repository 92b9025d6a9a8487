"""Categories from data sets: every container, joint arms, functions of the row, bins, refusals."""

from __future__ import annotations

import time
from typing import Any

import datasets
import numpy as np
import pandas
import pyarrow
import pytest
import torch

from sec_grpo.curriculum import SEC, Curriculum, Factored, StaticWeights

LEVEL = [3, 1, 2, 1, 3, 10]
KIND = ["b", "a", "b", "b", "a", "a"]
SCORE = [0.1, 0.9, 0.5, 0.3, 0.7, 0.2]
ROWS = [
    {"prompt": f"p{i}", "level": level, "info": {"kind": kind, "deep": {"score": score}}}
    for i, (level, kind, score) in enumerate(zip(LEVEL, KIND, SCORE, strict=True))
]
INFO = [row["info"] for row in ROWS]


class Lazy:
    """A data set of one's own: a length and rows by index."""

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index >= len(ROWS):
            raise IndexError
        return ROWS[index]


CONTAINERS: dict[str, Any] = {
    "datasets": datasets.Dataset.from_list(ROWS),
    "selected": datasets.Dataset.from_list([*reversed(ROWS)]).select([5, 4, 3, 2, 1, 0]),
    "formatted": datasets.Dataset.from_list(ROWS).with_format("torch"),
    "concatenated": datasets.concatenate_datasets(
        [datasets.Dataset.from_list(ROWS[:2]), datasets.Dataset.from_list(ROWS[2:])]
    ),
    "pandas": pandas.DataFrame(ROWS, index=[7, 7, 1, 2, 3, 0]),
    "pandas categorical": pandas.DataFrame(ROWS).astype({"level": "category"}),
    "table": pyarrow.Table.from_pylist(ROWS),
    "array columns": {"level": np.array(LEVEL), "info": INFO},
    "tensor columns": {"level": torch.tensor(LEVEL), "info": INFO},
    "nested columns": {"level": LEVEL, "info": {"kind": np.array(KIND), "deep": {"score": SCORE}}},
    "series columns": {"level": pandas.Series(LEVEL), "info": INFO},
    "rows": ROWS,
    "tuple of rows": tuple(ROWS),
    "own": Lazy(),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_gives_the_same_arms(name: str) -> None:
    dataset = CONTAINERS[name]
    one = Curriculum.from_dataset(dataset, "level")
    assert one.arms == (1, 2, 3, 10)
    assert one.arm_indices(np.arange(6)).tolist() == [2, 0, 1, 0, 2, 3]
    both = Curriculum.from_dataset(dataset, ["level", "info.kind"], seed=3)
    by_hand = Curriculum(list(zip(LEVEL, KIND, strict=True)), seed=3)
    assert both.arms == ((1, "a"), (1, "b"), (2, "b"), (3, "a"), (3, "b"), (10, "a"))
    assert repr(both.arms) == repr(by_hand.arms)  # plain Python objects
    assert both.arm_indices(np.arange(6)).tolist() == [4, 0, 2, 1, 3, 5]
    assert both.draw(20).tolist() == by_hand.draw(20).tolist()
    assert both.to_bytes() == by_hand.to_bytes()
    deep = Curriculum.from_dataset(dataset, "info.deep.score")
    assert deep.arms == (0.1, 0.2, 0.3, 0.5, 0.7, 0.9)


@pytest.mark.parametrize("name", CONTAINERS)
def test_functions_of_the_row(name: str) -> None:
    def is_hard(row: Any) -> bool:
        return bool(row["level"] > 2)

    curriculum = Curriculum.from_dataset(
        CONTAINERS[name], [is_hard, lambda row: row["info"]["kind"]]
    )
    assert curriculum.arms == ((False, "a"), (False, "b"), (True, "a"), (True, "b"))
    assert curriculum.arm_indices(np.arange(6)).tolist() == [3, 0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match="row 0: feature function <lambda> raised KeyError: 'no'"):
        Curriculum.from_dataset(CONTAINERS[name], lambda row: row["no"])


def test_the_authors_rows(sec_data) -> None:
    rows = datasets.Dataset.from_parquet(str(sec_data / "countdown_train.parquet"))
    curriculum = Curriculum.from_dataset(rows, ["data_source", "extra_info.difficulty"])
    by_hand = [(row["data_source"], row["extra_info"]["difficulty"]) for row in rows]
    assert curriculum.arms == Curriculum(by_hand).arms
    assert [curriculum.arms[k] for k in curriculum.arm_indices(np.arange(len(rows)))] == by_hand


def test_a_list_of_one_feature_makes_tuples() -> None:
    assert Curriculum.from_dataset(ROWS, ["level"]).arms == ((1,), (2,), (3,), (10,))


def test_a_name_with_a_dot_comes_before_the_way_inside() -> None:
    row = {"a.b": 1, "a": {"b": 2}}
    for dataset in ([row], {key: [value] for key, value in row.items()}, pandas.DataFrame([row])):
        assert Curriculum.from_dataset(dataset, "a.b").arms == (1,)


def test_many_features_do_not_overflow() -> None:
    """Five features of 10,000 values each: 10**20 tuples could occur, 10,000 do."""
    generator = np.random.default_rng(0)
    columns = {f"f{i}": generator.permutation(10_000) for i in range(5)}
    curriculum = Curriculum.from_dataset(columns, list(columns))
    expected = sorted(zip(*(column.tolist() for column in columns.values()), strict=True))
    assert list(curriculum.arms) == expected


def test_strategy_and_seed_are_passed_on() -> None:
    curriculum = Curriculum.from_dataset(
        ROWS, "level", strategy=StaticWeights((0, 1, 0, 3)), seed=9
    )
    assert curriculum.seed == 9
    assert curriculum.probabilities() == pytest.approx([0, 0.25, 0, 0.75])
    default = Curriculum.from_dataset({"difficulty": [1, 1], "type": ["x", "y"]})
    assert default.arms == ((1, "x"), (1, "y"))
    assert default.strategy == SEC()


def test_independent_features_are_bound_to_factored() -> None:
    curriculum = Curriculum.from_dataset(
        ROWS, ["level", "info.kind"], strategy=SEC(temperature=0.2), arms="independent"
    )
    assert curriculum.strategy == Factored(SEC(temperature=0.2))
    assert [table["labels"] for table in curriculum.strategy.feature_tables()] == [
        (1, 2, 3, 10),
        ("a", "b"),
    ]
    # Bins are in the order of their numbers, not of their text.
    rows = {"length": [-3, 100, -7, 1], "kind": list("abab")}
    cut = {"length": [-10, -5, 0, 200]}
    binned = Curriculum.from_dataset(rows, ["length", "kind"], arms="independent", bins=cut)
    order = ("-10..-5", "-5..0", "0..200")
    assert binned.strategy.feature_tables()[0]["labels"] == order
    single = Curriculum.from_dataset(ROWS, "level", arms="independent")
    assert single.strategy == SEC()


# ---- Bins ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "count", "arms", "codes"),
    [
        (SCORE, 2, ("0.1..0.3", "0.5..0.9"), [0, 1, 1, 0, 1, 0]),
        (SCORE, 3, ("0.1..0.2", "0.3..0.5", "0.7..0.9"), [0, 2, 1, 1, 2, 0]),
        # Whole numbers stay whole, and a value is never split: .45 and .95 are the middle ranks.
        ([0] * 9 + [1], 2, ("0", "1"), [0] * 9 + [1]),
        ([7, 7, 7], 4, ("7",), [0, 0, 0]),
        # Labels are ordered by value, not as text.
        ([-10, -2, 5, 40, 300, 1e6], 3, ("-10..-2", "5..40", "300..1000000"), [0, 0, 1, 1, 2, 2]),
        # As many digits as tell the bins apart.
        ([1.00001, 1.00002, 1.00003], 3, ("1.00001", "1.00002", "1.00003"), [0, 1, 2]),
    ],
)
def test_quantile_bins(values, count, arms, codes) -> None:
    curriculum = Curriculum.from_dataset({"x": values}, "x", bins={"x": count})
    assert curriculum.arms == arms
    assert curriculum.arm_indices(np.arange(len(values))).tolist() == codes


def test_quantile_bins_are_equally_full() -> None:
    values = np.random.default_rng(1).normal(size=1003)
    curriculum = Curriculum.from_dataset({"x": values}, "x", bins={"x": 5})
    assert sorted(curriculum.arm_table()["prompts"].tolist()) == [200, 200, 201, 201, 201]
    arms = curriculum.arm_indices(np.arange(1003))
    assert (np.diff(arms[np.argsort(values)]) >= 0).all()


def test_bins_by_edges() -> None:
    curriculum = Curriculum.from_dataset(
        {"x": [0.0, 0.3, 0.29, 1.0, 55.0], "k": list("abaab")},
        ["x", "k"],
        bins={"x": [0, 0.3, 1, np.inf]},
    )
    # Closed below: .3 belongs to the second bin and 1 to the third.
    assert curriculum.arms == (
        ("0..0.3", "a"),
        ("0.3..1", "b"),
        ("1..inf", "a"),
        ("1..inf", "b"),
    )
    assert curriculum.arm_indices(np.arange(5)).tolist() == [0, 1, 0, 2, 3]
    closed = Curriculum.from_dataset({"x": [0, 1, 2]}, "x", bins={"x": (0, 1, 2)})
    assert closed.arms == ("0..1", "1..2")
    assert closed.arm_indices([0, 1, 2]).tolist() == [0, 1, 1]


def test_bins_of_a_function() -> None:
    def length(row: Any) -> int:
        return len(row["prompt"])

    rows = [{"prompt": "x" * n} for n in (1, 2, 30, 40)]
    assert Curriculum.from_dataset(rows, length, bins={"length": 2}).arms == ("1..2", "30..40")


# ---- Refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "features", "options", "message"),
    [
        (ROWS, [], {}, "features must name at least one column"),
        (ROWS, ["level", "level"], {}, "features must be distinct, got 'level' more than once"),
        (ROWS, "level", {"arms": "both"}, 'arms must be "joint" or "independent", got \'both\''),
        (ROWS, "level", {"bins": {"kind": 2}}, r"bins must name features \(level\), got 'kind'"),
        (ROWS, "level", {"bins": {"level": 1}}, "integer of at least 2 or .* rising edges, got 1"),
        (ROWS, "level", {"bins": {"level": [3, 1]}}, "rising edges, got"),
        (ROWS, "level", {"bins": {"level": [3]}}, "rising edges, got"),
        (
            ROWS,
            "level",
            {"bins": {"level": [0, 2]}},
            "row 0: column 'level' is 3, outside the edges",
        ),
        (ROWS, "info.kind", {"bins": {"info.kind": 2}}, "row 0: .* is 'b'; bins are for finite"),
        ({"x": [1.0, np.inf]}, "x", {"bins": {"x": 2}}, "row 1: column 'x' is inf; bins are for"),
        ({"a": [1, 2], "b": [1]}, ["a", "b"], {}, "equally long, got 1 rows in column 'b' and 2"),
        ([], "a", {}, "at least one row"),
        ({"a": []}, "a", {}, "at least one row"),
        (CONTAINERS["datasets"].select([]), "level", {}, "at least one row"),
        ({"a": np.zeros((2, 2))}, "a", {}, r"column 'a' must have shape \(N,\), got \(2, 2\)"),
        ({"train": CONTAINERS["datasets"]}, "level", {}, "one split, got .* splits 'train'"),
        (CONTAINERS["datasets"].to_iterable_dataset(), "level", {}, "must not be a stream"),
    ],
)
def test_refused(dataset, features, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Curriculum.from_dataset(dataset, features, **options)


@pytest.mark.parametrize("name", CONTAINERS)
def test_unknown_column(name: str) -> None:
    for column in ("nothing", "info.nothing", "level.deeper"):
        message = f"the data set has no column '{column}'; its columns are .*(level|info.kind)"
        with pytest.raises(ValueError, match=message):
            Curriculum.from_dataset(CONTAINERS[name], ["level", column])


@pytest.mark.parametrize(
    "dataset",
    [
        [{"a": {"b": 1}}, {"a": {"b": 2}}, {"a": {"b": None}}, {"a": None}],
        [{"a": {"b": 1}}, {"a": {"b": 2}}, {"a": {}}, {}],
        {"a": [{"b": 1}, {"b": 2}, {"b": float("nan")}, {"b": 1}]},
        {"a": {"b": np.array([1.0, 2.0, np.nan, np.nan])}},
        pandas.DataFrame({"a.b": [1, 2, None, 4]}),
        pandas.DataFrame({"a.b": pandas.array([1, 2, pandas.NA, 4], dtype="Int64")}),
        pandas.DataFrame({"a.b": ["x", "y", None, "x"]}),
        datasets.Dataset.from_list([{"a": {"b": 1}}, {"a": {"b": 2}}, {"a": {"b": None}}]),
        datasets.Dataset.from_list([{"a": {"b": 1}}, {"a": {"b": 2}}, {"a": None}]),
        pyarrow.table({"a.b": [1.0, 2.0, float("nan"), None]}),
    ],
)
def test_missing_values_name_the_row_and_the_column(dataset) -> None:
    with pytest.raises(ValueError, match="row 2: column 'a.b' is missing; drop the rows without"):
        Curriculum.from_dataset(dataset, "a.b")


@pytest.mark.parametrize(
    ("dataset", "features", "message"),
    [
        (ROWS, "info", "row 0: column 'info' is .* of type dict; .* after a dot, such as 'kind'"),
        (CONTAINERS["datasets"], "info", "row 0: column 'info' is .* of type dict"),
        (CONTAINERS["pandas"], "info", "row 0: column 'info' is .* of type dict"),
        ({"a": [1, [2]]}, "a", r"row 1: column 'a' is \[2\] of type list; a feature must be"),
        ({"a": [1, b"x"]}, "a", "row 1: column 'a': got b'x' of type bytes"),
        (ROWS, [3], r"features\[0\] must be a column's name or a function of the row, got 3"),
        (ROWS, None, "features must be a column's name, a function of the row, or a list"),
        ("rows", "level", "must be a datasets.Dataset, a pandas DataFrame, .*got a str"),
        ([1, 2], "level", "row 0 of the data set must be a dict, got a int"),
        ({"a": 3}, "a", "column 'a' must be a sequence with one value a row, got a int"),
        (({"a": 1} for _ in range(3)), "a", "got a generator"),
    ],
)
def test_refused_types(dataset, features, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Curriculum.from_dataset(dataset, features)


@pytest.mark.parametrize("bins", [3, {"level": "many"}, {"level": True}, {"level": ["a", "b"]}])
def test_refused_types_of_bins(bins) -> None:
    with pytest.raises(TypeError, match="bins"):
        Curriculum.from_dataset(ROWS, "level", bins=bins)


def test_a_million_rows_take_seconds() -> None:
    """About 0.5 s where it was measured; the bound is for a machine ten times slower."""
    level = np.arange(1_000_000) % 7
    table = pyarrow.table({"level": level, "kind": pyarrow.array(level % 3).cast("string")})
    dataset = datasets.Dataset(table)
    started = time.perf_counter()
    curriculum = Curriculum.from_dataset(dataset, ["level", "kind"])
    assert time.perf_counter() - started < 5.0
    assert curriculum.arms == tuple((i, str(i % 3)) for i in range(7))


def test_a_column_of_nothing_is_missing_and_not_unknown() -> None:
    for rows in ([{"a": None}] * 3, {"a": [None] * 3}, pandas.DataFrame({"a": [None] * 3})):
        with pytest.raises(ValueError, match="row 0: column 'a' is missing; drop the rows"):
            Curriculum.from_dataset(rows, "a")
