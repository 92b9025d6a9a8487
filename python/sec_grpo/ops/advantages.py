"""Group-relative advantages.

Axes: B rollouts, P prompts, G group (rollouts of one prompt), K arms (categories).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sec_grpo.kernels import advantages_operator, reference
from sec_grpo.ops import _checks


class GroupAdvantages(NamedTuple):
    """What `group_advantages` returns, on the device of the rewards."""

    advantages: Tensor
    """(B,) float32."""
    dead: Tensor
    """(B,) bool: every reward of the rollout's group is equal, so its advantage is 0."""
    abs_advantage_sum: Tensor | None
    """(K,) float32, sum of |A| over the rollouts of each category."""
    counts: Tensor | None
    """(K,) int64, rollouts of each category."""


def _group_ids(rewards: Tensor, group_ids: Tensor | None, num_generations: int | None) -> Tensor:
    """(B,) int64 group of each rollout."""
    if rewards.dim() not in (1, 2):
        raise ValueError(f"rewards must have shape (B,) or (P, G), got {tuple(rewards.shape)}")
    if group_ids is not None:
        if num_generations is not None or rewards.dim() == 2:
            raise ValueError(
                "group_ids goes with rewards (B,) and without num_generations, got rewards of "
                f"shape {tuple(rewards.shape)} and num_generations={num_generations}"
            )
        _checks.check_dtype("group_ids", group_ids, _checks.INTEGER_DTYPES)
        _checks.check_shape("group_ids", group_ids, tuple(rewards.shape), "like rewards")
        _checks.check_device("group_ids", group_ids, rewards.device, "rewards")
        return group_ids.long()
    size = _consecutive_size(rewards, num_generations)
    return torch.arange(rewards.numel(), device=rewards.device) // size


def _consecutive_size(rewards: Tensor, num_generations: int | None) -> int:
    if rewards.dim() == 2:
        size = rewards.shape[1]
        if num_generations not in (None, size):
            raise ValueError(
                f"num_generations must be G = {size} of rewards (P, G), got {num_generations}"
            )
        return max(size, 1)
    if num_generations is None:
        raise ValueError(
            "rewards (B,) needs its groups: pass num_generations, group_ids, or rewards (P, G)"
        )
    if not isinstance(num_generations, int) or num_generations < 1:
        raise ValueError(f"num_generations must be an integer above 0, got {num_generations!r}")
    if rewards.numel() % num_generations != 0:
        raise ValueError(
            f"rewards (B,) must hold whole groups of num_generations={num_generations}, got "
            f"B = {rewards.numel()}; pass group_ids for groups of unequal size"
        )
    return num_generations


def _check_categories(
    categories: Tensor | None, num_categories: int | None, rewards: Tensor
) -> Tensor | None:
    if (categories is None) != (num_categories is None):
        raise ValueError(
            "categories and num_categories come together, got "
            f"categories={'a tensor' if categories is not None else None} and "
            f"num_categories={num_categories}"
        )
    if categories is None or num_categories is None:
        return None
    if not isinstance(num_categories, int) or num_categories < 1:
        raise ValueError(f"num_categories must be an integer above 0, got {num_categories!r}")
    _checks.check_dtype("categories", categories, _checks.INTEGER_DTYPES)
    if categories.numel() != rewards.numel():
        raise ValueError(
            f"categories must give one arm for each of the {rewards.numel()} rollouts, got shape "
            f"{tuple(categories.shape)}"
        )
    _checks.check_device("categories", categories, rewards.device, "rewards")
    if _checks.on_cpu(categories) and categories.numel() > 0:
        low, high = int(categories.min()), int(categories.max())
        if low < 0 or high >= num_categories:
            raise ValueError(
                f"categories must be in [0, {num_categories}), got values in [{low}, {high}]"
            )
    return categories.reshape(-1).long()


@torch.no_grad()
def group_advantages(
    rewards: Tensor,
    group_ids: Tensor | None = None,
    *,
    num_generations: int | None = None,
    scale: Literal["group", "batch", "none"] = "group",
    leave_one_out: bool = False,
    unbiased: bool = True,
    eps: float = 1e-4,
    categories: Tensor | None = None,
    num_categories: int | None = None,
    backend: Literal["auto", "triton", "torch"] = "auto",
) -> GroupAdvantages:
    """Advantage of each rollout against the other rollouts of its prompt.

    ``A_i = (r_i - baseline) / (std + eps)`` with the baseline, over the group of i:

    - GRPO (arXiv 2402.03300): the mean; ``scale="group"`` divides by the group's std, the unbiased
      one by default, as in TRL (``unbiased=False``: the population's).
    - Dr. GRPO (arXiv 2503.20783): the mean, ``scale="none"`` (no division, no eps).
    - RLOO (arXiv 2402.14740): ``leave_one_out=True, scale="none"``, the mean of the others.
    - ``scale="batch"`` divides by the std of all B rewards (REINFORCE++, arXiv 2501.03262).

    Departures: (1) a group whose rewards are all equal is dead and gets exactly 0, not the rounding
    residue of ``r - mean``, whatever the scale. A group of one rollout is dead too.

    Args:
        rewards: (B,), or (P, G) with a row for each prompt. Any real dtype; rounded to float32.
        group_ids: (B,) int32 or int64, any values in any order; equal values form a group.
        num_generations: G, for rewards (B,) whose groups are consecutive.
        scale, leave_one_out, unbiased, eps: as above; eps in units of reward.
        categories: (B,) int32 or int64 arm of each rollout (or rewards' shape), in [0, K). On a
            GPU, ids outside are not counted.
        num_categories: K.
        backend: "triton" (one launch, no host synchronisation), "torch", or "auto": triton on a
            GPU. The torch backend synchronises if run on a GPU. The same call twice gives the
            same bits on the CPU and with triton.

    Returns:
        GroupAdvantages(advantages, dead, abs_advantage_sum, counts); rewards (P, G) are flattened
        row by row.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or range, naming the argument. Rewards
            that are NaN or infinite raise on the CPU; on a GPU, where looking would synchronise,
            they make their group's (``scale="batch"``: every live) advantage NaN.
    """
    _checks.check_tensor("rewards", rewards)
    if rewards.dtype.is_complex:
        raise TypeError(f"rewards must be real, got {rewards.dtype}")
    ids = _group_ids(rewards, group_ids, num_generations)
    _checks.check_choice("scale", scale, reference.SCALES)
    _checks.check_number("eps", eps, 0)
    arms = _check_categories(categories, num_categories, rewards)
    flat = rewards.reshape(-1).float()
    if _checks.on_cpu(flat) and not bool(torch.isfinite(flat).all()):
        bad = int((~torch.isfinite(flat)).nonzero()[0, 0])
        raise ValueError(f"rewards must be finite, got {flat[bad].item()} at position {bad}")

    advantages, dead, total, counts = advantages_operator.group_advantages(
        flat,
        ids,
        consecutive=None if group_ids is not None else _consecutive_size(rewards, num_generations),
        scale=scale,
        leave_one_out=leave_one_out,
        unbiased=unbiased,
        eps=float(eps),
        categories=arms,
        num_categories=num_categories or 0,
        backend=_checks.resolve_backend(backend, flat),
    )
    if arms is None:
        return GroupAdvantages(advantages, dead, None, None)
    return GroupAdvantages(advantages, dead, total, counts)
