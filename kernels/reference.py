"""The loss maths in plain torch, straight from the equations: the CPU product and the oracle.

Axes: N tokens (flat), D hidden, V vocabulary, B rollouts (sequences), K arms.

Every function takes validated, flat tensors (`sec_grpo.ops` validates and flattens) and computes
in float32, or in float64 when the input is float64. Gradients are autograd's: nothing here has a
hand-written backward. `linear_logprob` holds the whole (N, V) logits, which is what makes it
obvious; `linear_chunked` is the one to train with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

SEQUENCE_MEAN_LOSSES = ("grpo", "sapo")
LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")
CLIPPED_LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
KL_TYPES = ("k1", "k2", "k3")
IMPORTANCE_SAMPLING_LEVELS = ("token", "sequence")
SCALES = ("group", "batch", "none")

# exp(60) = 1.1e26: sums of such terms stay inside float32, and exp of anything larger would turn
# a clipped token's zero gradient into 0 * inf = NaN.
MAX_LOG_RATIO = 60.0

# VESPO's bounds, TRL's: of a token's log-ratio, and of a sequence's log weight.
VESPO_MAX_LOG = 20.0
VESPO_MIN_LOG_WEIGHT = math.log(1e-8)


@dataclass(frozen=True)
class PolicyLossSpec:
    """What `policy_loss` computes for one token, and how tokens are weighted."""

    loss_type: str = "dapo"
    importance_sampling_level: str = "token"
    epsilon_low: float = 0.2
    epsilon_high: float = 0.2
    delta: float | None = None
    dual_clip: float | None = None
    beta: float = 0.0
    kl_type: str = "k3"
    kl_bias_correction: bool = False
    sapo_temperature_pos: float = 1.0
    sapo_temperature_neg: float = 1.05
    vespo_k_pos: float = 2.0
    vespo_lambda_pos: float = 3.0
    vespo_k_neg: float = 3.0
    vespo_lambda_neg: float = 2.0

    @property
    def negative_cap(self) -> float | None:
        """Upper bound of the ratio where A < 0; `delta` and `dual_clip` are two names of it."""
        return self.delta if self.dual_clip is None else self.dual_clip


SPEC_SCHEMA = (
    "str loss_type, str importance_sampling_level, str kl_type, bool kl_bias_correction, "
    "float? negative_cap, float[] numbers"
)
"""how custom operators take a `PolicyLossSpec`"""
_NUMBERS = (
    "epsilon_low",
    "epsilon_high",
    "beta",
    "sapo_temperature_pos",
    "sapo_temperature_neg",
    "vespo_k_pos",
    "vespo_lambda_pos",
    "vespo_k_neg",
    "vespo_lambda_neg",
)


def spec_arguments(spec: PolicyLossSpec) -> tuple[str, str, str, bool, float | None, list[float]]:
    """The arguments of `SPEC_SCHEMA`."""
    return (
        spec.loss_type,
        spec.importance_sampling_level,
        spec.kl_type,
        spec.kl_bias_correction,
        spec.negative_cap,
        [getattr(spec, name) for name in _NUMBERS],
    )


def spec_of_arguments(
    loss_type: str,
    importance_sampling_level: str,
    kl_type: str,
    kl_bias_correction: bool,
    negative_cap: float | None,
    numbers: Sequence[float],
) -> PolicyLossSpec:
    """The spec that `spec_arguments` took apart, its bound under the name `delta`."""
    return PolicyLossSpec(
        loss_type=loss_type,
        importance_sampling_level=importance_sampling_level,
        kl_type=kl_type,
        kl_bias_correction=kl_bias_correction,
        delta=negative_cap,
        **dict(zip(_NUMBERS, numbers, strict=True)),
    )


@dataclass(frozen=True)
class Denominators:
    """Batch-wide counts; None takes the count of the tensors at hand."""

    num_items_in_batch: float | Tensor | None = None
    num_sequences_in_batch: float | Tensor | None = None
    max_completion_length: float | None = None


def accumulation_dtype(tensor: Tensor) -> torch.dtype:
    """float64 for float64 input, float32 for everything else."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def at_least_one(count: float | Tensor) -> float | Tensor:
    """The count, or 1 for an empty batch, whose sums are 0 whatever they are divided by."""
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)


