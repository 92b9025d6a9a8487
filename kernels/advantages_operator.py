"""Group-relative advantages as a custom operator, for both backends.

Axes: B rollouts, K arms (categories).

Opaque to torch.compile, which has no static shape for groups of any ids, and whose generated code
for sums over groups is wrong in some versions (torch 2.8: variances of 0). Without gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from sec_grpo.kernels import reference


@custom_op(
    "sec_grpo::group_advantages",
    mutates_args=(),
    schema="(Tensor rewards, Tensor group_ids, SymInt? consecutive, str scale, bool leave_one_out, "
    "bool unbiased, float eps, Tensor? categories, SymInt num_categories, str backend) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)
def _group_advantages(
    rewards: Tensor,
    group_ids: Tensor,
    consecutive: int | None,
    scale: str,
    leave_one_out: bool,
    unbiased: bool,
    eps: float,
    categories: Tensor | None,
    num_categories: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    arguments: dict[str, Any] = {
        "scale": scale,
        "leave_one_out": leave_one_out,
        "unbiased": unbiased,
        "eps": eps,
        "categories": categories,
        "num_categories": num_categories,
    }
    if backend == "torch":
        found = reference.group_advantages(rewards, group_ids, **arguments)
    else:
        from sec_grpo.kernels import group_advantages as triton_kernel

        found = triton_kernel.group_advantages(
            rewards, group_ids, consecutive=consecutive, **arguments
        )
    advantages, dead, arm_sum, arm_count = found
    if arm_sum is None or arm_count is None:
        arm_sum, arm_count = rewards.new_empty(0), rewards.new_empty(0, dtype=torch.int64)
    return advantages, dead, arm_sum, arm_count


@_group_advantages.register_fake
def _(rewards: Tensor, _ids: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    num_rollouts, num_categories = rewards.numel(), arguments[-2]
    return (
        rewards.new_empty(num_rollouts, dtype=torch.float32),
        rewards.new_empty(num_rollouts, dtype=torch.bool),
        rewards.new_empty(num_categories, dtype=torch.float32),
        rewards.new_empty(num_categories, dtype=torch.int64),
    )


def group_advantages(
    rewards: Tensor,
    group_ids: Tensor,
    *,
    consecutive: int | None,
    scale: str,
    leave_one_out: bool,
    unbiased: bool,
    eps: float,
    categories: Tensor | None,
    num_categories: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Advantages (B,), dead (B,), and sum of |A| and counts (K,), of float32 `rewards` (B,).

    `consecutive` is G where group_ids is arange(B) // G, else None.
    """
    advantages, dead, arm_sum, arm_count = _group_advantages(
        rewards,
        group_ids,
        consecutive,
        scale,
        leave_one_out,
        unbiased,
        float(eps),
        categories,
        num_categories,
        backend,
    )
    return advantages, dead, *((None, None) if categories is None else (arm_sum, arm_count))
