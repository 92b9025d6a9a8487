"""An upper confidence bound on the mean |A|."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sec_grpo.curriculum._labels import Label
from sec_grpo.curriculum._parameters import count_parameter
from sec_grpo.curriculum.allocators import temperature_parameter, ucb_bonus
from sec_grpo.curriculum.signals import abs_advantage
from sec_grpo.curriculum.strategy import Feedback, Strategy
from sec_grpo.curriculum.windows import MeanWindows


@dataclass(frozen=True)
class DUMP(Strategy):
    """Distribution-level curriculum with UCB, arXiv 2504.09710.

    score(c) = L(c) + sqrt(2 ln(N + 1) / (n(c) + 1)), L(c) the mean |A| over the rollouts of the
    arm's last `window` prompts (0 before the first), n(c) the prompts of the arm seen so far and
    N = sum_c n(c); p(c) = softmax(score / temperature).

    Departure: 1. n and N count prompts, as the window does, not rollouts.

    Args:
        window: prompts remembered of each arm, at least 1; the paper's 300. Four bytes each, in as
            many places for each arm seen as the arm seen most often needs.
        temperature: of the softmax, above 0; the paper's 0.1.

    Raises TypeError or ValueError, naming the parameter, for anything else.
    """

    window: int = 300
    temperature: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", count_parameter("window", self.window))
        object.__setattr__(self, "temperature", temperature_parameter(self.temperature))

    def on_bind(self, arms: tuple[Label, ...], sizes: NDArray[np.int64]) -> None:
        """Nothing seen of any arm."""
        MeanWindows(self.memory, len(arms), self.window)

    def observe(self, feedback: Feedback) -> NDArray[np.float64]:
        """Remember the batch's prompts, the oldest of an arm making room."""
        self._windows().add(feedback.arm_indices(), abs_advantage(feedback, 0.0))
        return self.values() / self.temperature

    def on_grow(self, step: int) -> NDArray[np.float64]:
        """Weigh the new arms too."""
        return self.values() / self.temperature

    def values(self) -> NDArray[np.float64]:
        """(K,) score: mean |A| of the window and the bonus."""
        windows = self._windows()
        return windows.mean + ucb_bonus(windows.seen)

    def _windows(self) -> MeanWindows:
        return MeanWindows(self.memory, len(self.sizes), self.window)
