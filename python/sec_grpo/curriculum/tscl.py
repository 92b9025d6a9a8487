"""The change of success."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sec_grpo.curriculum._success import SuccessStrategy, success_rates
from sec_grpo.curriculum.strategy import Feedback


@dataclass(frozen=True)
class TSCL(SuccessStrategy):
    """Teacher-Student Curriculum Learning, the online algorithm of arXiv 1707.00183.

    Q(c) <- alpha (x(c) - x'(c)) + (1 - alpha) Q(c), x the success of the batch and x' that of the
    batch in which the arm was last seen; p(c) = softmax(|Q(c)| / tau). The absolute value draws
    arms that are being forgotten as well as those being learned; arms not drawn keep Q.

    Departure: 1. an arm's first batch only sets x', since there is no change yet.
    """

    def on_bind(self, arms: tuple[object, ...], sizes: NDArray[np.int64]) -> None:
        """Q = 0, and no arm seen."""
        self.memory["change"] = np.zeros(len(arms))
        self.memory["last"] = np.full(len(arms), np.nan)

    def observe(self, feedback: Feedback) -> NDArray[np.float64]:
        """Update Q and x' of the arms in the batch."""
        rates = success_rates(feedback, self.success_threshold)
        change, last = self.memory["change"].copy(), self.memory["last"].copy()
        seen = ~np.isnan(last[feedback.arms])
        arms = feedback.arms[seen]
        change[arms] += self.alpha * (rates[seen] - last[arms] - change[arms])
        last[feedback.arms] = rates
        self.memory["change"], self.memory["last"] = change, last
        return np.abs(change) / self.temperature

    def on_grow(self, step: int) -> NDArray[np.float64]:
        """New arms have Q = 0."""
        return np.abs(self.memory["change"]) / self.temperature

    def values(self) -> NDArray[np.float64]:
        """(K,) Q, the smoothed change of success."""
        return self.memory["change"]
