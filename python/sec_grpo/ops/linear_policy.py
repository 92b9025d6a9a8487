"""Policy loss straight from hidden states and the head's weight.

Axes: N tokens (packed), T padded length, D hidden, V vocabulary, B rollouts (sequences).
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sec_grpo.kernels import linear_operator, reference
from sec_grpo.kernels.head import Head
from sec_grpo.kernels.reference import Denominators, PolicyLossSpec
from sec_grpo.kernels.rows import FORWARD, GRADIENT, SKIP
from sec_grpo.kernels.slopes import depends_on_own_token_only
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
from sec_grpo.ops.linear import autocast, check_head

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
    backend: Literal["auto", "triton", "torch"] = "auto",
) -> LinearPolicyLoss:
    """`policy_loss` of `linear_logprob`, without the (N, V) logits in memory.

    ``loss = policy_loss(linear_logprob(hidden, ...)) - entropy_coef sum_t w_t entropy_t``, with
    w_t the weight that ``loss_type`` gives to token t, as documented in `policy_loss`.

    off_policy_threshold applies `off_policy_mask` to the log-probabilities found here, and
    top_entropy_quantile `top_entropy_mask` to the entropies, to the bonus as well as to the policy
    term; both on top of policy_mask.

    Masked tokens cost no product with the weight, and with mask or skip_dead neither do the
    gradients of tokens that have none (advantage or policy_mask 0, beta and entropy_coef 0). On a
    GPU the host then waits for the count of such rows, after it has queued the first chunk, so that
    the GPU does not wait; without a mask (packed completions) and without skip_dead it never waits.
    On the CPU clipped tokens cost one product, too, not three.

    In memory_mode "fast" the gradients are made in the forward, from the logits that are there
    anyway: three products with the weight, and until the backward a float32 (V, D) and an (N, D)
    gradient are held. "low" makes the logits a second time in the backward, and on a GPU goes
    through the vocabulary in slices there, so that no float32 copy of the weight's gradient is
    needed: four products. "auto" is fast where d loss/d logp of a token follows from that token
    alone, which sequence-level ratios, vespo, off_policy_threshold and top_entropy_quantile do not
    allow. All differ by rounding only.

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
        backend: as in `linear_logprob`.

    Returns:
        LinearPolicyLoss(loss, logprobs, entropy, metrics).

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or range, naming the argument.
    """
    _checks.check_dtype("hidden", hidden, _checks.FLOAT_DTYPES)
    chosen = _checks.resolve_head_backend(backend, hidden)
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
    _checks.check_tensor("weight", weight)
    hidden, weight, bias = autocast(hidden, weight, bias)
    check_head(hidden, weight, targets, bias, temperature, logit_scale, softcap, chunk_size)

    filtered = off_policy_threshold is not None or top_entropy_quantile < 1
    fast = _is_fast(memory_mode, spec, filtered)
    row_class = None
    if mask is not None or skip_dead:
        dead = None
        if beta == 0 and entropy_coef == 0:
            dead = _without_gradient(layout, tensors, spec, device)
            if skip_dead:
                denominators = _with_items(denominators, layout, device)
                layout = _without_dead(layout, tensors, device)
        row_class = _row_class(layout, dead, device)
    loss = _Loss(layout, tensors, spec, denominators, entropy_coef, chosen)
    if isinstance(temperature, Tensor):
        temperature = temperature.reshape(-1)
    head = Head(bias, temperature, logit_scale, softcap)
    rows = (hidden.reshape(-1, hidden.shape[-1]), weight, targets.reshape(-1), head, row_class)
    needs_gradient = any(t is not None and t.requires_grad for t in (hidden, weight, bias))
    if fast and needs_gradient and torch.is_grad_enabled():
        return loss.fast(rows, chunk_size)
    logprobs, entropy = linear_operator.linear_logprob(
        *rows, need_entropy=True, chunk_rows=chunk_size, backend=chosen, memory_mode=memory_mode
    )
    keep = varied = None
    sampling = old_logprobs if sampling_logprobs is None else sampling_logprobs
    if off_policy_threshold is not None and sampling is not None:
        keep = loss.near_sampler(logprobs, sampling.reshape(-1), off_policy_threshold)
    if top_entropy_quantile < 1:
        kept = layout.flat_mask(device)
        varied = top_entropy_mask(entropy, quantile=top_entropy_quantile, mask=kept)
    return loss.reduce(logprobs, entropy, keep, varied)


@dataclasses.dataclass(frozen=True)
class _Loss:
    """The loss of flat tokens (N,), apart from where their log-probabilities come from."""

    layout: _checks.Layout
    tensors: LossTensors
    spec: PolicyLossSpec
    denominators: Denominators
    entropy_coef: float
    backend: str

    def weights(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """(N,)"""
        layout = self.layout
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
        near = near_sampler(logprobs, sampling, self.layout, threshold)
        near = near[self.layout.seq_index(logprobs.device)]
        return (self.tensors.spread_advantages(self.layout) >= 0) | near

    def reduce(
        self, logprobs: Tensor, entropy: Tensor, keep: Tensor | None, varied: Tensor | None
    ) -> LinearPolicyLoss:
        """The loss with policy terms in `keep` and `varied` (N,) and the bonus in `varied` only."""
        tensors = self.tensors
        for subset in (keep, varied):
            tensors = tensors if subset is None else tensors.keeping(subset)
        loss, metrics = dispatch_policy_loss(
            logprobs, self.layout, tensors, self.spec, self.denominators, self.backend
        )
        if self.entropy_coef != 0:
            weights = self.weights(entropy.device, entropy.dtype)
            weights = weights if varied is None else torch.where(varied, weights, 0.0)
            loss = loss - self.entropy_coef * (weights * entropy).sum()
        metrics["entropy"] = entropy.detach().sum() / metrics["num_tokens"].clamp(min=1)
        shape = self.layout.shape
        return LinearPolicyLoss(
            loss, logprobs.detach().reshape(shape), entropy.detach().reshape(shape), metrics
        )

    def fast(
        self, rows: tuple[Tensor, Tensor, Tensor, Head, Tensor | None], chunk_size: int | None
    ) -> LinearPolicyLoss:
        """The loss with its gradient made in the forward."""
        hidden = rows[0]
        weights = self.weights(hidden.device, reference.accumulation_dtype(hidden))
        logprobs, entropy, carrier = linear_operator.linear_policy_gradient(
            *rows,
            self.tensors.inputs(self.layout, hidden.device),
            self.spec,
            weights,
            -self.entropy_coef * weights if self.entropy_coef != 0 else None,
            chunk_rows=chunk_size,
            backend=self.backend,
        )
        # Not `_replace`, nor a part of the tuple: torch.compile up to 2.8 takes neither.
        result = self.reduce(logprobs, entropy, None, None)
        loss = result.loss + carrier
        return LinearPolicyLoss(loss, result.logprobs, result.entropy, result.metrics)


def _is_fast(memory_mode: str, spec: PolicyLossSpec, filtered: bool) -> bool:
    _checks.check_choice("memory_mode", memory_mode, ("auto", "fast", "low"))
    possible = depends_on_own_token_only(spec) and not filtered
    if memory_mode == "fast" and not possible:
        raise ValueError(
            "memory_mode must be 'auto' or 'low' with importance_sampling_level='sequence', "
            "loss_type='vespo', off_policy_threshold or top_entropy_quantile, whose gradient of a "
            "token depends on other tokens, got 'fast'"
        )
    return possible and memory_mode != "low"


def _without_gradient(
    layout: _checks.Layout, tensors: LossTensors, spec: PolicyLossSpec, device: torch.device
) -> Tensor:
    """(N,) tokens whose log-probability has no gradient, without a KL term and entropy bonus."""
    idle = tensors.spread_advantages(layout) == 0
    if tensors.policy_weights is not None:
        idle = idle | (tensors.policy_weights == 0)
    if spec.importance_sampling_level == "token":
        return idle
    # The ratio of a sequence is in the loss of all its tokens.
    seq_index = layout.seq_index(device)
    matters = layout.flat_mask(device) & ~idle
    return reference.segment_sum(matters.int(), seq_index, layout.num_sequences)[seq_index] == 0


def _row_class(layout: _checks.Layout, dead: Tensor | None, device: torch.device) -> Tensor:
    """(N,) uint8: what each row of the head is run for."""
    row_class = torch.full((layout.num_tokens,), GRADIENT, dtype=torch.uint8, device=device)
    if dead is not None:
        row_class = row_class.masked_fill(dead, FORWARD)
    return row_class.masked_fill(~layout.flat_mask(device), SKIP)


def _with_items(
    denominators: Denominators, layout: _checks.Layout, device: torch.device
) -> Denominators:
    """The denominators with the tokens counted, before dead sequences are masked."""
    if denominators.num_items_in_batch is not None:
        return denominators
    num_items = layout.flat_mask(device).sum()
    return dataclasses.replace(denominators, num_items_in_batch=num_items)


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
