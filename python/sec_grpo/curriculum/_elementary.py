"""exp and log with the same bits on every processor, unlike numpy's.

Log-weights made with these give the same draws everywhere; +, -, *, / and sqrt do anyway.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sec_grpo import _core


def exp(values: ArrayLike) -> NDArray[np.float64]:
    """e to the power of each value."""
    array = np.asarray(values, dtype=np.float64)
    return _core.exp(np.ascontiguousarray(array).ravel()).reshape(array.shape)


def log(values: ArrayLike) -> NDArray[np.float64]:
    """Natural logarithms: -inf of 0, NaN of what is below."""
    array = np.asarray(values, dtype=np.float64)
    return _core.log(np.ascontiguousarray(array).ravel()).reshape(array.shape)


def power(base: ArrayLike, exponent: float) -> NDArray[np.float64]:
    """base^exponent of bases of at least 0; 0^exponent is 0 for an exponent above 0."""
    return exp(exponent * log(base))


def tanh(value: float) -> float:
    """Of one number."""
    # Of the size alone: e^(2 size) may be infinite, which is right.
    size = 1.0 - 2.0 / (float(exp(2.0 * abs(value))) + 1.0)
    return size if value >= 0.0 else -size
