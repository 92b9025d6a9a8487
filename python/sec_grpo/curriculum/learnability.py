"""Success rates: their variance, and their change."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sec_grpo.curriculum._parameters import real_parameter
from sec_grpo.curriculum.strategy import Feedback, Strategy


def success_rates(feedback: Feedback, threshold: float) -> NDArray[np.float64]:
    """(D,) float64 share of the rollouts of each of `feedback.arms` with reward >= threshold.

    Raises ValueError without rewards.
    """
    if feedback.rewards is None:
        raise ValueError("this strategy learns from success: pass rewards to observe")
    # The first occurrence of each arm orders feedback.arms; counts follow that order.
    codes = feedback.arm_indices()
    successes = (np.asarray(feedback.rewards) >= threshold).mean(axis=1)
    size = int(codes.max()) + 1
    sums = np.bincount(codes, weights=successes, minlength=size)
    return sums[feedback.arms] / np.bincount(codes, minlength=size)[feedback.arms]


@dataclass(frozen=True)
class _SuccessStrategy(Strategy):
    """What strategies on moving averages of success share.

    Args:
        alpha: share of the newest batch in the moving average, in (0, 1].
        temperature: of the softmax, above 0.
        success_threshold: a rollout is a success when its reward is at least this.

    Raises TypeError or ValueError, naming the parameter, for anything else.
    """

    alpha: float = 0.5
    temperature: float = 0.05
    success_threshold: float = 0.5

    def __post_init__(self) -> None:
        for name, must in (
            ("alpha", "a number in (0, 1]"),
            ("temperature", "a finite number above 0"),
            ("success_threshold", "a finite number"),
        ):
            value = real_parameter(name, getattr(self, name), must)
            above = name != "success_threshold" and value <= 0
            if above or (name == "alpha" and value > 1):
                raise ValueError(f"{name} must be {must}, got {value!r}")
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class Learnability(_SuccessStrategy):
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


@dataclass(frozen=True)
class TSCL(_SuccessStrategy):
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
