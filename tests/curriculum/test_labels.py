"""Categories to arms: order, types, refusals."""

import numpy as np
import pyarrow
import pytest
import torch

from sec_grpo.curriculum import Curriculum


@pytest.mark.parametrize(
    ("categories", "arms"),
    [
        ([3, 1, 2, 1], (1, 2, 3)),
        (np.array([3, 1, 2, 1], np.int8), (1, 2, 3)),
        (torch.tensor([3, 1, 2, 1]), (1, 2, 3)),
        ([10.5, -1.0, float("inf")], (-1.0, 10.5, float("inf"))),
        (["level 10", "level 2", "level 1"], ("level 1", "level 2", "level 10")),
        (np.array(["b", "a"]), ("a", "b")),
        (np.array(["x2", "x1"], object), ("x1", "x2")),
        (["a1b", "a01b", "a", "b"], ("a", "a01b", "a1b", "b")),
        ([("geo", 10), ("geo", 9), ("alg", 10)], (("alg", 10), ("geo", 9), ("geo", 10))),
        ([("b",), "x", 7, "a", 2.5], (2.5, 7, "a", "x", ("b",))),
        ([np.int64(4), np.int64(2)], (2, 4)),
        ([np.str_("q"), "p"], ("p", "q")),
        ([(np.int64(1), np.str_("z"))], ((1, "z"),)),
        ([True, False], (False, True)),
        ((str(i) for i in (2, 1)), ("1", "2")),
    ],
)
def test_arms_in_order(categories: object, arms: tuple) -> None:
    curriculum = Curriculum(categories)
    assert curriculum.arms == arms
    assert repr(curriculum.arms) == repr(arms)  # plain Python objects
    assert curriculum.num_arms == len(arms)


def test_arm_of_each_prompt() -> None:
    curriculum = Curriculum(["b", "a", "b", "c"])
    assert curriculum.arm_indices([0, 1, 2, 3, 0]).tolist() == [1, 0, 1, 2, 1]
    assert curriculum.arm_table()["prompts"].tolist() == [1, 2, 1]


def test_explicit_arms() -> None:
    curriculum = Curriculum(["b", "a", "b"], arms=["c", "b", "a"])
    assert curriculum.arms == ("c", "b", "a")
    assert curriculum.arm_indices([0, 1, 2]).tolist() == [1, 2, 1]
    assert curriculum.probabilities().tolist() == [0.0, 0.5, 0.5]
    assert set(curriculum.draw(100).tolist()) == {0, 1, 2}


def test_arrow_arrays() -> None:
    column = pyarrow.array(["b", "a", "b"])
    for categories in (column, pyarrow.chunked_array([column.slice(0, 2), column.slice(2)])):
        curriculum = Curriculum(categories)
        assert curriculum.arms == ("a", "b")
        assert curriculum.arm_indices([0, 1, 2]).tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("categories", "error", "message"),
    [
        ([], ValueError, "at least one prompt"),
        (np.array([]), ValueError, "at least one prompt"),
        ([1, None, 2], ValueError, r"categories\[1\]: got None"),
        ([1.0, 2.0, float("nan")], ValueError, r"categories\[2\]: got NaN"),
        (np.array([1.0, np.nan, np.nan]), ValueError, r"categories\[1\]: got NaN"),
        ([("a", 1), ("a", None)], ValueError, r"categories\[1\]: got None"),
        ([1, [2], 3], TypeError, r"categories\[1\] must be a number, a string or a tuple"),
        ([1, b"x"], TypeError, r"categories\[1\].*bytes"),
        ([1, frozenset()], TypeError, r"categories\[1\].*frozenset"),
        (np.zeros((3, 2)), ValueError, r"shape \(N,\), got \(3, 2\)"),
        ("abc", TypeError, "one label a prompt, got a str"),
        ({"a": 1}, TypeError, "got a dict"),
        (None, TypeError, "categories must be a sequence with one label a prompt, got a NoneType"),
        (5, TypeError, "categories must be a sequence with one label a prompt, got a int"),
        (pyarrow.array(["a", None]), ValueError, r"categories\[1\]: got None"),
    ],
)
def test_refused_categories(categories: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Curriculum(categories)


@pytest.mark.parametrize(
    ("arms", "error", "message"),
    [
        (["a"], ValueError, r"categories\[1\] is 'b', which is not among the 1 arms"),
        (["a", "b", "a"], ValueError, "distinct, got 'a' more than once"),
        (["a", "b", None], ValueError, r"arms\[2\]: got None"),
        ("ab", TypeError, "arms must be a list of labels, got a str"),
        (3, TypeError, "arms must be a list of labels, got a int"),
        ([], ValueError, "not among the 0 arms"),
    ],
)
def test_refused_arms(arms: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Curriculum(["a", "b"], arms=arms)  # type: ignore[arg-type]


def test_as_many_arms_as_prompts() -> None:
    curriculum = Curriculum([f"p{i}" for i in range(200_000)])
    assert curriculum.num_arms == 200_000
    assert curriculum.arms[:3] == ("p0", "p1", "p2")
    assert len(curriculum.metrics()) < 20


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_range(seed: int) -> None:
    with pytest.raises(ValueError, match="seed must be an integer"):
        Curriculum([0], seed=seed)


@pytest.mark.parametrize("seed", [True, 1.0, "1", None])
def test_seed_type(seed: object) -> None:
    with pytest.raises(TypeError, match="seed must be an integer"):
        Curriculum([0], seed=seed)  # type: ignore[arg-type]


def test_strategy_must_be_one() -> None:
    with pytest.raises(TypeError, match="get_strategy"):
        Curriculum([0], "sec")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "dtype", ["i1", "u1", "<i2", ">i2", "<u4", ">i4", "<i8", ">i8", "<u8", ">u8"]
)
@pytest.mark.parametrize("values", [[3, 5, 4, 3], [3, 100, 50, 3], [0, 0]])
def test_integer_arrays_of_every_kind(dtype: str, values: list[int]) -> None:
    items = np.array([value for value in values for _ in range(2)], dtype)[::2]
    curriculum = Curriculum(items)
    assert curriculum.arms == tuple(sorted(set(values)))
    assert all(type(arm) is int for arm in curriculum.arms)
    arms = curriculum.arm_indices(np.arange(len(values)))
    assert [curriculum.arms[arm] for arm in arms] == values


def test_integers_at_the_ends_of_their_range() -> None:
    for dtype, values in (
        (np.uint64, [2**64 - 1, 2**64 - 3]),
        (np.int64, [-(2**63), -(2**63) + 5]),
        (np.int64, [2**63 - 1, -(2**63)]),  # too far apart for a table
        (np.int8, [-128, 127]),
    ):
        curriculum = Curriculum(np.array(values, dtype))
        assert curriculum.arms == tuple(sorted(values))
        assert [curriculum.arms[arm] for arm in curriculum.arm_indices([0, 1])] == values