def segment_sum(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Sum of `values` (N,) over equal `index` (N,): (size,)."""
    return values.new_zeros(size).index_add(0, index, values)


def group_advantages(
    rewards: Tensor,
    group_ids: Tensor,
    scale: str,
    leave_one_out: bool,
    unbiased: bool,
    eps: float,
    categories: Tensor | None,
    num_categories: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `advantages_operator.group_advantages` returns, its sums in float64 up to the end."""
    _, group = torch.unique(group_ids, return_inverse=True)
    num_groups = rewards.numel()
    r = rewards.double()
    size = segment_sum(torch.ones_like(r), group, num_groups)[group]
    mean = segment_sum(r, group, num_groups)[group] / size

    largest, smallest = (
        r.new_zeros(num_groups).scatter_reduce(0, group, r, reduce, include_self=False)
        for reduce in ("amax", "amin")
    )
    # The difference is NaN for NaN and for inf, which must show rather than pass for a dead group.
    dead = (largest - smallest == 0)[group]

    if leave_one_out:
        centred = (r - mean) * size / (size - 1).clamp(min=1)
    else:
        centred = r - mean
    if scale == "none":
        advantages = centred
    elif scale == "group":
        squares = segment_sum((r - mean) ** 2, group, num_groups)[group]
        advantages = centred / ((squares / (size - int(unbiased)).clamp(min=1)).sqrt() + eps)
    else:
        squares = ((r - r.mean()) ** 2).sum()
        advantages = centred / ((squares / max(r.numel() - int(unbiased), 1)).sqrt() + eps)
    # Exactly 0 by definition, not by luck of rounding; with eps = 0 the formula has 0 / 0.
    advantages = torch.where(dead, 0.0, advantages).float()

    if categories is None:
        return advantages, dead, advantages.new_empty(0), group.new_empty(0)
    known = (categories >= 0) & (categories < num_categories)
    arm = torch.where(known, categories, num_categories)
    total = segment_sum(advantages.abs().double(), arm, num_categories + 1)[:-1].float()
    counts = segment_sum(torch.ones_like(arm), arm, num_categories + 1)[:-1]
    return advantages, dead, total, counts


def cap_log_ratio(log_ratio: Tensor) -> Tensor:
    """At most MAX_LOG_RATIO. Not clamp, through which the gradient of a NaN is 0."""
    return torch.where(log_ratio > MAX_LOG_RATIO, MAX_LOG_RATIO, log_ratio)


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kl_type: str) -> Tensor:
    """Per-token estimate of KL(policy || reference), Schulman's k1, k2 or k3."""
    if kl_type == "k1":
        return logprobs - ref_logprobs
    if kl_type == "k2":
        return (logprobs - ref_logprobs) ** 2 / 2
    log_ratio = cap_log_ratio(ref_logprobs - logprobs)
    # expm1: near the reference exp(x) - x - 1 in float32 has no digits left, and may be negative.
    return log_ratio.expm1() - log_ratio


def token_weights(
    spec: PolicyLossSpec,
    denominators: Denominators,
    mask: Tensor,
    seq_index: Tensor,
    num_sequences: int,
    dtype: torch.dtype,
) -> Tensor:
    """Weights (N,) with loss = sum of weight * token loss: the one place of every reduction."""
    weights = mask.to(dtype)
    sequences = denominators.num_sequences_in_batch
    sequences = at_least_one(num_sequences if sequences is None else sequences)
    if spec.loss_type == "luspo":
        return weights / sequences
    if spec.loss_type in SEQUENCE_MEAN_LOSSES:
        lengths = segment_sum(weights, seq_index, num_sequences).clamp(min=1)
        return weights / lengths[seq_index] / sequences
    if spec.loss_type == "dr_grpo":
        assert denominators.max_completion_length is not None
        return weights / (sequences * denominators.max_completion_length)
    tokens = denominators.num_items_in_batch
    return weights / at_least_one(weights.sum() if tokens is None else tokens)


