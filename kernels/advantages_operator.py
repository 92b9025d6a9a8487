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
def group_advantages(
    rewards: Tensor, group_ids: Tensor, consecutive: int | None, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Advantages (B,), dead (B,), and sum of |A| and counts (K,), of float32 `rewards` (B,).

    Without categories the last two are empty. `consecutive` is G where group_ids is
    arange(B) // G, else None.
    """
    *options, backend = arguments
    if backend == "torch":
        return reference.group_advantages(rewards, group_ids, *options)
    from sec_grpo.kernels import group_advantages as triton_kernel

    return triton_kernel.group_advantages(rewards, group_ids, consecutive, *options)


@group_advantages.register_fake
def _(rewards: Tensor, _ids: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    num_rollouts, num_categories = rewards.numel(), arguments[-2]
    return (
        rewards.new_empty(num_rollouts, dtype=torch.float32),
        rewards.new_empty(num_rollouts, dtype=torch.bool),
        rewards.new_empty(num_categories, dtype=torch.float32),
        rewards.new_empty(num_categories, dtype=torch.int64),
    )
