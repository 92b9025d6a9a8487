"""An upper confidence bound on the mean |A|."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sec_grpo.curriculum._parameters import count_parameter, real_parameter
from sec_grpo.curriculum.strategy import Feedback, Strategy


@dataclass(frozen=True)
class DUMP(Strategy):
    """Distribution-level curriculum with UCB, arXiv 2504.09710.

    score(c) = L(c) + sqrt(2 ln(N + 1) / (n(c) + 1)), L(c) the mean |A| over the rollouts of the
    arm's last `window` prompts (0 before the first), n(c) the prompts of the arm seen so far and
    N = sum_c n(c); p(c) = softmax(score / temperature).

    Departure: 1. n and N count prompts, as the window does, not rollouts.

    Memory and time are K x window: made for up to thousands of arms.

    Args:
        window: prompts remembered of each arm, at least 1; the paper's 300.
        temperature: of the softmax, above 0; the paper's 0.1.

    Raises TypeError or ValueError, naming the parameter, for anything else.
    """

    window: int = 300
    temperature: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", count_parameter("window", self.window))
        must = "a finite number above 0"
        temperature = real_parameter("temperature", self.temperature, must)
        if temperature <= 0:
            raise ValueError(f"temperature must be {must}, got {temperature!r}")
        object.__setattr__(self, "temperature", temperature)

    def on_bind(self, arms: tuple[object, ...], sizes: NDArray[np.int64]) -> None:
        """Nothing seen of any arm."""
        self.memory["recent"] = np.zeros((len(arms), self.window))
        self.memory["seen"] = np.zeros(len(arms), dtype=np.int64)

    def observe(self, feedback: Feedback) -> NDArray[np.float64]:
        """Remember the batch's prompts, the oldest of an arm making room."""
        if feedback.advantages is None:
            raise ValueError("DUMP learns from advantages: pass them to observe")
        codes = feedback.arm_indices()
        signal = np.abs(feedback.advantages).mean(axis=1, dtype=np.float64)
        recent, seen = self.memory["recent"], self.memory["seen"]
        for arm in feedback.arms:
            values = signal[codes == arm]
            slots = (seen[arm] + np.arange(len(values))) % self.window
            recent[arm, slots[-self.window :]] = values[-self.window :]
            seen[arm] += len(values)
        return self.values() / self.temperature

    def values(self) -> NDArray[np.float64]:
        """(K,) score: mean |A| of the window and the bonus."""
        recent, seen = self.memory["recent"], self.memory["seen"]
        mean = recent.sum(axis=1) / np.clip(seen, 1, self.window)
        return mean + np.sqrt(2.0 * np.log(seen.sum() + 1.0) / (seen + 1.0))
