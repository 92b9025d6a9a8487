"""Log-probabilities and policy losses straight from hidden states and the head's weight.

Axes: N tokens (packed), T padded length, D hidden, V vocabulary, B rollouts (sequences).
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sec_grpo.kernels import linear_chunked, reference
from sec_grpo.ops import _checks
from sec_grpo.ops._loss import (
    ImportanceSamplingLevel,
    KlType,
    LossTensors,
    LossType,
    check_denominators,
    check_spec,
    dispatch_policy_loss,
)
from sec_grpo.ops.correction import near_sampler, top_entropy_mask


class LinearLogprob(NamedTuple):
    """What `linear_logprob` returns with `return_entropy=True`."""

    logprobs: Tensor
    """In the shape of targets; float32 (float64 for float64 hidden)."""
    entropy: Tensor
    """In the shape of targets, in nats; same dtype."""


class LinearPolicyLoss(NamedTuple):
    """What `linear_policy_loss` returns."""

    loss: Tensor
    """Scalar, float32 (float64 for float64 hidden), differentiable in hidden, weight and bias."""
    logprobs: Tensor
    """In the shape of targets, detached; 0 where masked."""
    entropy: Tensor
    """In the shape of targets, detached, in nats; 0 where masked."""
    metrics: dict[str, Tensor]
    """Those of `policy_loss`, and "entropy"."""


def _autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors as F.linear would take them under torch.autocast: float64 stays."""
    device_type = next(t.device.type for t in tensors if t is not None)
    if not torch.is_autocast_enabled(device_type):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device_type)
    return [t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors]


def _check_head(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    temperature: float | Tensor,
    logit_scale: float,
    softcap: float | None,
    chunk_size: int | None,
) -> None:
    _checks.check_dtype("hidden", hidden, _checks.FLOAT_DTYPES)
    _checks.check_dtype("weight", weight, _checks.FLOAT_DTYPES)
    if hidden.dim() not in (2, 3):
        raise ValueError(f"hidden must have shape (N, D) or (B, T, D), got {tuple(hidden.shape)}")
    if weight.dim() != 2 or weight.shape[0] == 0 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"weight must have shape (V, D) with D = {hidden.shape[-1]} of hidden, got "
            f"{tuple(weight.shape)}"
        )
    if weight.dtype != hidden.dtype:
        raise TypeError(
            f"weight must have the dtype of hidden, {hidden.dtype}, got {weight.dtype}; cast one, "
            "or use torch.autocast"
        )
    _checks.check_device("weight", weight, hidden.device, "hidden")
    _checks.check_targets(targets, weight.shape[0])
    _checks.check_shape("targets", targets, tuple(hidden.shape[:-1]), "hidden without D")
    _checks.check_device("targets", targets, hidden.device, "hidden")
    if bias is not None:
        _checks.check_dtype("bias", bias, _checks.FLOAT_DTYPES)
        _checks.check_shape("bias", bias, (weight.shape[0],), "V of weight")
        _checks.check_device("bias", bias, hidden.device, "hidden")
    _check_temperature(temperature, targets)
    _checks.check_number("logit_scale", logit_scale, 0, strict=True)
    if softcap is not None:
        _checks.check_number("softcap", softcap, 0, strict=True)
    if chunk_size is not None and (not isinstance(chunk_size, int) or chunk_size < 1):
        raise ValueError(f"chunk_size must be an integer above 0 (rows), got {chunk_size!r}")


