"""Policy loss straight from hidden states and the head's weight.

Axes: N tokens (packed), T padded length, D hidden, V vocabulary, B rollouts (sequences).
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sec_grpo.kernels import linear_policy_loss as single_pass
from sec_grpo.kernels import reference
from sec_grpo.kernels.reference import Denominators, PolicyLossSpec
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
from sec_grpo.ops.linear import (
    LinearLogprob,
    autocast,
    check_head,
    check_temperature,
    linear_logprob,
)

MemoryMode = Literal["auto", "fast", "low"]


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

    def pack(self, tensor: Tensor) -> Tensor:
        """(N,) kept tokens of a tensor in the source layout; a trailing D stays."""
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
    skip_dead: bool = False,
    memory_mode: MemoryMode = "auto",
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
    completions) and without skip_dead. On the CPU, tokens without a gradient (advantage 0 or
    clipped) cost one product, not three.

    In memory_mode "fast" the gradients are made in the forward, from the logits that are there
    anyway: three products with the weight, and until the backward a float32 (V, D) and an (N, D)
    gradient are held. "low" makes the logits a second time in the backward: four products. "auto"
    is fast where d loss/d logp of a token follows from that token alone, which sequence-level
    ratios, vespo, off_policy_threshold and top_entropy_quantile do not allow, and low there. Both
    differ by rounding only.

    Args:
        hidden: (N, D) with cu_seqlens, or (B, T, D); the state that predicts each target.
        targets: (N,) or (B, T) int64 token ids in [0, V), at masked positions too.
        entropy_coef: at least 0; above 0 the entropy bonus has a gradient.
        weight, bias, temperature, logit_scale, softcap, chunk_size: as in `linear_logprob`.
        sampling_logprobs: what the sampler reported, in targets' shape, for off_policy_threshold;
            None takes old_logprobs (without either, nothing is off-policy).
        off_policy_threshold: in nats, above 0; None keeps every sequence.
        top_entropy_quantile: the share of tokens kept, in (0, 1], of the tokens at hand.
        skip_dead: leave sequences whose advantages are all 0 out of the head as well, where they
            have no gradient (beta and entropy_coef 0). They stay in the denominators; their
            logprobs and entropy come back as 0, and the metrics are over the other tokens.
        memory_mode: see above; "fast" refuses what it cannot do.
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
        check_temperature(temperature, targets)

    filtered = off_policy_threshold is not None or top_entropy_quantile < 1
    fast = _is_fast(memory_mode, spec, filtered)
    if skip_dead and beta == 0 and entropy_coef == 0:
        if denominators.num_items_in_batch is None:
            num_items = layout.flat_mask(device).sum()
            denominators = dataclasses.replace(denominators, num_items_in_batch=num_items)
        layout = _without_dead(layout, tensors, device)
    kept = _Kept(layout, device)
    loss = _Loss(kept, kept.pack_all(tensors), spec, denominators, entropy_coef, backend)
    packed_temperature = temperature
    if isinstance(temperature, Tensor):
        packed_temperature = kept.pack(temperature)
    head = _Head(weight, bias, packed_temperature, logit_scale, softcap, chunk_size)
    packed_hidden, packed_targets = kept.pack(hidden), kept.pack(targets)
    needs_gradient = any(t is not None and t.requires_grad for t in (hidden, weight, bias))
    if fast and needs_gradient and torch.is_grad_enabled():
        return loss.fast(packed_hidden, packed_targets, head)
    logprobs, entropy = head.logprobs(packed_hidden, packed_targets)
    keep = None
    if off_policy_threshold is not None:
        sampling = old_logprobs if sampling_logprobs is None else sampling_logprobs
        if sampling is not None:
            keep = loss.near_sampler(logprobs, kept.pack(sampling), off_policy_threshold)
    varied = None
    if top_entropy_quantile < 1:
        varied = top_entropy_mask(entropy, quantile=top_entropy_quantile)
    return loss.reduce(logprobs, entropy, keep, varied)


@dataclasses.dataclass(frozen=True)
class _Head:
    """The head and its constants, for packed tokens."""

    weight: Tensor
    bias: Tensor | None
    temperature: float | Tensor
    logit_scale: float
    softcap: float | None
    chunk_size: int | None

    def logprobs(self, hidden: Tensor, targets: Tensor) -> LinearLogprob:
        result = linear_logprob(
            hidden,
            self.weight,
            targets,
            bias=self.bias,
            temperature=self.temperature,
            logit_scale=self.logit_scale,
            softcap=self.softcap,
            return_entropy=True,
            chunk_size=self.chunk_size,
        )
        assert isinstance(result, LinearLogprob)
        return result


@dataclasses.dataclass(frozen=True)
class _Loss:
    """The loss over packed tokens, apart from where their log-probabilities come from."""

    kept: _Kept
    tensors: LossTensors
    spec: PolicyLossSpec
    denominators: Denominators
    entropy_coef: float
    backend: str

    def weights(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """(N,)"""
        layout = self.kept.layout
        return reference.token_weights(
            self.spec,
            self.denominators,
            layout.flat_mask(device),
            layout.seq_index(device),
            layout.num_sequences,
            dtype,
        )

    def near_sampler(self, logprobs: Tensor, sampling: Tensor, threshold: float) -> Tensor:
        """(N,) tokens of sequences near the sampler, or with an advantage of at least 0."""
        layout = self.kept.layout
        near = near_sampler(logprobs, sampling, layout, threshold)
        near = near[layout.seq_index(logprobs.device)]
        return (self.tensors.spread_advantages(layout) >= 0) | near

    def reduce(
        self, logprobs: Tensor, entropy: Tensor, keep: Tensor | None, varied: Tensor | None
    ) -> LinearPolicyLoss:
        """The loss with policy terms in `keep` and `varied` (N,) and the bonus in `varied` only."""
        tensors = self.tensors
        for subset in (keep, varied):
            tensors = tensors if subset is None else tensors.keeping(subset)
        loss, metrics = dispatch_policy_loss(
            logprobs, self.kept.layout, tensors, self.spec, self.denominators, self.backend
        )
        if self.entropy_coef != 0:
            weights = self.weights(entropy.device, entropy.dtype)
            weights = weights if varied is None else torch.where(varied, weights, 0.0)
            loss = loss - self.entropy_coef * (weights * entropy).sum()
        metrics["entropy"] = entropy.detach().sum() / max(entropy.numel(), 1)
        unpack = self.kept.unpack
        return LinearPolicyLoss(loss, unpack(logprobs.detach()), unpack(entropy.detach()), metrics)

    def fast(self, hidden: Tensor, targets: Tensor, head: _Head) -> LinearPolicyLoss:
        """The loss with its gradient made in the forward."""
        _checks.check_tensor("weight", head.weight)
        cast_hidden, weight, bias = autocast(hidden, head.weight, head.bias)
        assert cast_hidden is not None
        assert weight is not None
        hidden = cast_hidden
        check_head(
            hidden,
            weight,
            targets,
            bias,
            head.temperature,
            head.logit_scale,
            head.softcap,
            head.chunk_size,
        )
        weights = self.weights(hidden.device, reference.accumulation_dtype(hidden))
        logprobs, entropy, carrier = single_pass.linear_policy_gradient(
            hidden,
            weight,
            targets,
            bias=bias,
            temperature=head.temperature,
            logit_scale=head.logit_scale,
            softcap=head.softcap,
            inputs=self.tensors.inputs(self.kept.layout, hidden.device),
            spec=self.spec,
            weights=weights,
            entropy_weights=-self.entropy_coef * weights if self.entropy_coef != 0 else None,
            chunk_rows=head.chunk_size,
        )
        result = self.reduce(logprobs, entropy, None, None)
        return result._replace(loss=result.loss + carrier)


def _is_fast(memory_mode: str, spec: PolicyLossSpec, filtered: bool) -> bool:
    _checks.check_choice("memory_mode", memory_mode, ("auto", "fast", "low"))
    possible = single_pass.depends_on_own_token_only(spec) and not filtered
    if memory_mode == "fast" and not possible:
        raise ValueError(
            "memory_mode must be 'auto' or 'low' with importance_sampling_level='sequence', "
            "loss_type='vespo', off_policy_threshold or top_entropy_quantile, whose gradient of a "
            "token depends on other tokens, got 'fast'"
        )
    return possible and memory_mode != "low"


def _without_dead(
    layout: _checks.Layout, tensors: LossTensors, device: torch.device
) -> _checks.Layout:
    """The layout with the sequences masked whose unmasked tokens all have advantage 0."""
    mask, seq_index = layout.flat_mask(device), layout.seq_index(device)
    matters = mask & (tensors.spread_advantages(layout) != 0)
    live = reference.segment_sum(matters.int(), seq_index, layout.num_sequences) > 0
    return dataclasses.replace(layout, mask=(mask & live[seq_index]).reshape(layout.shape))


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
