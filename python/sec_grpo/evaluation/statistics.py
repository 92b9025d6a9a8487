"""Estimates from P prompts of a level with n samples each: pass@k, and intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sec_grpo.report.series import wilson_interval

_Z = 1.959964  # the 97.5% quantile of the normal distribution


def pass_at_k(num_samples: int, num_solved: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k): the unbiased estimate of pass@k (arXiv 2107.03374).

    Raises ValueError unless 1 <= k <= n and 0 <= c <= n.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"k must be between 1 and the {num_samples} samples, got {k}")
    if not 0 <= num_solved <= num_samples:
        raise ValueError(f"num_solved must be between 0 and {num_samples}, got {num_solved}")
    return 1.0 - math.comb(num_samples - num_solved, k) / math.comb(num_samples, k)


def mean_interval(values: Sequence[float] | np.ndarray, num_samples: int) -> tuple[float, float]:
    """The 95% interval of the mean of P values in [0, 1], each estimated from n samples.

    Wilson's interval, which stays inside [0, 1] and holds near its ends, with the effective number
    of independent answers in place of their number, as for cluster samples (Korn and Graubard,
    Survey Methodology 24, 1998): samples of one prompt are alike, and counting them as independent
    makes an interval too narrow (arXiv 2411.00640). With v the variance of the mean over prompts,

        N = m (1 - m) / v * (z / t)^2,   at least P and at most P n,

    z the normal and t the Student quantile with P - 1 degrees of freedom. With one sample a prompt
    N is P, and the interval the usual one.

    Args:
        values: (P,) one value a prompt, such as the share of its samples that are solved.
        num_samples: n.
    """
    values = np.asarray(values, float)
    count, mean = len(values), float(values.mean())
    if num_samples == 1 or count == 1 or not 0.0 < mean < 1.0:
        return wilson_interval(mean, count)
    return _wilson(mean, float(values.var(ddof=1)) / count, count, num_samples)


def mean_interval_of_levels(
    levels: Sequence[Sequence[float] | np.ndarray], num_samples: int
) -> tuple[float, float]:
    """As `mean_interval`, of the mean of the levels' means, each with the same weight."""
    arrays = [np.asarray(values, float) for values in levels]
    count, mean = sum(map(len, arrays)), float(np.mean([values.mean() for values in arrays]))
    if not 0.0 < mean < 1.0:
        return wilson_interval(mean, count)
    variance = sum(
        (values.var(ddof=1) if len(values) > 1 else mean * (1.0 - mean)) / len(values)
        for values in arrays
    )
    return _wilson(mean, float(variance) / len(arrays) ** 2, count, num_samples, least=1.0)


def _wilson(
    mean: float, variance: float, count: int, num_samples: int, least: float | None = None
) -> tuple[float, float]:
    most = float(count * num_samples)
    effective = most
    if variance > 0.0:
        effective = mean * (1.0 - mean) / variance * (_Z / _student(count - 1)) ** 2
    return wilson_interval(mean, min(max(effective, least or count), most))


def _student(freedom: int) -> float:
    """Student's 97.5% quantile, by its expansion around the normal (Abramowitz-Stegun 26.7.5)."""
    z = _Z
    return (
        z
        + (z**3 + z) / 4 / freedom
        + (5 * z**5 + 16 * z**3 + 3 * z) / 96 / freedom**2
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384 / freedom**3
    )
