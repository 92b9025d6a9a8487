"""What a batch says of each prompt's group: the first part of a composed strategy.

B prompts a batch, G rollouts a prompt, K arms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sec_grpo.curriculum.strategy import Feedback

Values = NDArray[np.float64]


def advantages_of(feedback: Feedback, who: str) -> NDArray[Any]:
    """(B, G) advantages; ValueError without them."""
    if feedback.advantages is None:
        raise ValueError(
            f"{who} learns from |A|: give observe(..., advantages=...) of shape (B, G), got none"
        )
    return feedback.advantages


def rewards_of(feedback: Feedback, who: str) -> NDArray[Any]:
    """(B, G) rewards; ValueError without them."""
    if feedback.rewards is None:
        raise ValueError(
            f"{who} learns from rewards: give observe(..., rewards=...) of shape (B, G), got none"
        )
    return feedback.rewards


def abs_advantage(feedback: Feedback, threshold: float) -> Values:
    """Mean |A| of the group, A as the trainer normalised it."""
    advantages = advantages_of(feedback, "signal abs_advantage")
    return np.abs(advantages).mean(axis=1, dtype=np.float64)


def abs_deviation(feedback: Feedback, threshold: float) -> Values:
    """Mean |r - mean r| of the group: |A| without the standard deviation, so with a scale."""
    rewards = rewards_of(feedback, "signal abs_deviation").astype(np.float64)
    return np.abs(rewards - rewards.mean(axis=1, keepdims=True)).mean(axis=1)


def success(feedback: Feedback, threshold: float) -> Values:
    """Share of the group's rollouts with reward >= threshold."""
    rewards = rewards_of(feedback, "signal success")
    return (rewards >= threshold).mean(axis=1, dtype=np.float64)


def regret(feedback: Feedback, threshold: float) -> Values:
    """Best reward of the group less its mean: what is known to be reachable and is not reached.

    The maximum over rollouts stands for the best return, as in the regret estimates of PAIRED
    (arXiv 2012.02096) and PLR (arXiv 2010.03934).
    """
    rewards = rewards_of(feedback, "signal regret").astype(np.float64)
    return rewards.max(axis=1) - rewards.mean(axis=1)


@dataclass(frozen=True)
class Signal:
    """A measurement of each group, and the score of its estimate.

    Attributes:
        measure: (feedback, success threshold) -> (B,) values.
        score: estimates (K,) -> scores (K,), large for arms that teach much.
        relative: measure the change since the arm's last batch instead of the value.
        prior: the estimate of an arm that was never drawn.
    """

    measure: Callable[[Feedback, float], Values]
    score: Callable[[Values], Values] = lambda estimates: estimates
    relative: bool = False
    prior: float = 0.0


SIGNALS = {
    "abs_advantage": Signal(abs_advantage),
    "abs_deviation": Signal(abs_deviation),
    # An unseen arm at 1/2, where p (1 - p) is largest, is tried.
    "success_variance": Signal(success, lambda s: s * (1.0 - s), prior=0.5),
    "learning_progress": Signal(success, np.abs, relative=True),
    "regret": Signal(regret),
}
