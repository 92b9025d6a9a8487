"""Advantages from rewards: which baseline is subtracted, and what they are divided by.

M prompts, G completions each; rewards (M, G) are those of all processes.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from sec_grpo.ops import group_advantages

EPS = 1e-4  # added to a standard deviation, as in TRL

# Estimator -> the scale it is published with. Those with "group" may be asked for any.
DEFAULT_SCALES = {
    "grpo": "group",
    "dr_grpo": "none",
    "rloo": "none",
    "reinforce_pp": "batch",
    "reinforce_pp_baseline": "batch",
    "role": "none",
    "ppo": "batch",
}
GROUP_RELATIVE = ("grpo", "dr_grpo", "rloo", "reinforce_pp_baseline")
"""Those that compare a prompt's completions: equal rewards give advantage 0."""


class AdvantageEstimator:
    """Advantages of the completions of a generation batch.

    With r a reward, the baseline b and the divisor s of each estimator are:

    ========================= ============================ ==========================
    ``grpo``                  mean of the group            arXiv 2402.03300
    ``dr_grpo``               mean of the group            arXiv 2503.20783
    ``rloo``                  mean of the group's others   arXiv 2402.14740
    ``reinforce_pp``          mean of the batch            arXiv 2501.03262
    ``reinforce_pp_baseline`` mean of the group            arXiv 2501.03262, w/ baseline
    ``role``                  moving average of the role   arXiv 2506.24119 (SPIRAL)
    ========================= ============================ ==========================

    and A = (r - b) / (s + 1e-4) where `scale` is ``group`` (s: the standard deviation of the
    group's rewards) or ``batch`` (that of the batch's rewards; of r - b for reinforce_pp_baseline
    and role), or A = r - b where it is ``none``. Standard deviations are over n - 1.

    The baseline of a role is updated after its rewards have been compared with it, completion after
    completion in the order of the batch, b <- decay b + (1 - decay) r, from 0.

    Departures: 1. a group whose rewards are all equal gets exactly 0 where the baseline is the
    group's; 2. REINFORCE++ takes the statistics over tokens, here they are over completions; 3.
    SPIRAL updates a role's baseline first, which is the same but for a factor of decay.

    Args:
        name: as above; ``ppo`` has its advantages from values (`sec_grpo.trainer.critic`).
        scale: group, batch or none.
        decay: of a role's baseline.
        normalize_then_sum: GDPO (arXiv 2601.05242): every reward function's own rewards are
            normalised in their group before they are weighted and added, and the sums over the
            batch. `scale` is then not used.
        reward_weights: of the functions, for normalize_then_sum.
    """

    def __init__(
        self,
        name: str,
        scale: str,
        *,
        decay: float = 0.95,
        normalize_then_sum: bool = False,
        reward_weights: Sequence[float] = (),
    ) -> None:
        self.name = name
        self.scale = scale
        self._decay = decay
        self._normalize_then_sum = normalize_then_sum
        self._weights = torch.tensor(list(reward_weights), dtype=torch.float64)
        self._baselines: dict[Hashable, float] = {}

    def __call__(self, rewards: Tensor, each: Any = None, roles: Sequence[Hashable] = ()) -> Tensor:
        """Advantages (M, G) float32.

        Args:
            rewards: (M, G).
            each: (M, G, F) rewards by function, NaN where one does not apply; for
                normalize_then_sum.
            roles: M roles, for the estimator of that name.
        """
        r = rewards.double()
        if self._normalize_then_sum:
            advantages = self._normalized_sums(torch.as_tensor(each, dtype=torch.float64))
        elif self.name in ("grpo", "dr_grpo", "rloo"):
            out = group_advantages(rewards, scale=self.scale, leave_one_out=self.name == "rloo")  # type: ignore[arg-type]
            return out.advantages.reshape(rewards.shape)
        elif self.name == "reinforce_pp":
            advantages = self._scaled(r - r.mean())
        elif self.name == "reinforce_pp_baseline":
            advantages = self._scaled(r - r.mean(dim=1, keepdim=True))
        else:
            baselines = [self._baselines.get(role, 0.0) for role in roles]
            advantages = self._scaled(r - torch.tensor(baselines, dtype=torch.float64)[:, None])
        if self._normalize_then_sum or self.name in GROUP_RELATIVE:
            # Exactly 0 by definition, not by luck of rounding.
            dead = _no_function_differs(each) if self._normalize_then_sum else is_dead(rewards)
            advantages = advantages.masked_fill(dead[:, None], 0.0)
        return advantages.float()

    def update(self, rewards: Tensor, roles: Sequence[Hashable]) -> None:
        """Move the baselines of roles (M) towards their rewards (M, G)."""
        if self.name != "role":
            return
        for role, group in zip(roles, rewards.tolist(), strict=True):
            for reward in group:
                before = self._baselines.get(role, 0.0)
                self._baselines[role] = self._decay * before + (1 - self._decay) * reward

    def state_dict(self) -> dict[str, Any]:
        """The baselines, as plain containers."""
        return {"baselines": list(self._baselines.items())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._baselines = dict(state["baselines"])

    def _scaled(self, centred: Tensor) -> Tensor:
        return centred / (_std(centred) + EPS) if self.scale == "batch" else centred

    def _normalized_sums(self, each: Tensor) -> Tensor:
        applies = ~each.isnan()
        count = applies.sum(dim=1, keepdim=True)
        known = each.nan_to_num()
        mean = known.sum(dim=1, keepdim=True) / count.clamp(min=1)
        squares = ((known - mean) ** 2 * applies).sum(dim=1, keepdim=True)
        std = (squares / (count - 1).clamp(min=1)).sqrt()
        normalized = torch.where(applies, (known - mean) / (std + EPS), 0.0)
        total = (normalized * self._weights).sum(dim=-1)
        return (total - total.mean()) / (_std(total) + EPS)


def is_dead(rewards: Tensor) -> Tensor:
    """(M,) bool: whether the group's rewards (M, G) are all equal."""
    return rewards.amax(dim=1) == rewards.amin(dim=1)


def _no_function_differs(each: Any) -> Tensor:
    """(M,) bool: whether the group's rewards (M, G, F) are equal function by function."""
    values = torch.as_tensor(each, dtype=torch.float64)
    missing = values.isnan()
    highest = values.masked_fill(missing, -math.inf).amax(dim=1)
    lowest = values.masked_fill(missing, math.inf).amin(dim=1)
    return (highest <= lowest).all(dim=-1)


def _std(values: Tensor) -> Tensor:
    return values.std() if values.numel() > 1 else values.new_zeros(())


def largest_mean_abs_advantage(name: str, scale: str, num_generations: int) -> float:
    """The largest mean |A| that a group of 0/1 rewards can have.

    For ``batch`` it is taken that half of the batch's rewards are 1. Of ppo, whose values learn to
    predict the reward, it is that of perfect values at a success rate of one half.
    """
    if name in ("reinforce_pp", "role", "ppo"):
        # Baseline 1/2: |A| = 1/2 for every completion, before it is divided.
        largest = 0.5
    else:
        groups = torch.tril(torch.ones(num_generations, num_generations))  # 1 to G successes
        centred = group_advantages(groups, scale="none", leave_one_out=name == "rloo").advantages
        deviation = centred.reshape(groups.shape).abs().mean(dim=1)
        if scale == "group":
            deviation = deviation / (groups.std(dim=1) + EPS)
        largest = float(deviation.max())
    return largest / (0.5 + EPS) if scale == "batch" else largest


def temperature_advice(
    temperature: float, name: str, scale: str, num_generations: int
) -> str | None:
    """What to say of a softmax temperature over |A| when |A| is not GRPO's, or None."""
    grpo = largest_mean_abs_advantage("grpo", "group", max(num_generations, 2))
    largest = largest_mean_abs_advantage(name, scale, num_generations)
    if math.isclose(largest, grpo, rel_tol=0.15):
        return None
    return (
        f"with advantage_estimator={name!r} and scale_rewards={scale!r} the mean |A| of a category "
        f"is at most {largest:.3f}, where GRPO's is {grpo:.3f}: temperature="
        f"{temperature * largest / grpo:.3g} makes the curriculum as sharp as "
        f"temperature={temperature:g} does there"
    )
