"""JSON that keeps tuples, keys, fractions and dates."""

import datetime
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sec_grpo.tasks import tagged

keys = st.text(max_size=5) | st.integers() | st.tuples(st.integers(), st.text(max_size=3))
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=10)
    | st.fractions()
    | st.decimals(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.dates()
    | st.times()
    | st.datetimes()
)
values = st.recursive(
    scalars,
    lambda below: (
        st.lists(below, max_size=4)
        | st.lists(below, max_size=4).map(tuple)
        | st.dictionaries(keys, below, max_size=4)
        | st.sets(st.integers() | st.text(max_size=3), max_size=4)
    ),
    max_leaves=15,
)


def same(one, other) -> bool:
    """Equal, and of the same types."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(map(repr, one)) == list(map(repr, other)) and all(
            same(value, other[key]) for key, value in one.items()
        )
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@given(values)
def test_values_come_back(value):
    assert same(tagged.loads(tagged.dumps(value)), value)


def test_what_looks_like_a_mark_is_kept():
    for value in ({"__kind__": "tuple", "value": [1]}, {"__kind__": 3}, [{"__kind__": None}]):
        assert tagged.loads(tagged.dumps(value)) == value


def test_numpy_becomes_plain():
    value = {"a": np.str_("x"), "b": np.float64(0.5), "c": np.arange(3), "d": (np.int64(3),)}
    back = tagged.loads(tagged.dumps(value))
    assert same(back, {"a": "x", "b": 0.5, "c": [0, 1, 2], "d": (3,)})


def test_what_cannot_be_kept_is_named():
    with pytest.raises(TypeError, match="a value of type object cannot be kept"):
        tagged.dumps([object()])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nothing",
        '{"__kind__": "os", "value": 1}',
        '{"__kind__": "tuple"}',
        '{"__kind__": "Fraction", "value": "1/0"}',
        '{"__kind__": "date", "value": "tomorrow"}',
        '{"__kind__": "Decimal", "value": "x"}',
        '{"__kind__": ["tuple"], "value": []}',
        "[" * 10**5,
    ],
)
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError):
        tagged.loads(text)


def test_kinds():
    kinds = (Fraction(1, 3), Decimal("1.10"), 1 + 2j, datetime.date(2024, 2, 29), {1, 2})
    for value in kinds:
        assert same(tagged.loads(tagged.dumps(value)), value)