def _check_temperature(temperature: float | Tensor, targets: Tensor) -> None:
    if not isinstance(temperature, Tensor):
        _checks.check_number("temperature", temperature, 0, strict=True)
        return
    _checks.check_dtype("temperature", temperature, _checks.FLOAT_DTYPES)
    _checks.check_shape("temperature", temperature, tuple(targets.shape), "like targets")
    _checks.check_device("temperature", temperature, targets.device, "hidden")
    if temperature.requires_grad:
        raise ValueError("temperature must not require grad; pass temperature.detach()")
    if _checks.on_cpu(temperature) and not bool((temperature > 0).all()):
        raise ValueError(f"temperature must be above 0, got a minimum of {temperature.min()}")


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    return_entropy: bool = False,
    chunk_size: int | None = None,
    backend: Literal["auto", "torch"] = "auto",
) -> Tensor | LinearLogprob:
    """Log-probability of each target under a linear head, without the (N, V) logits in memory.

    ``z = (hidden weight^T + bias) logit_scale``; with a soft cap, ``z = softcap tanh(z / softcap)``
    (Gemma 2, arXiv 2408.00118); ``z = z / temperature``; then ``logp = z[target] - logsumexp(z)``
    and ``entropy = -sum_v p_v log p_v``, both in nats.

    Rows go through in chunks, and the backward recomputes their logits: about 3 (C, V) buffers of
    float32 for C rows, and a float32 (V, D) gradient where the weight is trained. The logits of
    bfloat16 and float16 inputs are accumulated and kept in float32, as is the weight's gradient
    over all chunks, rounded to the weight's dtype once.

    Args:
        hidden: (N, D) or (B, T, D), float; differentiable.
        weight: (V, D), hidden's dtype; differentiable. Under torch.autocast hidden, weight and bias
            are cast to its dtype first, as in F.linear.
        targets: (N,) or (B, T) int64 token ids in [0, V).
        bias: (V,); differentiable. -inf bans a token: probability 0, under a soft cap too.
        temperature: above 0; a number, or one for each token in the shape of targets (a constant:
            it gets no gradient).
        logit_scale, softcap: above 0.
        return_entropy: also return the entropy, differentiable.
        chunk_size: rows in a chunk; the result depends on it only by rounding. None takes as many
            rows as 64 MiB (CPU) or 256 MiB (GPU) of logits hold, at least 16.
        backend: "torch" or "auto", the same for now: there is no Triton kernel.

    Returns:
        logprobs in the shape of targets (float32, or float64 for float64 hidden); with
        ``return_entropy`` LinearLogprob(logprobs, entropy). Never above 0.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or range, naming the argument. Values of
            targets and temperature are looked at on the CPU only.
    """
    _checks.resolve_torch_only(backend, "linear_logprob")
    _checks.check_tensor("hidden", hidden)
    _checks.check_tensor("weight", weight)
    cast_hidden, cast_weight, cast_bias = _autocast(hidden, weight, bias)
    assert cast_hidden is not None
    assert cast_weight is not None
    _check_head(
        cast_hidden, cast_weight, targets, cast_bias, temperature, logit_scale, softcap, chunk_size
    )
    logp, entropy = linear_chunked.linear_logprob(
        cast_hidden.reshape(-1, hidden.shape[-1]),
        cast_weight,
        targets.reshape(-1),
        bias=cast_bias,
        temperature=temperature.reshape(-1) if isinstance(temperature, Tensor) else temperature,
        logit_scale=logit_scale,
        softcap=softcap,
        return_entropy=return_entropy,
        chunk_rows=chunk_size,
    )
    if not return_entropy:
        return logp.reshape(targets.shape)
    assert entropy is not None
    return LinearLogprob(logp.reshape(targets.shape), entropy.reshape(targets.shape))


