"""Triton: clipped policy loss, its gradient in logp and its metrics in one pass over the tokens.

Axes: N tokens (flat), T padded length, B sequences.

A program takes every P-th block of a sequence, so lengths need not be known on the host and nothing
recompiles as they change; P = 1 where the loss needs sums over a sequence. The gradient is final
but for the batch's denominator: the backward is a multiplication.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sec_grpo.kernels.reference import (
    MAX_LOG_RATIO,
    VESPO_MAX_LOG,
    VESPO_MIN_LOG_WEIGHT,
    PolicyInputs,
    PolicyLossSpec,
)

BLOCK = 512
NUM_WARPS = 4
# Programs to spread few long sequences over: some waves on a large GPU.
PROGRAMS = 512
# Partial results that the one program that adds them up reads at a time: it waits for the memory
# once for as many.
REDUCED_ROWS = 256
REDUCE_WARPS = 8
# Columns of each program's partial results, padded to a power of two.
NUM_PARTIALS = tl.constexpr(16)
_MAX_LOG_RATIO = tl.constexpr(MAX_LOG_RATIO)
_VESPO_MAX_LOG = tl.constexpr(VESPO_MAX_LOG)
_VESPO_MIN_LOG_WEIGHT = tl.constexpr(VESPO_MIN_LOG_WEIGHT)
# min and max drop a NaN by default: a diverged policy would pass for one with a large ratio.
_KEEP_NAN = tl.constexpr(tl.PropagateNan.ALL)


@triton.jit
def _load_tokens(pointer, offsets, keep):
    """float32 values, 0 where not kept: a masked entry may hold NaN."""
    return tl.where(keep, tl.load(pointer + offsets, mask=keep, other=0.0).to(tl.float32), 0.0)


@triton.jit
def _kept(mask_ptr, offsets, inside, HAS_MASK: tl.constexpr):
    if HAS_MASK:
        return inside & (tl.load(mask_ptr + offsets, mask=inside, other=0) != 0)
    else:
        return inside


@triton.jit
def _kl(logp, ref, KL: tl.constexpr):
    """The estimate and its derivative in logp."""
    if KL == 1:
        value = logp - ref
        slope = tl.full(logp.shape, 1.0, tl.float32)
    elif KL == 2:
        slope = logp - ref
        value = slope * slope * 0.5
    else:
        x = tl.minimum(ref - logp, _MAX_LOG_RATIO, _KEEP_NAN)
        # Near 0 by the series of exp: the difference of float32 numbers has no digits left there.
        series = x * x * (0.5 + x * (1 / 6 + x * (1 / 24)))
        value = tl.where(tl.abs(x) < 0.0625, series, tl.exp(x) - x - 1.0)
        slope = tl.where(ref - logp > _MAX_LOG_RATIO, 0.0, -(value + x))
    return value, slope


@triton.jit
def _clamp(values, low, high):
    return tl.minimum(tl.maximum(values, low, _KEEP_NAN), high, _KEEP_NAN)


@triton.jit
def _clipped_objective(ratio, adv, low, high, cap):
    """min(ratio A, clip(ratio, low, high) A), at least cap A where A < 0; its slope in ratio."""
    bounded = tl.where(adv > 0, tl.minimum(ratio, high, _KEEP_NAN), _clamp(ratio, low, cap))
    # A NaN is not clipped: it has to show in the gradient as it does in the loss.
    outside = (ratio < low) | (ratio > cap)
    clipped = tl.where(adv > 0, ratio > high, outside & (adv <= 0))
    return bounded * adv, tl.where(clipped, 0.0, adv)


@triton.jit
def _vespo_weight(log_w, adv, k_pos, lambda_pos, k_neg, lambda_neg):
    """exp(lambda + k log w - lambda w)"""
    k = tl.where(adv >= 0, k_pos, k_neg)
    rate = tl.where(adv >= 0, lambda_pos, lambda_neg)
    return tl.exp(rate + k * log_w - rate * tl.exp(log_w))


@triton.jit
def _soft_gate(ratio, adv, temperature_pos, temperature_neg):
    """sigmoid(temperature (ratio - 1)) 4 / temperature A and its derivative in ratio."""
    temperature = tl.where(adv > 0, temperature_pos, temperature_neg)
    x = temperature * (ratio - 1.0)
    # exp(-|x|) neither overflows nor loses 1 - sigmoid(x) to cancellation.
    small = tl.exp(-tl.abs(x))
    gate = tl.where(x >= 0, 1.0, small) / (1.0 + small)
    slope = 4.0 * small / ((1.0 + small) * (1.0 + small))
    return gate * 4.0 / temperature * adv, slope * adv


_SCALARS = [
    "low",
    "high",
    "cap",
    "cispo_high",
    "temperature_pos",
    "temperature_neg",
    "k_pos",
    "lambda_pos",
    "k_neg",
    "lambda_neg",
    "beta",
]


@triton.jit(do_not_specialize=["padded_length", *_SCALARS])
def _policy_loss_kernel(
    logprobs_ptr,
    advantages_ptr,
    mask_ptr,
    cu_seqlens_ptr,
    old_ptr,
    ref_ptr,
    policy_weights_ptr,
    log_is_weights_ptr,
    gradient_ptr,
    partials_ptr,
    padded_length,
    low,
    high,
    cap,
    cispo_high,
    temperature_pos,
    temperature_neg,
    k_pos,
    lambda_pos,
    k_neg,
    lambda_neg,
    beta,
    PACKED: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_OLD: tl.constexpr,
    KL: tl.constexpr,
    KL_CORRECTION: tl.constexpr,
    HAS_POLICY_WEIGHTS: tl.constexpr,
    HAS_LOG_IS_WEIGHTS: tl.constexpr,
    PER_TOKEN_ADVANTAGES: tl.constexpr,
    SEQUENCE_LEVEL: tl.constexpr,
    CISPO: tl.constexpr,
    SAPO: tl.constexpr,
    VESPO: tl.constexpr,
    SEQUENCE_MEAN: tl.constexpr,
    NEED_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sequence = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    num_parts = tl.num_programs(1)
    if PACKED:
        begin = tl.load(cu_seqlens_ptr + sequence).to(tl.int64)
        length = tl.load(cu_seqlens_ptr + sequence + 1).to(tl.int64) - begin
    else:
        length = padded_length.to(tl.int64)
        begin = sequence * length

    num_kept = length.to(tl.float32)
    log_ratio_sum = num_kept * 0.0
    if HAS_MASK or ((SEQUENCE_LEVEL or VESPO) and HAS_OLD):
        kept_lanes = tl.zeros([BLOCK], tl.float32)
        ratio_lanes = tl.zeros([BLOCK], tl.float32)
        for start in range(0, length, BLOCK):
            t = start + tl.arange(0, BLOCK).to(tl.int64)
            keep = _kept(mask_ptr, begin + t, t < length, HAS_MASK)
            kept_lanes += keep.to(tl.float32)
            if (SEQUENCE_LEVEL or VESPO) and HAS_OLD:
                logp = _load_tokens(logprobs_ptr, begin + t, keep)
                log_ratio = logp - _load_tokens(old_ptr, begin + t, keep)
                if VESPO:
                    log_ratio = _clamp(log_ratio, -_VESPO_MAX_LOG, _VESPO_MAX_LOG)
                ratio_lanes += log_ratio
        num_kept = tl.sum(kept_lanes, 0)
        log_ratio_sum = tl.sum(ratio_lanes, 0)
    mean_scale = 1.0 / tl.maximum(num_kept, 1.0)
    weight = mean_scale if SEQUENCE_MEAN else 1.0
    if VESPO:
        if HAS_LOG_IS_WEIGHTS:
            log_ratio_sum += tl.load(log_is_weights_ptr + sequence).to(tl.float32)
        log_w = _clamp(log_ratio_sum, _VESPO_MIN_LOG_WEIGHT, _VESPO_MAX_LOG)

    loss_lanes = tl.zeros([BLOCK], tl.float32)
    low_lanes = tl.zeros([BLOCK], tl.float32)
    high_lanes = tl.zeros([BLOCK], tl.float32)
    ratio_lanes = tl.zeros([BLOCK], tl.float32)
    ratio_max = tl.zeros([BLOCK], tl.float32)
    ratio_min = tl.full([BLOCK], float("inf"), tl.float32)
    capped_lanes = tl.zeros([BLOCK], tl.float32)
    phi_lanes = tl.zeros([BLOCK], tl.float32)
    kl_lanes = tl.zeros([BLOCK], tl.float32)
    slope_lanes = tl.zeros([BLOCK], tl.float32)
    for start in range(part * BLOCK, length, num_parts * BLOCK):
        t = start + tl.arange(0, BLOCK).to(tl.int64)
        keep = _kept(mask_ptr, begin + t, t < length, HAS_MASK)
        logp = _load_tokens(logprobs_ptr, begin + t, keep)
        if PER_TOKEN_ADVANTAGES:
            adv = _load_tokens(advantages_ptr, begin + t, keep)
        else:
            adv = tl.load(advantages_ptr + sequence).to(tl.float32) + tl.zeros([BLOCK], tl.float32)
        if SEQUENCE_LEVEL:
            log_ratio = log_ratio_sum * mean_scale + tl.zeros([BLOCK], tl.float32)
        elif HAS_OLD:
            log_ratio = logp - _load_tokens(old_ptr, begin + t, keep)
        else:
            log_ratio = tl.zeros([BLOCK], tl.float32)
        ratio = tl.exp(tl.minimum(log_ratio, _MAX_LOG_RATIO, _KEEP_NAN))
        ratio_lanes += tl.where(keep, ratio, 0.0)
        ratio_max = tl.maximum(ratio_max, tl.where(keep, ratio, 0.0))
        ratio_min = tl.minimum(ratio_min, tl.where(keep, ratio, float("inf")))

        if CISPO:
            slope = tl.minimum(ratio, cispo_high, _KEEP_NAN) * adv
            objective = slope * logp
            high_lanes += tl.where(keep & (adv > 0) & (ratio > cispo_high), 1.0, 0.0)
        elif VESPO:
            phi = _vespo_weight(log_w, adv, k_pos, lambda_pos, k_neg, lambda_neg)
            slope = phi * adv
            objective = slope * logp
            phi_lanes += tl.where(keep, phi, 0.0)
        elif SAPO:
            objective, slope = _soft_gate(ratio, adv, temperature_pos, temperature_neg)
            slope = tl.where(log_ratio > _MAX_LOG_RATIO, 0.0, slope * ratio)
        else:
            objective, slope = _clipped_objective(ratio, adv, low, high, cap)
            slope = tl.where(log_ratio > _MAX_LOG_RATIO, 0.0, slope * ratio)
            low_lanes += tl.where(keep & (adv < 0) & (ratio < low), 1.0, 0.0)
            high_lanes += tl.where(keep & (adv > 0) & (ratio > high), 1.0, 0.0)
            capped_lanes += tl.where(keep & (adv < 0) & (ratio > cap), 1.0, 0.0)
        if HAS_POLICY_WEIGHTS:
            policy_weight = _load_tokens(policy_weights_ptr, begin + t, keep)
            objective *= policy_weight
            slope *= policy_weight
        token_loss = -objective
        # d loss/d logp of the token, and d loss/d log-ratio of the sequence it shares.
        gradient = -slope
        shared = tl.zeros([BLOCK], tl.float32)
        if SEQUENCE_LEVEL and not CISPO:
            shared = -slope
            gradient = tl.zeros([BLOCK], tl.float32)
        if KL != 0:
            kl, kl_slope = _kl(logp, _load_tokens(ref_ptr, begin + t, keep), KL)
            if KL_CORRECTION:
                kl *= ratio
                kl_slope *= ratio
                by_ratio = tl.where(log_ratio > _MAX_LOG_RATIO, 0.0, beta * kl)
                if SEQUENCE_LEVEL:
                    shared += by_ratio
                else:
                    gradient += by_ratio
            token_loss += beta * kl
            gradient += beta * kl_slope
            kl_lanes += tl.where(keep, kl, 0.0)
        if SEQUENCE_LEVEL:
            slope_lanes += tl.where(keep, shared, 0.0)

        loss_lanes += tl.where(keep, token_loss * weight, 0.0)
        if NEED_GRADIENT:
            gradient = tl.where(keep, gradient * weight, 0.0)
            tl.store(gradient_ptr + begin + t, gradient, mask=t < length)

    if NEED_GRADIENT and SEQUENCE_LEVEL and (KL_CORRECTION or not CISPO):
        # Every token moves the sequence's ratio by ratio / tokens.
        share = tl.sum(slope_lanes, 0) * mean_scale * weight
        tl.debug_barrier()
        for start in range(0, length, BLOCK):
            t = start + tl.arange(0, BLOCK).to(tl.int64)
            keep = _kept(mask_ptr, begin + t, t < length, HAS_MASK)
            gradient = tl.load(gradient_ptr + begin + t, mask=keep, other=0.0) + share
            tl.store(gradient_ptr + begin + t, gradient, mask=keep)

    out = partials_ptr + (sequence * num_parts + part) * NUM_PARTIALS
    tl.store(out + 0, tl.where(part == 0, num_kept, 0.0))
    tl.store(out + 1, tl.sum(loss_lanes, 0))
    tl.store(out + 2, tl.sum(low_lanes, 0))
    tl.store(out + 3, tl.sum(high_lanes, 0))
    tl.store(out + 4, tl.sum(ratio_lanes, 0))
    tl.store(out + 5, tl.sum(kl_lanes, 0))
    tl.store(out + 6, tl.max(ratio_max, 0))
    tl.store(out + 7, tl.sum(capped_lanes, 0))
    tl.store(out + 8, tl.sum(phi_lanes, 0))
    # The reduction takes largest values only.
    tl.store(out + 9, -tl.min(ratio_min, 0))


@triton.jit(do_not_specialize=["num_rows"])
def _reduce_partials_kernel(partials_ptr, sums_ptr, num_tokens_ptr, num_rows, BLOCK: tl.constexpr):
    """sums: loss, mean low, high, region, ratio, kl, cap, phi, max and min ratio; num_tokens."""
    column = tl.arange(0, NUM_PARTIALS)
    total = tl.zeros([NUM_PARTIALS], tl.float64)
    largest = tl.full([NUM_PARTIALS], float("-inf"), tl.float32)
    for start in range(0, num_rows, BLOCK):
        row = start + tl.arange(0, BLOCK).to(tl.int64)
        at = row[:, None] * NUM_PARTIALS + column[None, :]
        inside = (row < num_rows)[:, None] & (column < 10)[None, :]
        values = tl.load(partials_ptr + at, mask=inside, other=0.0)
        # The column of minima holds -inf for a program without tokens, which no sum may meet.
        total += tl.sum(tl.where((column < 9)[None, :], values, 0.0).to(tl.float64), 0)
        largest = tl.maximum(largest, tl.max(tl.where(inside, values, float("-inf")), 0))
    zero = tl.zeros([NUM_PARTIALS], tl.float64)
    num_tokens = tl.sum(tl.where(column == 0, total, zero), 0)
    mean = total / tl.maximum(num_tokens, 1.0)
    low = tl.sum(tl.where(column == 2, mean, zero), 0)
    high = tl.sum(tl.where(column == 3, mean, zero), 0)
    smallest_negated = tl.max(tl.where(column == 9, largest, float("-inf")), 0)
    tl.store(num_tokens_ptr, num_tokens.to(tl.int64))
    tl.store(sums_ptr + 0, tl.sum(tl.where(column == 1, total, zero), 0).to(tl.float32))
    tl.store(sums_ptr + 1, low.to(tl.float32))
    tl.store(sums_ptr + 2, high.to(tl.float32))
    tl.store(sums_ptr + 3, (low + high).to(tl.float32))
    tl.store(sums_ptr + 4, tl.sum(tl.where(column == 4, mean, zero), 0).to(tl.float32))
    tl.store(sums_ptr + 5, tl.sum(tl.where(column == 5, mean, zero), 0).to(tl.float32))
    tl.store(sums_ptr + 6, tl.sum(tl.where(column == 7, mean, zero), 0).to(tl.float32))
    tl.store(sums_ptr + 7, tl.sum(tl.where(column == 8, mean, zero), 0).to(tl.float32))
    tl.store(sums_ptr + 8, tl.max(tl.where(column == 6, largest, float("-inf")), 0))
    tl.store(sums_ptr + 9, tl.where(num_tokens > 0, -smallest_negated, 0.0))


def num_parts(num_tokens: int, num_sequences: int, spec: PolicyLossSpec) -> int:
    """P: programs a sequence, by the mean length, which is all that the host knows."""
    if spec.importance_sampling_level == "sequence" or spec.loss_type == "vespo":
        return 1
    blocks = triton.cdiv(triton.cdiv(num_tokens, num_sequences), BLOCK)
    return max(1, min(triton.cdiv(PROGRAMS, num_sequences), blocks))


def launch(
    logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    num_sequences: int,
    parts: int,
    per_token_advantages: bool,
    old_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    policy_weights: Tensor | None,
    log_is_weights: Tensor | None,
    spec: PolicyLossSpec,
    *,
    sequence_mean: bool,
    need_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """Partial results of each program, and the gradient (N,) short of the denominator."""
    device = logprobs.device
    logprobs = logprobs.contiguous()
    gradient = None
    if need_gradient:
        gradient = torch.empty(logprobs.shape, dtype=torch.float32, device=device)
    if mask is not None:
        mask = (mask if mask.dtype == torch.bool else mask != 0).contiguous().view(torch.uint8)
    shape = (num_sequences * parts, NUM_PARTIALS.value)
    partials = torch.empty(shape, dtype=torch.float32, device=device)
    _policy_loss_kernel[(num_sequences, parts)](
        logprobs,
        advantages.contiguous(),
        logprobs if mask is None else mask,
        logprobs if cu_seqlens is None else cu_seqlens.contiguous(),
        logprobs if old_logprobs is None else old_logprobs.contiguous(),
        logprobs if ref_logprobs is None else ref_logprobs.contiguous(),
        logprobs if policy_weights is None else policy_weights.contiguous(),
        logprobs if log_is_weights is None else log_is_weights.contiguous(),
        partials if gradient is None else gradient,
        partials,
        logprobs.numel() // num_sequences,
        1.0 - spec.epsilon_low,
        1.0 + spec.epsilon_high,
        float("inf") if spec.negative_cap is None else float(spec.negative_cap),
        float(spec.epsilon_high),
        float(spec.sapo_temperature_pos),
        float(spec.sapo_temperature_neg),
        float(spec.vespo_k_pos),
        float(spec.vespo_lambda_pos),
        float(spec.vespo_k_neg),
        float(spec.vespo_lambda_neg),
        float(spec.beta),
        PACKED=cu_seqlens is not None,
        HAS_MASK=mask is not None,
        HAS_OLD=old_logprobs is not None,
        KL=0 if ref_logprobs is None else int(spec.kl_type.removeprefix("k")),
        KL_CORRECTION=ref_logprobs is not None and spec.kl_bias_correction,
        HAS_POLICY_WEIGHTS=policy_weights is not None,
        HAS_LOG_IS_WEIGHTS=log_is_weights is not None,
        PER_TOKEN_ADVANTAGES=per_token_advantages,
        SEQUENCE_LEVEL=spec.importance_sampling_level == "sequence",
        CISPO=spec.loss_type == "cispo",
        SAPO=spec.loss_type == "sapo",
        VESPO=spec.loss_type == "vespo",
        SEQUENCE_MEAN=sequence_mean,
        NEED_GRADIENT=need_gradient,
        BLOCK=BLOCK,
        num_warps=NUM_WARPS,
    )
    return partials, gradient


def reduce_partials(partials: Tensor, sums: Tensor, num_tokens: Tensor) -> None:
    """Sums (10,), short of the denominator, and the number of tokens, of all partial results."""
    _reduce_partials_kernel[(1,)](
        partials,
        sums,
        num_tokens,
        partials.shape[0],
        BLOCK=REDUCED_ROWS,
        num_warps=REDUCE_WARPS,
    )


def token_loss_slopes(logprobs: Tensor, inputs: PolicyInputs, spec: PolicyLossSpec) -> Tensor:
    """d loss_t/d logp_t (N,) of `reference.token_losses`, where that token alone decides it."""
    _, slopes = launch(
        logprobs,
        inputs.advantages,
        inputs.mask,
        None,
        # One sequence as far as the kernel is concerned.
        1,
        triton.cdiv(logprobs.numel(), BLOCK),
        True,
        inputs.old_logprobs,
        inputs.ref_logprobs,
        inputs.policy_weights,
        None,
        spec,
        sequence_mean=False,
        need_gradient=True,
    )
    assert slopes is not None
    return slopes
