"""Bytes of what strategies keep: plain objects, numpy arrays and numpy scalars.

The length of a JSON text in 8 bytes, little-endian; the text, in which an array is its place, dtype
and shape; then the bytes of the arrays.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ARRAY = "__array__"
_LENGTH_SIZE = 8


def text(value: Any) -> str:
    """Canonical JSON, for what is compared: equal values give equal texts."""
    return _dump(value, lambda array: array.tolist())


def encode(value: Any) -> bytes:
    """Equal values give equal bytes; numbers keep their bits."""
    _check_keys(value)
    arrays: list[bytes] = []

    def kept(array: NDArray[Any]) -> dict[str, Any]:
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        place = sum(map(len, arrays))
        arrays.append(little.tobytes())
        return {_ARRAY: place, "dtype": little.dtype.str, "shape": list(array.shape)}

    described = _dump(value, kept).encode()
    return b"".join([len(described).to_bytes(_LENGTH_SIZE, "little"), described, *arrays])


def decode(data: bytes) -> Any:
    """What `encode` was given; tuples come back as lists.

    Raises ValueError for bytes that `encode` did not give.
    """
    start = _LENGTH_SIZE + int.from_bytes(data[:_LENGTH_SIZE], "little")
    if len(data) < start:
        raise ValueError(f"{start} bytes were expected at least, got {len(data)}")
    arrays = memoryview(data)[start:]

    def special(item: dict[str, Any]) -> Any:
        if _ARRAY not in item:
            return item
        dtype, shape = np.dtype(item["dtype"]), item["shape"]
        array = np.frombuffer(arrays, dtype, math.prod(shape), item[_ARRAY])
        return array.reshape(shape).astype(dtype.newbyteorder("="))

    return json.loads(data[_LENGTH_SIZE:start].decode(), object_hook=special)


def _dump(value: Any, array_as: Callable[[NDArray[Any]], Any]) -> str:
    def special(item: Any) -> Any:
        if isinstance(item, np.ndarray) and item.dtype.kind in "biuf":
            return array_as(item)
        if isinstance(item, np.generic) and item.dtype.kind in "biuf":
            return item.item()
        raise TypeError(
            "the state of a strategy must be made of numbers, strings, lists, dicts with string "
            f"keys and numeric numpy arrays, got a {type(item).__name__}"
        )

    return json.dumps(value, default=special, sort_keys=True, separators=(",", ":"))


def _check_keys(value: Any) -> None:
    """JSON would turn keys that are numbers into strings, and say nothing."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(
                    f"the state of a strategy must have strings as the keys of dicts, got {key!r}; "
                    "use a list of pairs, or an array with one row an arm"
                )
            _check_keys(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_keys(item)
