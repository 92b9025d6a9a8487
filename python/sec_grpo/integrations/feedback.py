"""What a curriculum learns from: the rollouts of a batch, in groups of one prompt.

R rollouts in any order, P groups, G rollouts of the largest group, T tokens.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


def rollout_advantages(advantages: Any, response_mask: Any) -> NDArray[np.float64]:
    """(R,) mean over the response tokens of advantages (R, T), 0 without any.

    Under GRPO all tokens of a rollout have one advantage, which this is.
    """
    mask = response_mask.double()
    total = (advantages.double() * mask).sum(-1) / mask.sum(-1).clamp(min=1)
    return np.asarray(total.cpu().numpy())


class Feedback(NamedTuple):
    """The groups of a batch, as `Curriculum.observe` takes them."""

    keys: list[Any]
    """(P,) in the order in which they first come"""
    advantages: NDArray[np.float64]
    """(P, G)"""
    rewards: NDArray[np.float64]
    """(P, G)"""


def group_feedback(
    keys: Sequence[Hashable], advantages: NDArray[np.float64], rewards: NDArray[np.float64]
) -> Feedback:
    """The groups of R rollouts with these keys, advantages and rewards.

    A group that lost rollouts, because they failed, is filled up to G with its mean absolute
    advantage and its mean reward, which leaves both means as they are.
    """
    members: dict[Hashable, list[int]] = {}
    for place, key in enumerate(keys):
        members.setdefault(key, []).append(place)
    size = max(map(len, members.values()))
    filled_advantages = np.empty((len(members), size))
    filled_rewards = np.empty((len(members), size))
    for row, places in enumerate(members.values()):
        filled_advantages[row] = np.abs(advantages[places]).mean()
        filled_rewards[row] = rewards[places].mean()
        filled_advantages[row, : len(places)] = advantages[places]
        filled_rewards[row, : len(places)] = rewards[places]
    return Feedback(list(members), filled_advantages, filled_rewards)