class _Kept:
    """The unmasked tokens of a layout, packed: what the head has to be applied to."""

    def __init__(self, layout: _checks.Layout, device: torch.device) -> None:
        offsets = layout.offsets(device)
        self.rows: Tensor | None = None
        if layout.mask is not None:
            mask = layout.flat_mask(device)
            before = torch.cat([offsets.new_zeros(1), mask.cumsum(0)])
            offsets = before[offsets]
            self.rows = mask.nonzero()[:, 0]
        num_tokens = layout.num_tokens if self.rows is None else self.rows.numel()
        self.source = layout
        self.layout = _checks.Layout((num_tokens,), layout.num_sequences, offsets, None)

    def pack(self, tensor: Tensor | None) -> Tensor | None:
        """(N,) kept tokens of a tensor in the source layout; a trailing D stays."""
        if tensor is None:
            return None
        extra = tensor.shape[len(self.source.shape) :]
        flat = tensor.reshape(-1, *extra)
        return flat if self.rows is None else flat.index_select(0, self.rows)

    def pack_all(self, tensors: LossTensors) -> LossTensors:
        """The tensors per token packed, those per sequence as they are."""
        if self.rows is None:
            return tensors
        rows = self.rows

        def packed(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.index_select(0, rows)

        advantages = tensors.advantages
        return dataclasses.replace(
            tensors,
            advantages=advantages[rows] if tensors.per_token_advantages else advantages,
            old_logprobs=packed(tensors.old_logprobs),
            ref_logprobs=packed(tensors.ref_logprobs),
            policy_weights=packed(tensors.policy_weights),
        )

    def unpack(self, tensor: Tensor) -> Tensor:
        """Back to the source layout, 0 where masked."""
        if self.rows is None:
            return tensor.reshape(self.source.shape)
        full = tensor.new_zeros(self.source.num_tokens)
        return full.index_copy(0, self.rows, tensor).reshape(self.source.shape)


def linear_policy_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    advantages: Tensor,
    *,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    chunk_size: int | None = None,
    entropy_coef: float = 0.0,
    old_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    is_weights: Tensor | None = None,
    policy_mask: Tensor | None = None,
    sampling_logprobs: Tensor | None = None,
    off_policy_threshold: float | None = None,
    top_entropy_quantile: float = 1.0,
    loss_type: LossType = "dapo",
    importance_sampling_level: ImportanceSamplingLevel = "token",
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
    delta: float | None = None,
    dual_clip: float | None = None,
    beta: float = 0.0,
    kl_type: KlType = "k3",
    kl_bias_correction: bool = False,
    sapo_temperature_pos: float = 1.0,
    sapo_temperature_neg: float = 1.05,
    vespo_k_pos: float = 2.0,
    vespo_lambda_pos: float = 3.0,
    vespo_k_neg: float = 3.0,
    vespo_lambda_neg: float = 2.0,
    num_items_in_batch: float | Tensor | None = None,
    num_sequences_in_batch: float | Tensor | None = None,
    max_completion_length: float | None = None,
    backend: Literal["auto", "torch"] = "auto",
) -> LinearPolicyLoss:
    """`policy_loss` of `linear_logprob`, without the (N, V) logits in memory.

    ``loss = policy_loss(linear_logprob(hidden, ...)) - entropy_coef sum_t w_t entropy_t``, with
    w_t the weight that ``loss_type`` gives to token t, as documented in `policy_loss`.

    off_policy_threshold applies `off_policy_mask` to the log-probabilities found here, and
    top_entropy_quantile `top_entropy_mask` to the entropies, to the bonus as well as to the policy
    term; both on top of policy_mask.

    Masked tokens cost no head product: only unmasked rows go through it. On a GPU, finding how
    many there are is the one host synchronisation, and there is none without a mask (packed
    completions).

    Args:
        hidden: (N, D) with cu_seqlens, or (B, T, D); the state that predicts each target.
        targets: (N,) or (B, T) int64 token ids in [0, V), at masked positions too.
        entropy_coef: at least 0; above 0 the entropy bonus has a gradient.
        weight, bias, temperature, logit_scale, softcap, chunk_size: as in `linear_logprob`.
        sampling_logprobs: what the sampler reported, in targets' shape, for off_policy_threshold;
            None takes old_logprobs (without either, nothing is off-policy).
        off_policy_threshold: in nats, above 0; None keeps every sequence.
        top_entropy_quantile: the share of tokens kept, in (0, 1], of the tokens at hand.
        advantages, mask, cu_seqlens, old_logprobs, ref_logprobs, is_weights, policy_mask and the
            loss keywords: as in `policy_loss`, with targets' shape where it says logprobs'.
        backend: "torch" or "auto", the same for now for the head; with "auto" on a GPU the loss
            over its log-probabilities is the Triton kernel.

    Returns:
        LinearPolicyLoss(loss, logprobs, entropy, metrics).

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or range, naming the argument.
    """
    _checks.resolve_torch_only(backend, "linear_policy_loss")
    _checks.check_dtype("hidden", hidden, _checks.FLOAT_DTYPES)
    _checks.check_dtype("targets", targets, (torch.int64,))
    device = hidden.device
    layout = _checks.check_layout("targets", tuple(targets.shape), device, mask, cu_seqlens)
    _checks.check_shape("hidden", hidden, (*layout.shape, hidden.shape[-1]), "targets, D")
    spec = check_spec(
        loss_type=loss_type,
        importance_sampling_level=importance_sampling_level,
        epsilon_low=epsilon_low,
        epsilon_high=epsilon_high,
        delta=delta,
        dual_clip=dual_clip,
        beta=beta,
        kl_type=kl_type,
        kl_bias_correction=kl_bias_correction,
        sapo_temperature_pos=sapo_temperature_pos,
        sapo_temperature_neg=sapo_temperature_neg,
        vespo_k_pos=vespo_k_pos,
        vespo_lambda_pos=vespo_lambda_pos,
        vespo_k_neg=vespo_k_neg,
        vespo_lambda_neg=vespo_lambda_neg,
    )
    tensors = LossTensors.checked(
        layout,
        device,
        "targets",
        spec,
        advantages=advantages,
        old_logprobs=old_logprobs,
        ref_logprobs=ref_logprobs,
        is_weights=is_weights,
        policy_mask=policy_mask,
    )
    denominators = check_denominators(
        loss_type, num_items_in_batch, num_sequences_in_batch, max_completion_length, device
    )
    _check_filters(sampling_logprobs, off_policy_threshold, top_entropy_quantile, layout, device)
    _checks.check_number("entropy_coef", entropy_coef, 0)
    if isinstance(temperature, Tensor):
        _check_temperature(temperature, targets)

    kept = _Kept(layout, device)
    result = linear_logprob(
        kept.pack(hidden),  # type: ignore[arg-type]
        weight,
        kept.pack(targets),  # type: ignore[arg-type]
        bias=bias,
        temperature=kept.pack(temperature) if isinstance(temperature, Tensor) else temperature,  # type: ignore[arg-type]
        logit_scale=logit_scale,
        softcap=softcap,
        return_entropy=True,
        chunk_size=chunk_size,
    )
    assert isinstance(result, LinearLogprob)
    logprobs, entropy = result
    tensors = kept.pack_all(tensors)
    if off_policy_threshold is not None:
        sampling = old_logprobs if sampling_logprobs is None else sampling_logprobs
        if sampling is not None:
            packed = kept.pack(sampling)
            assert packed is not None
            near = near_sampler(logprobs, packed, kept.layout, off_policy_threshold)
            near = near[kept.layout.seq_index(device)]
            tensors = tensors.keeping((tensors.spread_advantages(kept.layout) >= 0) | near)
    varied = None
    if top_entropy_quantile < 1:
        varied = top_entropy_mask(entropy, quantile=top_entropy_quantile)
        tensors = tensors.keeping(varied)
    loss, metrics = dispatch_policy_loss(
        logprobs, kept.layout, tensors, spec, denominators, backend
    )
    if entropy_coef != 0:
        weights = reference.token_weights(
            spec,
            denominators,
            kept.layout.flat_mask(device),
            kept.layout.seq_index(device),
            layout.num_sequences,
            entropy.dtype,
        )
        if varied is not None:
            weights = torch.where(varied, weights, 0.0)
        loss = loss - entropy_coef * (weights * entropy).sum()
    metrics["entropy"] = entropy.detach().sum() / max(entropy.numel(), 1)
    return LinearPolicyLoss(
        loss, kept.unpack(logprobs.detach()), kept.unpack(entropy.detach()), metrics
    )


def _check_filters(
    sampling_logprobs: Tensor | None,
    off_policy_threshold: float | None,
    top_entropy_quantile: float,
    layout: _checks.Layout,
    device: torch.device,
) -> None:
    if sampling_logprobs is not None:
        _checks.check_dtype("sampling_logprobs", sampling_logprobs, _checks.FLOAT_DTYPES)
        _checks.check_shape("sampling_logprobs", sampling_logprobs, layout.shape, "like targets")
        _checks.check_device("sampling_logprobs", sampling_logprobs, device, "targets")
        if off_policy_threshold is None:
            raise ValueError(
                "off_policy_threshold must be given with sampling_logprobs, which only it uses; "
                "for weights pass is_weights=rollout_weights(old_logprobs, sampling_logprobs)"
            )
    if off_policy_threshold is not None:
        _checks.check_number("off_policy_threshold", off_policy_threshold, 0, strict=True)
    _checks.check_number("top_entropy_quantile", top_entropy_quantile, 0, strict=True, high=1)
