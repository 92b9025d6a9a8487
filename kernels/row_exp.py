"""Triton: exponentials, row statistics and gradients of logits that lie in memory.

Axes: C rows of a chunk, V vocabulary, K blocks of the vocabulary (BLOCK columns each).

Instead of the row maximum, which would take a pass of its own, exponentials are anchored at the
target's logit: e_v = exp(z_v - a) with a = z_target, so log p(target) = -log(1 + sum of the others)
with all the digits of a float32 also where p is nearly 1. A block whose largest logit is more than
LIMIT above that takes its own maximum as the anchor; rows with several anchors are brought to
the largest one when all blocks are known. The target itself never enters the sums.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 1024
# One warp: sums over a block are in its registers, without shared memory and barriers, which with
# four warps are half of the kernel's instructions.
NUM_WARPS = 1
TARGET_WARPS = 4
COMBINE_WARPS = 4
FINISH_WARPS = 4
# Blocks' statistics that one program of the combining kernel holds.
COMBINED_BLOCKS = 1024
# How far a logit may lie above the anchor: the sums stay far inside the range of the type that the
# exponentials are kept in, and their reciprocals, times a gradient, above its smallest number.
LIMITS = {torch.float32: 20.0, torch.bfloat16: 20.0, torch.float16: 4.0}
# Where no exponentials are kept, every block has its maximum as its anchor, which is more exact.
STATISTICS_LIMIT = 0.0


# A logit that counts for nothing beside any other.
_NOTHING = tl.constexpr(-1e30)


@triton.jit
def _transform(
    raw, bias, logit_scale, softcap, inv_temperature, HAS_BIAS: tl.constexpr, CAP: tl.constexpr
):
    """z of raw products, and d(capped)/d(uncapped), 1 without a cap."""
    z = raw
    if HAS_BIAS:
        z += bias
    slope = 1.0
    if CAP:
        z *= logit_scale
        # tanh by exp, which goes to its limits without overflow.
        t = 1.0 - 2.0 / (tl.exp(z * (2.0 / softcap)) + 1.0)
        slope = 1.0 - t * t
        z = tl.where(z == float("-inf"), z, t * softcap) * inv_temperature
    else:
        z *= logit_scale * inv_temperature  # once a row, not once a logit
    return z, slope


@triton.jit
def _inverse_temperature(temperatures_ptr, temperature, row, PER_ROW: tl.constexpr):
    if PER_ROW:
        return 1.0 / tl.load(temperatures_ptr + row).to(tl.float32)
    else:
        return 1.0 / temperature


@triton.jit
def _target_column(targets_ptr, row, first_column):
    """Where a row's target lies among columns that start at `first_column`, maybe outside."""
    return tl.load(targets_ptr + row).to(tl.int32) - first_column


_SCALARS = ["temperature", "logit_scale", "softcap"]


