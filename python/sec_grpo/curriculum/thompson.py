"""Thompson sampling as probabilities: how likely each arm's sample is to win.

Slots of a batch draw their arms i.i.d. from p, so one Thompson sample for every slot is the same
as p(c) = P(the sample of arm c beats all others), which is integrated here on a fixed grid and
needs no random numbers. Axes: K arms, X grid points.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GRID_POINTS = 1024
# Standard deviations of a Gaussian that the grid reaches beyond the outermost arms.
_REACH = 6.0


def largest_wins(log_density: NDArray[np.float64]) -> NDArray[np.float64]:
    """(K,) P(sample of arm c is the largest), of unnormalised log densities (K, X).

    P(c) = sum_x f_c(x) prod_{i != c} F_i(x) over grid points in rising order, F_i the
    distribution function in the middle of a point's mass, so that two arms on one point share it.
    """
    density = np.exp(log_density - log_density.max(axis=1, keepdims=True))
    density /= density.sum(axis=1, keepdims=True)
    below = np.cumsum(density, axis=1) - 0.5 * density
    log_below = np.log(np.maximum(below, 1e-300))
    # Without the arm itself: its factor is taken out of the product of all.
    others = np.exp(log_below.sum(axis=0)[None, :] - log_below)
    wins = (density * others).sum(axis=1)
    return wins / wins.sum()


def gaussian_wins(mean: NDArray[np.float64], deviation: NDArray[np.float64]) -> NDArray[np.float64]:
    """(K,) P(arm c's sample is the largest) of independent Gaussians.

    A deviation below two steps of the grid counts as two steps; the grid spans 6 deviations
    beyond the outermost arms.
    """
    low = float((mean - _REACH * deviation).min())
    high = float((mean + _REACH * deviation).max())
    if high <= low:
        return np.full(len(mean), 1.0 / len(mean))
    grid = np.linspace(low, high, GRID_POINTS)
    deviation = np.maximum(deviation, 2.0 * (grid[1] - grid[0]))
    return largest_wins(-0.5 * ((grid - mean[:, None]) / deviation[:, None]) ** 2)


def nearest_beta_wins(
    a: NDArray[np.float64], b: NDArray[np.float64], target: float
) -> NDArray[np.float64]:
    """(K,) P(arm c's sample of Beta(a, b) is the nearest to `target`); a and b are at least 1."""
    reach = max(target, 1.0 - target)
    distance = np.linspace(reach, 0.0, GRID_POINTS)  # falling: the largest is the nearest
    log_density = np.logaddexp(
        _log_beta(target + distance, a, b), _log_beta(target - distance, a, b)
    )
    return largest_wins(log_density)


def _log_beta(
    x: NDArray[np.float64], a: NDArray[np.float64], b: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(K, X) log x^(a-1) (1-x)^(b-1), far below everything outside (0, 1)."""
    inside = (x >= 0.0) & (x <= 1.0)
    clipped = np.clip(x, 1e-12, 1.0 - 1e-12)
    density = (a[:, None] - 1.0) * np.log(clipped) + (b[:, None] - 1.0) * np.log1p(-clipped)
    return np.where(inside, density, -1e300)
