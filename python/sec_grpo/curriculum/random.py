"""Training without a curriculum."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sec_grpo.curriculum._elementary import log
from sec_grpo.curriculum.strategy import Strategy


@dataclass(frozen=True)
class Random(Strategy):
    """Plain shuffled training, the baseline of arXiv 2505.14970.

    p(c) = n(c) / N, n(c) the number of prompts of arm c: every prompt is equally likely. Inside
    an arm prompts come without replacement, so an arm, not the whole data set, is what is passed
    through once an epoch.
    """

    def on_bind(self, arms: tuple[object, ...], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
        """log n(c)."""
        return log(sizes)  # log 0 = -inf is an empty arm's probability 0

    def on_grow(self, step: int) -> NDArray[np.float64]:
        """log n(c)."""
        return self.on_bind(self.arms, self.sizes)