@triton.jit(do_not_specialize=_SCALARS)
def _target_logit_kernel(
    states_ptr,
    weight_ptr,
    bias_ptr,
    targets_ptr,
    temperatures_ptr,
    target_logits_ptr,
    states_stride,
    weight_stride,
    num_hidden,
    temperature,
    logit_scale,
    softcap,
    HAS_BIAS: tl.constexpr,
    CAP: tl.constexpr,
    PER_ROW: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """z_target of each row, by a dot product in float32."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets_ptr + row).to(tl.int64)
    lanes = tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, num_hidden, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        inside = d < num_hidden
        x = tl.load(states_ptr + row * states_stride + d, mask=inside, other=0.0)
        w = tl.load(weight_ptr + target * weight_stride + d, mask=inside, other=0.0)
        lanes += x.to(tl.float32) * w.to(tl.float32)
    bias = 0.0
    if HAS_BIAS:
        bias = tl.load(bias_ptr + target).to(tl.float32)
    inv_temperature = _inverse_temperature(temperatures_ptr, temperature, row, PER_ROW)
    z, _ = _transform(tl.sum(lanes, 0), bias, logit_scale, softcap, inv_temperature, HAS_BIAS, CAP)
    tl.store(target_logits_ptr + row, z)


@triton.jit
def mask_logits(z, keep, HAS_BIAS: tl.constexpr):
    """z with columns that are not kept, and banned ones, so low that they count for nothing.

    Not -inf, whose product with an exponential of 0 is NaN.
    """
    if HAS_BIAS:
        keep = keep & (z != float("-inf"))
    return tl.where(keep, z, _NOTHING)


@triton.jit
def anchor_of(largest, target_logit, LIMIT: tl.constexpr):
    """The anchor of a block with the largest logit `largest`, target apart; -inf where it is empty
    and the target banned."""
    largest = tl.where(largest == _NOTHING, float("-inf"), largest)
    return tl.where(largest > target_logit + LIMIT, largest, target_logit)


@triton.jit
def distance_from(z, anchor):
    """z - anchor, whose exponential is at most exp(LIMIT)."""
    return z - tl.where(anchor == float("-inf"), 0.0, anchor)


# Columns are specialised: loads and stores of 16 bytes need to know that a mask's end is aligned.
@triton.jit(do_not_specialize=_SCALARS)
def _exp_kernel(
    raw_ptr,
    bias_ptr,
    targets_ptr,
    temperatures_ptr,
    target_logits_ptr,
    exp_ptr,
    anchors_ptr,
    sums_ptr,
    moments_ptr,
    raw_stride,
    exp_stride,
    num_blocks,
    first_column,
    num_columns,
    temperature,
    logit_scale,
    softcap,
    HAS_BIAS: tl.constexpr,
    CAP: tl.constexpr,
    PER_ROW: tl.constexpr,
    STORE: tl.constexpr,
    STORE_SLOPE: tl.constexpr,
    LIMIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of one row of raw products (C, num_columns), which start at `first_column`.

    Stores the exponentials (with STORE; times the cap's slope with STORE_SLOPE), 0 for the target,
    and of the block the anchor, the sum of the exponentials, and that of exponential times
    (z - anchor).
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < num_columns
    raw = tl.load(raw_ptr + row * raw_stride + column, mask=inside, other=0.0)
    bias = 0.0
    if HAS_BIAS:
        bias = tl.load(bias_ptr + first_column + column, mask=inside, other=0.0).to(tl.float32)
    inv_temperature = _inverse_temperature(temperatures_ptr, temperature, row, PER_ROW)
    z, slope = _transform(raw, bias, logit_scale, softcap, inv_temperature, HAS_BIAS, CAP)
    keep = inside & (column != _target_column(targets_ptr, row, first_column))
    z = mask_logits(z, keep, HAS_BIAS)
    anchor = anchor_of(tl.max(z, 0), tl.load(target_logits_ptr + row), LIMIT)
    distance = distance_from(z, anchor)
    e = tl.exp(distance)
    at = row * num_blocks + first_column // BLOCK + tl.program_id(1)
    tl.store(anchors_ptr + at, anchor)
    tl.store(sums_ptr + at, tl.sum(e, 0))
    tl.store(moments_ptr + at, tl.sum(e * distance, 0))
    if STORE:
        stored = e * slope if STORE_SLOPE else e
        at = exp_ptr + row * exp_stride + first_column + column
        tl.store(at, stored.to(exp_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _log1p(x):
    """log(1 + x) for x >= 0, by its series where 1 + x would lose the digits of x."""
    y = tl.minimum(x, 0.03)
    series = y * (1.0 - y * (0.5 - y * (1.0 / 3.0 - y * (0.25 - y * 0.2))))
    # Not x < 0.03: a NaN takes the logarithm.
    return tl.where(y == x, series, tl.log(1.0 + x))


@triton.jit
def _max_nan(a, b):
    """The larger; a maximum that drops a NaN would hide it."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit(do_not_specialize=["num_rows"])
def _combine_kernel(
    target_logits_ptr,
    anchors_ptr,
    sums_ptr,
    moments_ptr,
    logp_ptr,
    entropy_ptr,
    anchor_ptr,
    log_sum_ptr,
    rest_ptr,
    num_rows,
    num_blocks,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Row statistics from those of the blocks.

    logp, entropy, the row's anchor a, log of the sum of exp(z - a), and that sum without the
    target's share.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    valid = row < num_rows
    k = tl.arange(0, BLOCKS)
    at = row[:, None] * num_blocks + k[None, :]
    inside = valid[:, None] & (k < num_blocks)[None, :]
    anchors = tl.load(anchors_ptr + at, mask=inside, other=float("-inf"))
    sums = tl.load(sums_ptr + at, mask=inside, other=0.0)
    moments = tl.load(moments_ptr + at, mask=inside, other=0.0)
    target_logit = tl.load(target_logits_ptr + row, mask=valid, other=0.0)
    anchor = _max_nan(tl.reduce(anchors, 1, _max_nan), target_logit)
    origin = tl.where(anchor == float("-inf"), 0.0, anchor)
    shift = tl.where(anchors == float("-inf"), 0.0, anchors - origin[:, None])
    factor = tl.where(anchors == float("-inf"), 0.0, tl.exp(shift))
    rest = tl.sum(sums * factor, 1)
    moment = tl.sum(factor * (moments + shift * sums), 1)
    of_target = tl.exp(target_logit - origin)
    distance = tl.where(of_target == 0.0, 0.0, target_logit - origin)
    total = rest + of_target
    # Where the target is the anchor its exponential is 1, and the sum of the others is exact.
    log_sum = tl.where(target_logit == anchor, _log1p(rest), tl.log(total))
    entropy = log_sum - (moment + of_target * distance) / total
    tl.store(logp_ptr + row, target_logit - origin - log_sum, mask=valid)
    tl.store(entropy_ptr + row, entropy, mask=valid)
    tl.store(anchor_ptr + row, origin, mask=valid)
    tl.store(log_sum_ptr + row, log_sum, mask=valid)
    tl.store(rest_ptr + row, rest, mask=valid)


@triton.jit(do_not_specialize=_SCALARS)
def _finish_kernel(
    exp_ptr,
    targets_ptr,
    temperatures_ptr,
    target_logits_ptr,
    anchors_ptr,
    logp_ptr,
    entropy_ptr,
    anchor_ptr,
    log_sum_ptr,
    rest_ptr,
    grad_logp_ptr,
    grad_entropy_ptr,
    row_scale_ptr,
    exp_stride,
    num_blocks,
    num_columns,
    temperature,
    logit_scale,
    softcap,
    CAP: tl.constexpr,
    PER_ROW: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Turns a row of exponentials into d loss/d raw logits = row_scale times what is left there.

    Without an entropy term only the target's entry changes, and blocks with another anchor than
    the row's.
    """
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets_ptr + row).to(tl.int64)
    anchor = tl.load(anchor_ptr + row)
    log_sum = tl.load(log_sum_ptr + row)
    grad = tl.load(grad_logp_ptr + row).to(tl.float32)
    inv_temperature = _inverse_temperature(temperatures_ptr, temperature, row, PER_ROW)
    to_raw = logit_scale * inv_temperature
    base = exp_ptr + row * exp_stride
    if HAS_ENTROPY:
        grad_entropy = tl.load(grad_entropy_ptr + row).to(tl.float32)
        entropy = tl.load(entropy_ptr + row)
    k = tl.arange(0, BLOCKS)
    anchors = tl.load(anchors_ptr + row * num_blocks + k, mask=k < num_blocks, other=anchor)
    moved = (anchors != anchor) & (anchors != float("-inf"))
    if HAS_ENTROPY or tl.max(moved.to(tl.int32), 0) != 0:
        for block in range(num_blocks):
            of_block = tl.load(anchors_ptr + row * num_blocks + block)
            shift = tl.where(of_block == float("-inf"), 0.0, of_block - anchor)
            column = block * BLOCK + tl.arange(0, BLOCK)
            inside = column < num_columns
            e = tl.load(base + column, mask=inside, other=0.0).to(tl.float32)
            if HAS_ENTROPY:
                distance = tl.log(tl.where(e == 0.0, 1.0, e)) + shift
                # p (-g - c (log p + H)), short of 1 / sum of exp.
                e *= -grad - grad_entropy * (distance - log_sum + entropy)
                if CAP:
                    t = (distance + anchor) / (softcap * inv_temperature)
                    e *= 1.0 - t * t
            e *= tl.exp(shift)
            tl.store(base + column, e.to(exp_ptr.dtype.element_ty), mask=inside)
    target_logit = tl.load(target_logits_ptr + row)
    rest = tl.load(rest_ptr + row)
    of_target = tl.exp(target_logit - anchor)
    inv_sum = 1.0 / (rest + of_target)
    slope = 1.0
    if CAP:
        t = target_logit / (softcap * inv_temperature)
        slope = tl.where(target_logit == float("-inf"), 0.0, 1.0 - t * t)
    if HAS_ENTROPY:
        logp = tl.load(logp_ptr + row)
        log_p = tl.where(of_target == 0.0, 0.0, logp)
        at_target = grad * rest - grad_entropy * of_target * (log_p + entropy)
        row_scale = inv_sum * to_raw
    else:
        # d logp/d z_target = 1 - p = rest / sum, with row_scale = -grad / sum.
        at_target = -rest
        row_scale = -grad * inv_sum * to_raw
    tl.debug_barrier()
    tl.store(base + target, (at_target * slope).to(exp_ptr.dtype.element_ty))
    tl.store(row_scale_ptr + row, row_scale)


@triton.jit(do_not_specialize=_SCALARS)
def _gradient_kernel(
    raw_ptr,
    bias_ptr,
    targets_ptr,
    temperatures_ptr,
    logp_ptr,
    entropy_ptr,
    anchor_ptr,
    log_sum_ptr,
    grad_logp_ptr,
    grad_entropy_ptr,
    scale_ptr,
    out_ptr,
    raw_stride,
    out_stride,
    first_column,
    num_columns,
    temperature,
    logit_scale,
    softcap,
    HAS_BIAS: tl.constexpr,
    CAP: tl.constexpr,
    PER_ROW: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """d loss/d raw logits, over `scale`, of one block of one row of raw products."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < num_columns
    raw = tl.load(raw_ptr + row * raw_stride + column, mask=inside, other=float("-inf"))
    bias = 0.0
    if HAS_BIAS:
        bias = tl.load(bias_ptr + first_column + column, mask=inside, other=0.0).to(tl.float32)
    inv_temperature = _inverse_temperature(temperatures_ptr, temperature, row, PER_ROW)
    z, slope = _transform(raw, bias, logit_scale, softcap, inv_temperature, HAS_BIAS, CAP)
    log_p = z - tl.load(anchor_ptr + row) - tl.load(log_sum_ptr + row)
    p = tl.exp(log_p)
    grad = tl.load(grad_logp_ptr + row).to(tl.float32)
    # 1 - p of the target, by a series where p is nearly 1.
    small = -tl.load(logp_ptr + row)
    series = small * (1.0 - small * (0.5 - small * (1.0 / 6.0 - small * (1.0 / 24.0))))
    complement = tl.where(small < 0.02, series, 1.0 - tl.exp(-small))
    is_target = column == _target_column(targets_ptr, row, first_column)
    value = tl.where(is_target, grad * complement, -grad * p)
    if HAS_ENTROPY:
        grad_entropy = tl.load(grad_entropy_ptr + row).to(tl.float32)
        entropy = tl.load(entropy_ptr + row)
        value -= grad_entropy * p * (tl.where(p == 0.0, 0.0, log_p) + entropy)
    value *= slope * logit_scale * inv_temperature
    if HAS_SCALE:
        value /= tl.load(scale_ptr)
    at = out_ptr + row * out_stride + column
    tl.store(at, value.to(out_ptr.dtype.element_ty), mask=inside)
