"""What the groups since the last log say of their arms and of the batch.

M groups, G completions each, K arms.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

EPS = 1e-4  # beside the standard deviation, as in the advantage
OUTCOMES = ("all_fail", "format_only", "mixed", "all_pass")


def group_outcomes(rewards: NDArray[np.floating], success_threshold: float) -> NDArray[np.int64]:
    """(M,) the position in OUTCOMES of each group.

    all_fail: equal rewards, none a success. format_only: no success, yet the rewards differ, so
    that the group teaches what earns part of the reward and not what earns it whole. mixed: some
    succeed. all_pass: all do.

    Args:
        rewards: (M, G).
        success_threshold: a completion succeeds when its reward is at least this.
    """
    successes = (rewards >= success_threshold).sum(axis=1)
    equal = rewards.max(axis=1) == rewards.min(axis=1)
    outcome = np.where(successes > 0, 2, np.where(equal, 0, 1))
    return np.where(successes == rewards.shape[1], 3, outcome)


class GroupStatistics:
    """Counts and means by arm, added up until they are fetched."""

    def __init__(self, success_threshold: float) -> None:
        self._threshold = success_threshold
        self.clear()

    def clear(self) -> None:
        """Forget what was not fetched."""
        self._arms: list[NDArray[np.int64]] = []
        self._rewards: list[NDArray[np.float64]] = []

    def add(self, arm_indices: NDArray[np.int64], rewards: NDArray[np.floating]) -> None:
        """Take in groups: their arms (M,) and rewards (M, G)."""
        self._arms.append(arm_indices)
        self._rewards.append(rewards.astype(np.float64))

    def pop(self, num_arms: int) -> tuple[dict[str, NDArray[Any]], dict[str, float]]:
        """What was added since the last call.

        Returns:
            columns (K,), NaN for an arm without groups: rollouts; successes, rollouts of
            a reward of at least the threshold; abs_advantage_with_std, mean of |r - mean| / (std +
            1e-4) in the group, and abs_advantage_without_std, of |r - mean|. And the share of the
            groups of each outcome, as `groups/all_fail` and so on. Both empty without groups.
        """
        if not self._arms:
            return {}, {}
        arms, rewards = np.concatenate(self._arms), np.concatenate(self._rewards)
        self.clear()
        size = rewards.shape[1]
        groups = np.bincount(arms, minlength=num_arms)
        deviation = np.abs(rewards - rewards.mean(axis=1, keepdims=True)).mean(axis=1)
        std = rewards.std(axis=1, ddof=1) if size > 1 else np.zeros(len(rewards))
        successes = (rewards >= self._threshold).sum(axis=1)

        def total(values: NDArray[Any]) -> NDArray[Any]:
            return np.bincount(arms, weights=values, minlength=num_arms)

        seen = np.maximum(groups, 1)
        columns = {
            "rollouts": groups * size,
            "successes": total(successes),
            "abs_advantage_with_std": total(deviation / (std + EPS)) / seen,
            "abs_advantage_without_std": total(deviation) / seen,
        }
        outcomes = group_outcomes(rewards, self._threshold)
        shares = np.bincount(outcomes, minlength=len(OUTCOMES)) / len(outcomes)
        return (
            {name: np.where(groups > 0, values, np.nan) for name, values in columns.items()},
            {f"groups/{name}": float(s) for name, s in zip(OUTCOMES, shares, strict=True)},
        )
