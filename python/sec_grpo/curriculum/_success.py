"""What the strategies on moving averages of success share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sec_grpo.curriculum._parameters import real_parameter
from sec_grpo.curriculum.signals import success
from sec_grpo.curriculum.strategy import Feedback, Strategy


def success_rates(feedback: Feedback, threshold: float) -> NDArray[np.float64]:
    """(D,) float64 share of the rollouts of each of `feedback.arms` with reward >= threshold.

    Raises ValueError without rewards.
    """
    successes = success(feedback, threshold)
    codes = feedback.arm_indices()
    size = int(codes.max()) + 1
    sums = np.bincount(codes, weights=successes, minlength=size)
    return sums[feedback.arms] / np.bincount(codes, minlength=size)[feedback.arms]


@dataclass(frozen=True)
class SuccessStrategy(Strategy):
    """Base of the strategies on moving averages of success.

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
