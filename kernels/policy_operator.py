"""The Triton policy loss as a custom operator, with autograd.

Axes: N tokens (flat), B sequences.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from sec_grpo.kernels.policy_loss import launch, num_parts, reduce_partials
from sec_grpo.kernels.reference import (
    SEQUENCE_MEAN_LOSSES,
    SPEC_SCHEMA,
    Denominators,
    PolicyLossSpec,
    at_least_one,
    spec_arguments,
    spec_of_arguments,
)


@custom_op(
    "sec_grpo::policy_loss",
    mutates_args=(),
    schema="(Tensor logprobs, bool need_gradient, Tensor advantages, Tensor? mask, "
    "Tensor? cu_seqlens, Tensor? old_logprobs, Tensor? ref_logprobs, Tensor? policy_weights, "
    f"Tensor? log_is_weights, SymInt num_sequences, bool per_token_advantages, {SPEC_SCHEMA})"
    " -> (Tensor, Tensor, Tensor)",
)
def _policy_loss(
    logprobs: Tensor,
    need_gradient: bool,
    advantages: Tensor,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    old_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    policy_weights: Tensor | None,
    log_is_weights: Tensor | None,
    num_sequences: int,
    per_token_advantages: bool,
    *spec_parts: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """sums (10,), num_tokens (), and the gradient (N,), all short of the denominator."""
    spec = spec_of_arguments(*spec_parts)
    sums = logprobs.new_empty(10, dtype=torch.float32)
    num_tokens = logprobs.new_empty((), dtype=torch.int64)
    if num_sequences == 0:
        return (
            sums.zero_(),
            num_tokens.zero_(),
            logprobs.new_zeros(logprobs.shape, dtype=torch.float32),
        )
    partials, gradient = launch(
        logprobs,
        advantages,
        mask,
        cu_seqlens,
        num_sequences,
        num_parts(logprobs.numel(), num_sequences, spec),
        per_token_advantages,
        old_logprobs,
        ref_logprobs,
        policy_weights,
        log_is_weights,
        spec,
        sequence_mean=spec.loss_type in SEQUENCE_MEAN_LOSSES,
        need_gradient=need_gradient,
    )
    reduce_partials(partials, sums, num_tokens)
    return sums, num_tokens, logprobs.new_empty(0) if gradient is None else gradient


@_policy_loss.register_fake
def _(logprobs: Tensor, need_gradient: bool, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    sums = logprobs.new_empty(10, dtype=torch.float32)
    num_tokens = logprobs.new_empty((), dtype=torch.int64)
    if not need_gradient:
        return sums, num_tokens, logprobs.new_empty(0)
    return sums, num_tokens, torch.empty_like(logprobs, dtype=torch.float32)


def _save_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[2])
    ctx.dtype = inputs[0].dtype
    ctx.num_inputs = len(inputs)


def _multiply_gradient(ctx: Any, grad_sums: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_sums is None:
        return (None,) * ctx.num_inputs
    (gradient,) = ctx.saved_tensors
    return ((gradient * grad_sums[0]).to(ctx.dtype), *(None,) * (ctx.num_inputs - 1))


_policy_loss.register_autograd(_multiply_gradient, setup_context=_save_gradient)


def policy_loss(
    logprobs: Tensor,
    advantages: Tensor,
    *,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    num_sequences: int,
    per_token_advantages: bool,
    old_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    policy_weights: Tensor | None,
    log_is_weights: Tensor | None,
    spec: PolicyLossSpec,
    denominators: Denominators,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss (scalar) and metrics of flat tokens (N,), packed by cu_seqlens or B rows of N / B.

    Covers all that `reference.policy_loss` does but float64.
    """
    tensors = (logprobs, advantages, old_logprobs, ref_logprobs)
    if any(t is not None and t.dtype == torch.float64 for t in tensors):
        raise TypeError(
            "logprobs, advantages, old_logprobs and ref_logprobs must not be float64 with "
            "backend='triton', whose math is float32; cast them, or use backend='torch'"
        )
    sums, num_tokens, _ = _policy_loss(
        logprobs,
        logprobs.requires_grad and torch.is_grad_enabled(),
        advantages,
        mask,
        cu_seqlens,
        old_logprobs,
        ref_logprobs,
        policy_weights,
        log_is_weights,
        num_sequences,
        per_token_advantages,
        *spec_arguments(spec),
    )
    loss = sums[0] / _denominator(spec, denominators, num_tokens, num_sequences)
    sums = sums.detach()
    names = (
        "clip_ratio/low_mean",
        "clip_ratio/high_mean",
        "clip_ratio/region_mean",
        "ratio/mean",
        "kl",
        "clip_ratio/cap_mean",
        "vespo/phi_mean",
        "ratio/max",
        "ratio/min",
    )
    metrics = {name: sums[i + 1] for i, name in enumerate(names)}
    if spec.loss_type != "vespo":
        del metrics["vespo/phi_mean"]
    metrics["num_tokens"] = num_tokens
    return loss.reshape(()), metrics


def _denominator(
    spec: PolicyLossSpec, denominators: Denominators, num_tokens: Tensor, num_sequences: int
) -> float | Tensor:
    """What the weighted sum of token losses is divided by; a tensor where the host has no count."""
    if spec.loss_type in (*SEQUENCE_MEAN_LOSSES, "luspo", "dr_grpo"):
        given = denominators.num_sequences_in_batch
        sequences = at_least_one(num_sequences if given is None else given)
        if spec.loss_type != "dr_grpo":
            return sequences
        assert denominators.max_completion_length is not None
        return sequences * denominators.max_completion_length
    given = denominators.num_items_in_batch
    return at_least_one(num_tokens if given is None else given)
