"""The linear head as custom operators, with autograd, for both backends.

Axes: N tokens, D hidden, V vocabulary.

Operators are opaque to torch.compile, which sees the shapes of their results only, so that loops
over chunks neither break its graph nor unroll in it. A tensor that is not needed is empty, because
operators return tensors only.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from sec_grpo.kernels import head as _head
from sec_grpo.kernels import linear_chunked
from sec_grpo.kernels.head import Head, RowStatistics
from sec_grpo.kernels.reference import (
    SPEC_SCHEMA,
    PolicyInputs,
    PolicyLossSpec,
    accumulation_dtype,
    spec_arguments,
    spec_of_arguments,
)
from sec_grpo.kernels.rows import SKIP


def _engine(backend: str) -> ModuleType:
    if backend == "torch":
        return linear_chunked
    from sec_grpo.kernels import linear_triton

    return linear_triton


def _head_of(
    bias: Tensor | None,
    temperatures: Tensor | None,
    temperature: float,
    logit_scale: float,
    softcap: float | None,
) -> Head:
    return Head(bias, temperature if temperatures is None else temperatures, logit_scale, softcap)


def _or_empty(tensors: Sequence[Tensor | None], like: Tensor) -> tuple[Tensor, ...]:
    return tuple(like.new_empty(0) if tensor is None else tensor for tensor in tensors)


def _or_none(tensor: Tensor, needed: bool) -> Tensor | None:
    return tensor if needed else None


# ---- linear_logprob ------------------------------------------------------------------------------

_HEAD_ARGUMENTS = (
    "Tensor hidden, Tensor weight, Tensor? bias, Tensor targets, Tensor? temperatures, "
    "Tensor? row_class, float temperature, float logit_scale, float? softcap"
)


@custom_op(
    "sec_grpo::linear_logprob",
    mutates_args=(),
    schema=f"({_HEAD_ARGUMENTS}, bool need_entropy, SymInt? chunk_rows, str backend, "
    "str memory_mode) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperatures: Tensor | None,
    row_class: Tensor | None,
    temperature: float,
    logit_scale: float,
    softcap: float | None,
    need_entropy: bool,
    chunk_rows: int | None,
    backend: str,
    memory_mode: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    head = _head_of(bias, temperatures, temperature, logit_scale, softcap)
    return _engine(backend).logprob_forward(
        hidden,
        weight,
        targets,
        head,
        row_class,
        need_entropy=need_entropy,
        chunk_rows=chunk_rows,
    )


@_linear_logprob.register_fake
def _(hidden: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    rows = hidden.shape[0]
    return tuple(hidden.new_empty(rows, dtype=accumulation_dtype(hidden)) for _ in range(4))


@custom_op(
    "sec_grpo::linear_logprob_backward",
    mutates_args=(),
    schema=f"(bool[] needed, {_HEAD_ARGUMENTS}, SymInt? chunk_rows, str backend, str memory_mode, "
    "Tensor logp, Tensor entropy, Tensor anchor, Tensor log_sum, Tensor? grad_logp, "
    "Tensor? grad_entropy) -> (Tensor, Tensor, Tensor)",
)
def _linear_logprob_backward(
    needed: Sequence[bool],
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperatures: Tensor | None,
    row_class: Tensor | None,
    temperature: float,
    logit_scale: float,
    softcap: float | None,
    chunk_rows: int | None,
    backend: str,
    memory_mode: str,
    logp: Tensor,
    entropy: Tensor,
    anchor: Tensor,
    log_sum: Tensor,
    grad_logp: Tensor | None,
    grad_entropy: Tensor | None,
) -> tuple[Tensor, ...]:
    head = _head_of(bias, temperatures, temperature, logit_scale, softcap)
    gradients = _engine(backend).logprob_backward(
        hidden,
        weight,
        targets,
        head,
        row_class,
        RowStatistics(logp, entropy, anchor, log_sum),
        grad_logp,
        grad_entropy,
        needed,
        chunk_rows=chunk_rows,
        memory_mode=memory_mode,
    )
    return _or_empty(gradients, hidden)


@_linear_logprob_backward.register_fake
def _(
    needed: Sequence[bool], hidden: Tensor, weight: Tensor, bias: Tensor | None, *_: Any
) -> tuple[Tensor, ...]:
    return _fake_gradients(needed, hidden, weight, bias)


def _fake_gradients(
    needed: Sequence[bool],
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dtypes: Sequence[torch.dtype | None] = (None, None, None),
) -> tuple[Tensor, ...]:
    tensors = (hidden, weight, bias)
    found = [
        torch.empty_like(tensor, dtype=dtype) if need and tensor is not None else None
        for tensor, need, dtype in zip(tensors, needed, dtypes, strict=True)
    ]
    return _or_empty(found, hidden)


def _save_for_logprob(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, temperature, logit_scale, softcap, need_entropy, chunk_rows, backend, mode = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output)
    ctx.constants = (temperature, logit_scale, softcap, chunk_rows, backend, mode)
    ctx.need_entropy = need_entropy
    ctx.num_inputs = len(inputs)


def _logprob_autograd(
    ctx: Any, grad_logp: Tensor | None, grad_entropy: Tensor | None, *_: Tensor | None
) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    needed = [ctx.needs_input_grad[i] for i in range(3)]
    grad_entropy = grad_entropy if ctx.need_entropy else None
    if grad_logp is None and grad_entropy is None:
        return (None,) * ctx.num_inputs
    gradients = _linear_logprob_backward(
        needed, *saved[:6], *ctx.constants, *saved[6:], grad_logp, grad_entropy
    )
    return (*map(_or_none, gradients, needed), *(None,) * (ctx.num_inputs - 3))


_linear_logprob.register_autograd(_logprob_autograd, setup_context=_save_for_logprob)


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    head: Head,
    row_class: Tensor | None = None,
    *,
    need_entropy: bool,
    chunk_rows: int | None,
    backend: str,
    memory_mode: str = "auto",
) -> tuple[Tensor, Tensor]:
    """logp and entropy (N,), differentiable in hidden (N, D), weight (V, D) and head.bias.

    Rows of the class SKIP get 0; rows of FORWARD no gradient. Without need_entropy it is 0.
    """
    per_token = isinstance(head.temperature, Tensor)
    logp, entropy, _, _ = _linear_logprob(
        hidden,
        weight,
        head.bias,
        targets,
        head.temperature if per_token else None,
        row_class,
        1.0 if per_token else float(head.temperature),
        float(head.logit_scale),
        head.softcap,
        need_entropy,
        chunk_rows,
        backend,
        memory_mode,
    )
    return logp, entropy


# ---- linear_policy_gradient ----------------------------------------------------------------------


@custom_op(
    "sec_grpo::linear_policy_gradient",
    mutates_args=(),
    schema=f"(bool[] needed, {_HEAD_ARGUMENTS}, SymInt? chunk_rows, str backend, "
    "Tensor advantages, Tensor? old_logprobs, Tensor? ref_logprobs, Tensor? policy_weights, "
    f"Tensor weights, Tensor? entropy_weights, {SPEC_SCHEMA}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _linear_policy_gradient(
    needed: Sequence[bool],
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperatures: Tensor | None,
    row_class: Tensor | None,
    temperature: float,
    logit_scale: float,
    softcap: float | None,
    chunk_rows: int | None,
    backend: str,
    advantages: Tensor,
    old_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    policy_weights: Tensor | None,
    weights: Tensor,
    entropy_weights: Tensor | None,
    *spec_parts: Any,
) -> tuple[Tensor, ...]:
    mask = torch.ones_like(targets, dtype=torch.bool) if row_class is None else row_class != SKIP
    inputs = PolicyInputs(
        advantages, mask, mask, 0, old_logprobs, ref_logprobs, policy_weights, None
    )
    logp, entropy, gradients = _engine(backend).policy_gradient(
        hidden,
        weight,
        targets,
        _head_of(bias, temperatures, temperature, logit_scale, softcap),
        row_class,
        inputs,
        spec_of_arguments(*spec_parts),
        weights,
        entropy_weights,
        needed,
        chunk_rows=chunk_rows,
    )
    found = _or_empty((gradients.hidden, gradients.weight, gradients.bias), hidden)
    return (logp, entropy, hidden.new_zeros((), dtype=logp.dtype), *found)


@_linear_policy_gradient.register_fake
def _(
    needed: Sequence[bool], hidden: Tensor, weight: Tensor, bias: Tensor | None, *_: Any
) -> tuple[Tensor, ...]:
    dtype = accumulation_dtype(hidden)
    rows = hidden.shape[0]
    per_token = (hidden.new_empty(rows, dtype=dtype) for _ in range(2))
    hidden_dtype = dtype if hidden.dtype == torch.float16 else hidden.dtype
    dtypes = (hidden_dtype, dtype, dtype)
    gradients = _fake_gradients(needed, hidden, weight, bias, dtypes)
    return (*per_token, hidden.new_empty((), dtype=dtype), *gradients)


@custom_op(
    "sec_grpo::scaled",
    mutates_args=(),
    schema="(Tensor tensor, Tensor factor, ScalarType dtype) -> Tensor",
)
def _scaled(tensor: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    return _head.scaled(tensor, factor, dtype)


@_scaled.register_fake
def _(tensor: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(tensor, dtype=dtype)


def _save_for_policy(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[3:])
    ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in inputs[1:4]]
    ctx.num_inputs = len(inputs)


def _times(tensor: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """tensor * factor, or the tensor itself where that is seen to be the same."""
    # Nothing to see in the tensors of a compiler, nor on a GPU without waiting for it.
    visible = factor.device.type == "cpu" and type(factor) is Tensor
    if visible and tensor.dtype == dtype and factor.item() == 1:
        return tensor
    return _scaled(tensor, factor, dtype)


def _policy_autograd(
    ctx: Any, _logp: Any, _entropy: Any, grad_carrier: Tensor | None, *_: Any
) -> tuple[Tensor | None, ...]:
    if grad_carrier is None:
        return (None,) * ctx.num_inputs
    gradients = [
        _times(tensor, grad_carrier, dtype) if need else None
        for tensor, dtype, need in zip(
            ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad[1:4], strict=True
        )
    ]
    return (None, *gradients, *(None,) * (ctx.num_inputs - 4))


_linear_policy_gradient.register_autograd(_policy_autograd, setup_context=_save_for_policy)


def linear_policy_gradient(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    head: Head,
    row_class: Tensor | None,
    inputs: PolicyInputs,
    spec: PolicyLossSpec,
    weights: Tensor,
    entropy_weights: Tensor | None,
    *,
    chunk_rows: int | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """logp (N,) and entropy (N,), detached, and a zero whose gradient is that of the loss.

    The loss is sum_t weights_t loss_t + entropy_weights_t entropy_t over rows that are not of the
    class SKIP, whose results are 0. Its gradients are made here and wait for the backward.
    """
    per_token = isinstance(head.temperature, Tensor)
    needed = [t is not None and t.requires_grad for t in (hidden, weight, head.bias)]
    logp, entropy, carrier, *_ = _linear_policy_gradient(
        needed,
        hidden,
        weight,
        head.bias,
        targets,
        head.temperature if per_token else None,
        row_class,
        1.0 if per_token else float(head.temperature),
        float(head.logit_scale),
        head.softcap,
        chunk_rows,
        backend,
        inputs.advantages,
        inputs.old_logprobs,
        inputs.ref_logprobs,
        inputs.policy_weights,
        weights,
        entropy_weights,
        *spec_arguments(spec),
    )
    return logp.detach(), entropy.detach(), carrier
