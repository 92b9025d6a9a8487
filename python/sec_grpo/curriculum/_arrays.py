"""Explicit conversion of what a trainer holds (lists, torch tensors, arrays) for the core."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_INT64 = np.dtype(np.int64)
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def _as_numpy(name: str, values: Any) -> NDArray[Any]:
    if hasattr(values, "detach"):  # a torch tensor, recognised without importing torch
        values = values.detach().cpu()
        try:
            return np.asarray(values.numpy())
        except TypeError:  # bfloat16, which numpy does not have
            return np.asarray(values.float().numpy())
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} must be rectangular: {error}") from error


def as_indices(indices: Any) -> NDArray[np.int64]:
    """Prompt indices as a C-contiguous (B,) int64 array; floats and booleans are refused."""
    if type(indices) is np.ndarray and indices.dtype is _INT64 and indices.flags.c_contiguous:
        array: NDArray[Any] = indices
    else:
        array = _as_numpy("indices", indices)
        if array.size == 0:
            raise ValueError("indices must hold at least one prompt index, got none")
        if array.dtype.kind not in "iu":
            raise TypeError(f"indices must be integers, got dtype {array.dtype}")
        if array.dtype.kind == "u" and int(array.max()) > np.iinfo(np.int64).max:
            raise IndexError(f"indices must be prompt indices, got {array.max()}")
        array = np.ascontiguousarray(array, dtype=np.int64)
    if array.ndim != 1:
        raise ValueError(f"indices must have shape (B,), got {array.shape}")
    return array


def as_groups(name: str, values: Any) -> NDArray[Any] | None:
    """Rollout values as a C-contiguous float32 or float64 array; None stays None."""
    if values is None:
        return None
    if type(values) is np.ndarray and values.dtype in _FLOATS and values.flags.c_contiguous:
        return values
    array = _as_numpy(name, values)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must be numbers, got dtype {array.dtype}")
    dtype = np.float32 if array.dtype in (np.float16, np.float32) else np.float64
    return np.ascontiguousarray(array, dtype=dtype)
