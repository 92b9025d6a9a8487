"""JSON that keeps what plain JSON loses: tuples, keys that are no text, fractions, dates.

A value that JSON has is written as it is; any other as an object with the one key "__kind__".
Reading makes these kinds only: a text from elsewhere cannot name a class or a function.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

_MARK = "__kind__"
_READ: dict[str, Callable[[Any], Any]] = {
    "tuple": lambda parts: tuple(map(_decoded, parts)),
    "set": lambda parts: set(map(_decoded, parts)),
    "dict": lambda pairs: {_decoded(key): _decoded(value) for key, value in pairs},
    "Fraction": Fraction,
    "Decimal": Decimal,
    "complex": lambda parts: complex(*parts),
    "datetime": datetime.datetime.fromisoformat,
    "date": datetime.date.fromisoformat,
    "time": datetime.time.fromisoformat,
}


def dumps(value: Any) -> str:
    """The text; raises TypeError for a value of a kind that is not kept."""
    return json.dumps(_encoded(value), ensure_ascii=False, separators=(",", ":"))


def loads(text: str) -> Any:
    """The value that `dumps` wrote; raises ValueError for a text that it did not."""
    try:
        return _decoded(json.loads(text))
    except (KeyError, TypeError, RecursionError, ArithmeticError) as error:
        raise ValueError(f"not a value written here ({type(error).__name__}: {error})") from error


def _encoded(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool, int, float)):
        # Subclasses too, such as numpy's text and float, whose values are these.
        for plain in (str, bool, int, float):
            if isinstance(value, plain):
                return plain(value)
        return None
    if isinstance(value, list):
        return [_encoded(part) for part in value]
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value) and _MARK not in value:
            return {str(key): _encoded(part) for key, part in value.items()}
        return _marked("dict", [[_encoded(key), _encoded(part)] for key, part in value.items()])
    if isinstance(value, tuple):
        return _marked("tuple", [_encoded(part) for part in value])
    if isinstance(value, (set, frozenset)):
        return _marked("set", sorted((_encoded(part) for part in value), key=repr))
    if isinstance(value, (Fraction, Decimal)):
        return _marked(type(value).__name__, str(value))
    if isinstance(value, complex):
        return _marked("complex", [value.real, value.imag])
    for kind in (datetime.datetime, datetime.date, datetime.time):
        if isinstance(value, kind):
            return _marked(kind.__name__, value.isoformat())
    if hasattr(value, "tolist"):  # of numpy
        return _encoded(value.tolist())
    raise TypeError(f"a value of type {type(value).__name__} cannot be kept")


def _marked(kind: str, value: Any) -> dict[str, Any]:
    return {_MARK: kind, "value": value}


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(part) for part in value]
    if isinstance(value, dict):
        if _MARK in value:
            return _READ[value[_MARK]](value["value"])
        return {key: _decoded(part) for key, part in value.items()}
    return value
