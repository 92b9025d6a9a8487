"""Thompson sampling as probabilities: how likely each arm's sample is to win.

Slots of a batch draw their arms i.i.d. from p, so one Thompson sample for every slot is the same
as p(c) = P(the sample of arm c beats all others), which the core integrates on a grid of 512
points. Time is K x 512: made for up to some ten thousand arms. Axes: K arms.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sec_grpo import _core
from sec_grpo.curriculum._elementary import log

# Far below 2^-40: an arm that hardly ever wins keeps the smallest weight there is, not none.
_LEAST = 1e-300


def gaussian_wins(mean: NDArray[np.float64], deviation: NDArray[np.float64]) -> NDArray[np.float64]:
    """(K,) P(arm c's sample is the largest) of independent Gaussians.

    The grid covers what the largest sample reaches within 6 deviations; a deviation below about
    two of its steps counts as that much.
    """
    return _core.gaussian_wins(np.ascontiguousarray(mean), np.ascontiguousarray(deviation))


def nearest_beta_wins(
    a: NDArray[np.float64], b: NDArray[np.float64], target: float
) -> NDArray[np.float64]:
    """(K,) P(arm c's sample of Beta(a, b) is the nearest to `target`); a and b are at least 1."""
    return _core.nearest_beta_wins(np.ascontiguousarray(a), np.ascontiguousarray(b), target)


def log_wins(usable: NDArray[np.bool_], wins: NDArray[np.float64]) -> NDArray[np.float64]:
    """(K,) log-weights of the arms that are usable, -inf of the others."""
    weights = np.full(len(usable), -np.inf)
    weights[usable] = log(np.maximum(wins, _LEAST))
    return weights
