"""Checks of the parameters of strategies."""

from __future__ import annotations

import math
import numbers
from typing import Any


def real_parameter(name: str, value: Any, must: str) -> float:
    """The value as a finite float; `must` says the allowed range in the error."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be {must}, got {value!r} of type {type(value).__name__}")
    result = float(value)
    if not math.isfinite(result):
        raise ValueError(f"{name} must be {must}, got {value!r}")
    return result


def count_parameter(name: str, value: Any) -> int:
    """The value as an int of at least 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(
            f"{name} must be an integer of at least 1, got {value!r} of type {type(value).__name__}"
        )
    if value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    return int(value)
