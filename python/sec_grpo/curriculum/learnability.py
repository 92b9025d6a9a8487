"""The variance of success."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sec_grpo.curriculum._success import SuccessStrategy, success_rates
from sec_grpo.curriculum.strategy import Feedback


@dataclass(frozen=True)
class Learnability(SuccessStrategy):
    """The variance of success: ProCuRL (arXiv 2304.12877), LILO (arXiv 2502.12272).

    s(c) <- alpha success(c) + (1 - alpha) s(c), from s = 1/2; p(c) = softmax(s (1 - s) / tau).
    Prompts solved half the time teach most; arms not drawn keep s.

    Departures: 1. both papers score single prompts, here the arm is scored; 2. LILO takes the
    prompts of highest score, here it is a softmax; 3. unseen arms start at the highest score, so
    that each is tried.
    """

    def on_bind(self, arms: tuple[object, ...], sizes: NDArray[np.int64]) -> None:
        """s = 1/2 for every arm."""
        self.memory["success"] = np.full(len(arms), 0.5)

    def observe(self, feedback: Feedback) -> NDArray[np.float64]:
        """Update s of the arms in the batch."""
        rates = success_rates(feedback, self.success_threshold)
        success = self.memory["success"].copy()
        success[feedback.arms] += self.alpha * (rates - success[feedback.arms])
        self.memory["success"] = success
        return self.values() / self.temperature

    def on_grow(self, step: int) -> NDArray[np.float64]:
        """New arms have s = 1/2."""
        return self.values() / self.temperature

    def values(self) -> NDArray[np.float64]:
        """(K,) s (1 - s), at most 1/4."""
        success = self.memory["success"]
        return success * (1.0 - success)