@dataclass(frozen=True)
class PolicyInputs:
    """What the loss of flat tokens (N,) reads besides their log-probabilities.

    Entries of masked tokens may hold anything, NaN included. None stands for: all unmasked; the
    policy itself; no reference; weights of 1.
    """

    advantages: Tensor
    mask: Tensor
    seq_index: Tensor
    num_sequences: int
    old_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    policy_weights: Tensor | None = None
    """factor of the policy term of each token, a constant"""
    log_is_weights: Tensor | None = None
    """(B,) log of each sequence's rollout-correction weight, which enters VESPO's weight"""

    def select(self, rows: slice) -> PolicyInputs:
        """The inputs of some of the tokens; of use where no sum over a sequence is taken."""

        def part(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[rows]

        return replace(
            self,
            advantages=self.advantages[rows],
            mask=self.mask[rows],
            seq_index=self.seq_index[rows],
            old_logprobs=part(self.old_logprobs),
            ref_logprobs=part(self.ref_logprobs),
            policy_weights=part(self.policy_weights),
        )

    def kept(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """The values in `dtype`, 0 where masked."""
        return torch.where(self.mask, values.to(dtype), 0.0)

    def sequence_sum(self, values: Tensor) -> Tensor:
        """(N,) for each token the sum over the tokens of its sequence."""
        return segment_sum(values, self.seq_index, self.num_sequences)[self.seq_index]


def vespo_weights(
    log_ratio: Tensor, adv: Tensor, inputs: PolicyInputs, spec: PolicyLossSpec
) -> Tensor:
    """phi = exp(lambda + k log w - lambda w) of each token's sequence, a constant."""
    log_ratio = log_ratio.detach().clamp(-VESPO_MAX_LOG, VESPO_MAX_LOG)
    log_w = inputs.sequence_sum(log_ratio)
    if inputs.log_is_weights is not None:
        log_w = log_w + inputs.log_is_weights.to(adv.dtype)[inputs.seq_index]
    log_w = log_w.clamp(VESPO_MIN_LOG_WEIGHT, VESPO_MAX_LOG)
    k = torch.full_like(adv, spec.vespo_k_pos).where(adv >= 0, spec.vespo_k_neg)
    rate = torch.full_like(adv, spec.vespo_lambda_pos).where(adv >= 0, spec.vespo_lambda_neg)
    return (rate + k * log_w - rate * log_w.exp()).exp()


class Clip(NamedTuple):
    """What `clipped_objective` finds of each token, all (N,); only the objective has a gradient."""

    objective: Tensor
    low: Tensor
    high: Tensor
    capped: Tensor


def clipped_objective(ratio: Tensor, adv: Tensor, spec: PolicyLossSpec) -> Clip:
    """min(ratio A, clip(ratio) A), from below bounded by cap A where A < 0.

    Where the bound is the smaller one, it stands in the ratio's place: a constant.
    """
    lowest, highest, cap = 1 - spec.epsilon_low, 1 + spec.epsilon_high, spec.negative_cap
    falls, rises = adv < 0, adv > 0
    low, high = (ratio < lowest) & falls, (ratio > highest) & rises
    bounded = torch.where(low | high, ratio.detach().clamp(lowest, highest), ratio)
    capped = torch.zeros_like(low)
    if cap is not None:
        capped = (ratio > cap) & falls
        bounded = torch.where(capped, cap, bounded)
    return Clip(bounded * adv, low, high, capped)


class TokenLosses(NamedTuple):
    """What `token_losses` finds of each token, all (N,); log-ratios and KL carry gradient."""

    loss: Tensor
    ratio: Tensor
    kl: Tensor
    low_clipped: Tensor
    high_clipped: Tensor
    capped: Tensor
    phi: Tensor | None


def token_losses(logprobs: Tensor, inputs: PolicyInputs, spec: PolicyLossSpec) -> TokenLosses:
    """The loss of each token, before any reduction: the one place of its maths."""
    dtype = accumulation_dtype(logprobs)
    logp = inputs.kept(logprobs, dtype)
    adv = inputs.kept(inputs.advantages, dtype)
    old = logp.detach() if inputs.old_logprobs is None else inputs.kept(inputs.old_logprobs, dtype)

    token_log_ratio = log_ratio = logp - old
    if spec.importance_sampling_level == "sequence":
        lengths = inputs.sequence_sum(inputs.mask.to(dtype)).clamp(min=1)
        log_ratio = inputs.sequence_sum(log_ratio) / lengths
    ratio = cap_log_ratio(log_ratio).exp()

    low_clipped = high_clipped = capped = torch.zeros_like(inputs.mask)
    phi = None
    if spec.loss_type == "cispo":
        objective = ratio.detach().clamp(max=spec.epsilon_high) * adv * logp
        high_clipped = (ratio > spec.epsilon_high) & (adv > 0)
    elif spec.loss_type == "sapo":
        # full_like: two floats would give float32, which a float64 caller would see.
        positive = torch.full_like(adv, spec.sapo_temperature_pos)
        temperature = torch.where(adv > 0, positive, spec.sapo_temperature_neg)
        objective = torch.sigmoid(temperature * (ratio - 1)) * 4 / temperature * adv
    elif spec.loss_type == "vespo":
        phi = vespo_weights(token_log_ratio, adv, inputs, spec)
        objective = phi * adv * logp
    else:
        objective, low_clipped, high_clipped, capped = clipped_objective(ratio, adv, spec)
    if inputs.policy_weights is not None:
        objective = objective * inputs.kept(inputs.policy_weights, dtype)

    loss = -objective
    kl = torch.zeros_like(logp)
    if inputs.ref_logprobs is not None:
        kl = kl_estimate(logp, inputs.kept(inputs.ref_logprobs, dtype), spec.kl_type)
        if spec.kl_bias_correction:
            kl = kl * ratio
        if spec.beta != 0:
            loss = loss + spec.beta * kl
    return TokenLosses(loss, ratio, kl, low_clipped, high_clipped, capped, phi)


def policy_loss(
    logprobs: Tensor, inputs: PolicyInputs, spec: PolicyLossSpec, denominators: Denominators
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss (scalar) and metrics of flat tokens (N,)."""
    dtype = accumulation_dtype(logprobs)
    tokens = token_losses(logprobs, inputs, spec)
    weights = token_weights(
        spec, denominators, inputs.mask, inputs.seq_index, inputs.num_sequences, dtype
    )
    return (weights * tokens.loss).sum(), token_metrics(tokens, inputs, dtype)


@torch.no_grad()
def token_metrics(
    tokens: TokenLosses, inputs: PolicyInputs, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The metrics of `policy_loss`, over unmasked tokens."""
    num_tokens = inputs.mask.sum()

    def mean(total: Tensor) -> Tensor:
        return total.to(dtype) / num_tokens.clamp(min=1)

    # Masked tokens need no second mask here: without an advantage they are not clipped, and their
    # KL is 0. Low and high exclude each other.
    low, high = tokens.low_clipped.sum(), tokens.high_clipped.sum()
    ratio = inputs.kept(tokens.ratio, dtype)
    smallest = torch.where(inputs.mask, tokens.ratio, torch.inf)
    smallest = torch.cat([smallest.new_full((1,), torch.inf), smallest]).amin()
    metrics = {
        "clip_ratio/low_mean": mean(low),
        "clip_ratio/high_mean": mean(high),
        "clip_ratio/region_mean": mean(low + high),
        "clip_ratio/cap_mean": mean(tokens.capped.sum()),
        "ratio/mean": mean(ratio.sum()),
        "ratio/max": torch.cat([ratio.new_zeros(1), ratio]).amax(),
        "ratio/min": torch.where(num_tokens > 0, smallest, 0.0),
        "kl": mean(tokens.kl.sum()),
        "num_tokens": num_tokens,
    }
    if tokens.phi is not None:
        metrics["vespo/phi_mean"] = mean(inputs.kept(tokens.phi, dtype).sum())
    return metrics


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """log p(target) and entropy, both (N,), of softmax(head(hidden) / temperature).

    hidden (N, D), weight (V, D), targets (N,), bias (V,), temperature a number or (N,).
    """
    dtype = accumulation_dtype(hidden)
    z = hidden.to(dtype) @ weight.to(dtype).T
    if bias is not None:
        z = z + bias.to(dtype)
    z = z * logit_scale
    if softcap is not None:
        # A banned token (bias -inf) stays banned: the cap alone would lift it to -softcap.
        banned = z == -torch.inf
        z = softcap * torch.tanh(z / softcap)
        z = z.masked_fill(banned, -torch.inf)
    z = z / (temperature.to(dtype)[:, None] if isinstance(temperature, Tensor) else temperature)

    logp_all = torch.log_softmax(z, dim=-1)
    logp = logp_all.gather(1, targets[:, None])[:, 0]
    # 0 * -inf is NaN, in the gradient too: the limit of p log p at p = 0 is 0.
    finite = logp_all.masked_fill(logp_all == -torch.inf, 0.0)
    entropy = -(logp_all.exp() * finite).sum(-1)
    return logp, entropy


def linear_policy_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    inputs: PolicyInputs,
    spec: PolicyLossSpec,
    denominators: Denominators,
    *,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    entropy_coef: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Loss, log-probabilities (N,), entropy (N,) and metrics through the full logits."""
    logp, entropy = linear_logprob(
        hidden,
        weight,
        targets,
        bias=bias,
        temperature=temperature,
        logit_scale=logit_scale,
        softcap=softcap,
    )
    loss, metrics = policy_loss(logp, inputs, spec, denominators)
    if entropy_coef != 0:
        weights = token_weights(
            spec, denominators, inputs.mask, inputs.seq_index, inputs.num_sequences, logp.dtype
        )
        loss = loss - entropy_coef * (weights * inputs.kept(entropy, logp.dtype)).sum()
    metrics["entropy"] = inputs.kept(entropy.detach(), logp.dtype).sum() / inputs.mask.sum().clamp(
        min=1
    )
    return loss, logp.detach(), entropy.detach(), metrics
