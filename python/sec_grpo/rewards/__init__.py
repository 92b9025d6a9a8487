"""Rewards beside those of a single task: weighted sums, reward models, and both by name.

Everything here is a reward function in TRL's signature. `reward_from` makes one from what a command
line or a YAML file can say.
"""

from __future__ import annotations

from sec_grpo.rewards.model import RewardModel
from sec_grpo.rewards.specification import reward_from, rewards_for
from sec_grpo.rewards.weighted import WeightedReward

__all__ = ["RewardModel", "WeightedReward", "reward_from", "rewards_for"]
