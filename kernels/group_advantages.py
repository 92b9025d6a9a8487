"""Triton: group-relative advantages, dead groups and per-arm sums in one launch.

Axes: B rollouts, K arms (categories).

Each program takes BLOCK_I rollouts and compares their groups with those of all rollouts (with
consecutive groups: only those its groups reach), so groups need no sorting and no host knowledge
of their sizes. That is O(B^2) comparisons: 4 million for a batch of 2,048, less than a launch
costs. The program that arrives last sums |A| over the arms, in a fixed order, so that the same
input gives the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# With 4 warps ptxas spills 8 bytes around the float64 square root on sm_90.
BLOCKS = {"BLOCK_I": 32, "BLOCK_J": 32, "BLOCK_K": 16}
NUM_WARPS = 8


@triton.jit(do_not_specialize=["num_rollouts", "consecutive", "num_arms", "eps"])
def _group_advantages_kernel(
    rewards_ptr,
    groups_ptr,
    arms_ptr,
    advantages_ptr,
    dead_ptr,
    arm_sum_ptr,
    arm_count_ptr,
    arrived_ptr,
    num_rollouts,
    consecutive,
    num_arms,
    eps,
    CONSECUTIVE: tl.constexpr,
    SCALE_GROUP: tl.constexpr,
    SCALE_BATCH: tl.constexpr,
    LEAVE_ONE_OUT: tl.constexpr,
    UNBIASED: tl.constexpr,
    HAS_ARMS: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    first = tl.program_id(0) * BLOCK_I
    i = first + tl.arange(0, BLOCK_I)
    valid = i < num_rollouts
    r_i = tl.load(rewards_ptr + i, mask=valid, other=0.0).to(tl.float64)
    if CONSECUTIVE:
        g_i = i // consecutive
        begin = first // consecutive * consecutive
        last = tl.minimum(first + BLOCK_I, num_rollouts) - 1
        end = tl.minimum((last // consecutive + 1) * consecutive, num_rollouts)
    else:
        g_i = tl.load(groups_ptr + i, mask=valid, other=0)
        begin = 0
        end = num_rollouts

    if SCALE_BATCH:
        lanes = tl.zeros([BLOCK_J], tl.float64)
        for start in range(0, num_rollouts, BLOCK_J):
            j = start + tl.arange(0, BLOCK_J)
            lanes += tl.load(rewards_ptr + j, mask=j < num_rollouts, other=0.0).to(tl.float64)
        count = num_rollouts.to(tl.float64)
        batch_mean = tl.sum(lanes, 0) / count
        lanes = tl.zeros([BLOCK_J], tl.float64)
        for start in range(0, num_rollouts, BLOCK_J):
            j = start + tl.arange(0, BLOCK_J)
            r_j = tl.load(rewards_ptr + j, mask=j < num_rollouts, other=0.0).to(tl.float64)
            lanes += tl.where(j < num_rollouts, (r_j - batch_mean) * (r_j - batch_mean), 0.0)
        freedom = count - 1.0 if UNBIASED else count
        batch_factor = 1.0 / (tl.sqrt(tl.sum(lanes, 0) / tl.maximum(freedom, 1.0)) + eps)

    size = tl.zeros([BLOCK_I], tl.float64)
    total = tl.zeros([BLOCK_I], tl.float64)
    differs = tl.zeros([BLOCK_I], tl.float64)
    for start in range(begin, end, BLOCK_J):
        j = start + tl.arange(0, BLOCK_J)
        r_j = tl.load(rewards_ptr + j, mask=j < end, other=0.0).to(tl.float64)[None, :]
        if CONSECUTIVE:
            g_j = j // consecutive
        else:
            g_j = tl.load(groups_ptr + j, mask=j < end, other=0)
        same = (g_i[:, None] == g_j[None, :]) & (j < end)[None, :]
        size += tl.sum(tl.where(same, 1.0, 0.0).to(tl.float64), 1)
        total += tl.sum(tl.where(same, r_j, 0.0), 1)
        # NaN and inf differ from themselves here: they must show, not pass for a dead group.
        equal = (r_j - r_i[:, None]) == 0.0
        differs += tl.sum(tl.where(same & (equal == 0), 1.0, 0.0).to(tl.float64), 1)
    mean = total / tl.maximum(size, 1.0)
    centred = r_i - mean
    if LEAVE_ONE_OUT:
        centred = centred * size / tl.maximum(size - 1.0, 1.0)

    if SCALE_GROUP:
        squares = tl.zeros([BLOCK_I], tl.float64)
        for start in range(begin, end, BLOCK_J):
            j = start + tl.arange(0, BLOCK_J)
            r_j = tl.load(rewards_ptr + j, mask=j < end, other=0.0).to(tl.float64)[None, :]
            if CONSECUTIVE:
                g_j = j // consecutive
            else:
                g_j = tl.load(groups_ptr + j, mask=j < end, other=0)
            same = (g_i[:, None] == g_j[None, :]) & (j < end)[None, :]
            deviation = r_j - mean[:, None]
            squares += tl.sum(tl.where(same, deviation * deviation, 0.0), 1)
        freedom = size - 1.0 if UNBIASED else size
        centred = centred / (tl.sqrt(squares / tl.maximum(freedom, 1.0)) + eps)
    if SCALE_BATCH:
        centred = centred * batch_factor

    dead = differs == 0.0
    # Exactly 0 by definition, not by luck of rounding; with eps = 0 the formula has 0 / 0.
    advantages = tl.where(dead, 0.0, centred).to(tl.float32)
    tl.store(advantages_ptr + i, advantages, mask=valid)
    tl.store(dead_ptr + i, dead.to(tl.uint8), mask=valid)

    if HAS_ARMS:
        tl.debug_barrier()
        arrived = tl.atomic_add(arrived_ptr, 1, sem="acq_rel")
        if arrived == tl.num_programs(0) - 1:
            for first_arm in range(0, num_arms, BLOCK_K):
                k = first_arm + tl.arange(0, BLOCK_K)
                arm_sum = tl.zeros([BLOCK_K], tl.float64)
                arm_count = tl.zeros([BLOCK_K], tl.int64)
                for start in range(0, num_rollouts, BLOCK_J):
                    j = start + tl.arange(0, BLOCK_J)
                    arm = tl.load(arms_ptr + j, mask=j < num_rollouts, other=-1)
                    # .cg: other programs wrote these; a line left in this SM's L1 would be stale.
                    a_j = tl.load(
                        advantages_ptr + j, mask=j < num_rollouts, other=0.0, cache_modifier=".cg"
                    )
                    hit = k[:, None] == arm[None, :]
                    weight = tl.abs(a_j).to(tl.float64)[None, :]
                    arm_sum += tl.sum(tl.where(hit, weight, 0.0), 1)
                    arm_count += tl.sum(hit.to(tl.int64), 1)
                tl.store(arm_sum_ptr + k, arm_sum.to(tl.float32), mask=k < num_arms)
                tl.store(arm_count_ptr + k, arm_count, mask=k < num_arms)


def group_advantages(
    rewards: Tensor,
    group_ids: Tensor,
    consecutive: int | None,
    scale: str,
    leave_one_out: bool,
    unbiased: bool,
    eps: float,
    categories: Tensor | None,
    num_categories: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `advantages_operator.group_advantages` returns."""
    num_rollouts = rewards.numel()
    advantages = rewards.new_empty(num_rollouts, dtype=torch.float32)
    dead = rewards.new_empty(num_rollouts, dtype=torch.uint8)
    arm_sum = rewards.new_empty(num_categories, dtype=torch.float32)
    arm_count = rewards.new_empty(num_categories, dtype=torch.int64)
    if num_rollouts == 0:
        arm_sum.zero_()
        arm_count.zero_()
    else:
        # The only other launch, and only with arms.
        arrived = advantages if categories is None else rewards.new_zeros(1, dtype=torch.int32)
        _group_advantages_kernel[(triton.cdiv(num_rollouts, BLOCKS["BLOCK_I"]),)](
            rewards.contiguous(),
            group_ids.contiguous(),
            categories.contiguous() if categories is not None else arm_count,
            advantages,
            dead,
            arm_sum,
            arm_count,
            arrived,
            num_rollouts,
            consecutive or 1,
            num_categories,
            float(eps),
            CONSECUTIVE=consecutive is not None,
            SCALE_GROUP=scale == "group",
            SCALE_BATCH=scale == "batch",
            LEAVE_ONE_OUT=leave_one_out,
            UNBIASED=unbiased,
            HAS_ARMS=categories is not None,
            **BLOCKS,
            num_warps=NUM_WARPS,
        )
    return advantages, dead.view(torch.bool), arm_sum, arm_count
