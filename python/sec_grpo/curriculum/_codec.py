"""JSON bytes of what strategies keep: plain objects, numpy arrays and numpy scalars."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np

_ARRAY = "__array__"


def _encode_special(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        little = value.astype(value.dtype.newbyteorder("<"), copy=False)
        data = base64.b64encode(np.ascontiguousarray(little).tobytes()).decode()
        return {_ARRAY: data, "dtype": little.dtype.str, "shape": list(value.shape)}
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        return value.item()
    raise TypeError(
        "the state of a strategy must be made of numbers, strings, lists, dicts with string keys "
        f"and numeric numpy arrays, got a {type(value).__name__}"
    )


def _decode_special(value: dict[str, Any]) -> Any:
    if _ARRAY not in value:
        return value
    data = base64.b64decode(value[_ARRAY])
    dtype = np.dtype(value["dtype"])
    array = np.frombuffer(data, dtype).reshape(value["shape"])
    return array.astype(dtype.newbyteorder("="))


def encode(value: Any) -> bytes:
    """Canonical JSON: equal values give equal bytes; floats keep their bits."""
    text = json.dumps(value, default=_encode_special, sort_keys=True, separators=(",", ":"))
    return text.encode()


def decode(data: bytes) -> Any:
    """What `encode` was given; tuples come back as lists."""
    return json.loads(data.decode(), object_hook=_decode_special)
