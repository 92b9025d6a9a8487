"""The loss maths in plain torch, straight from the equations: the CPU product and the oracle.

Axes: N tokens (flat), D hidden, V vocabulary, B rollouts (sequences), K arms.

Every function takes validated, flat tensors (`sec_grpo.ops` validates and flattens) and computes
in float32, or in float64 when the input is float64. Gradients are autograd's: nothing here has a
hand-written backward. `linear_logprob` holds the whole (N, V) logits, which is what makes it
obvious; `linear_chunked` is the one to train with.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TOKEN_MEAN_LOSSES = ("bnpo", "dapo", "cispo")
SEQUENCE_MEAN_LOSSES = ("grpo", "sapo")
LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo")
KL_TYPES = ("k1", "k2", "k3")
IMPORTANCE_SAMPLING_LEVELS = ("token", "sequence")
SCALES = ("group", "batch", "none")

# exp(60) = 1.1e26: sums of such terms stay inside float32, and exp of anything larger would turn
# a clipped token's zero gradient into 0 * inf = NaN.
MAX_LOG_RATIO = 60.0


@dataclass(frozen=True)
class PolicyLossSpec:
    """What `policy_loss` computes for one token, and how tokens are weighted."""

    loss_type: str = "dapo"
    importance_sampling_level: str = "token"
    epsilon_low: float = 0.2
    epsilon_high: float = 0.2
    delta: float | None = None
    beta: float = 0.0
    kl_type: str = "k3"
    sapo_temperature_pos: float = 1.0
    sapo_temperature_neg: float = 1.05


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
    *,
    scale: str,
    leave_one_out: bool,
    unbiased: bool,
    eps: float,
    categories: Tensor | None,
    num_categories: int,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Advantages (B,), dead (B,), and sum of |A| and counts (K,), of float32 `rewards` (B,).

    Sums run in float64 and are rounded once at the end.
    """
    _, group = torch.unique(group_ids, return_inverse=True)
    num_groups = rewards.numel()
    r = rewards.double()
    size = segment_sum(torch.ones_like(r), group, num_groups)[group]
    mean = segment_sum(r, group, num_groups)[group] / size

    first = torch.zeros_like(r).index_copy(0, group, r)[group]
    # r - first is NaN for NaN and for inf, which must show rather than pass for a dead group.
    differs = (r - first != 0).double()
    dead = segment_sum(differs, group, num_groups)[group] == 0

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
        return advantages, dead, None, None
    known = (categories >= 0) & (categories < num_categories)
    arm = torch.where(known, categories, num_categories)
    total = segment_sum(advantages.abs().double(), arm, num_categories + 1)[:-1].float()
    counts = segment_sum(torch.ones_like(arm), arm, num_categories + 1)[:-1]
    return advantages, dead, total, counts


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kl_type: str) -> Tensor:
    """Per-token estimate of KL(policy || reference), Schulman's k1, k2 or k3."""
    if kl_type == "k1":
        return logprobs - ref_logprobs
    if kl_type == "k2":
        return (logprobs - ref_logprobs) ** 2 / 2
    log_ratio = (ref_logprobs - logprobs).clamp(max=MAX_LOG_RATIO)
    return log_ratio.exp() - log_ratio - 1


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


def policy_loss(
    logprobs: Tensor,
    advantages: Tensor,
    *,
    mask: Tensor,
    seq_index: Tensor,
    num_sequences: int,
    old_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    spec: PolicyLossSpec,
    denominators: Denominators,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss (scalar) and metrics of flat tokens: all tensors (N,), `mask` bool.

    Token t of sequence `seq_index[t]` counts where `mask[t]`; other entries may hold anything,
    NaN included.
    """
    dtype = accumulation_dtype(logprobs)
    logp = torch.where(mask, logprobs.to(dtype), 0.0)
    adv = torch.where(mask, advantages.to(dtype), 0.0)
    old = logp.detach() if old_logprobs is None else torch.where(mask, old_logprobs.to(dtype), 0.0)

    log_ratio = logp - old
    if spec.importance_sampling_level == "sequence":
        lengths = segment_sum(mask.to(dtype), seq_index, num_sequences).clamp(min=1)
        log_ratio = (segment_sum(log_ratio, seq_index, num_sequences) / lengths)[seq_index]
    ratio = log_ratio.clamp(max=MAX_LOG_RATIO).exp()

    low, high = 1 - spec.epsilon_low, 1 + spec.epsilon_high
    if spec.loss_type == "cispo":
        token_loss = -ratio.detach().clamp(max=spec.epsilon_high) * adv * logp
        low_clipped = torch.zeros_like(mask)
        high_clipped = (ratio > spec.epsilon_high) & (adv > 0)
    elif spec.loss_type == "sapo":
        # full_like: two floats would give float32, which a float64 caller would see.
        positive = torch.full_like(adv, spec.sapo_temperature_pos)
        temperature = torch.where(adv > 0, positive, spec.sapo_temperature_neg)
        gate = torch.sigmoid(temperature * (ratio - 1)) * 4 / temperature
        token_loss = -gate * adv
        low_clipped = high_clipped = torch.zeros_like(mask)
    else:
        capped = ratio if spec.delta is None else ratio.clamp(max=spec.delta)
        token_loss = -torch.minimum(capped * adv, ratio.clamp(low, high) * adv)
        low_clipped = (ratio < low) & (adv < 0)
        high_clipped = (ratio > high) & (adv > 0)

    kl = torch.zeros_like(logp)
    if ref_logprobs is not None:
        ref = torch.where(mask, ref_logprobs.to(dtype), 0.0)
        kl = kl_estimate(logp, ref, spec.kl_type)
        if spec.beta != 0:
            token_loss = token_loss + spec.beta * kl

    weights = token_weights(spec, denominators, mask, seq_index, num_sequences, dtype)
    loss = (weights * token_loss).sum()

    num_tokens = mask.sum()

    def mean(values: Tensor) -> Tensor:
        return torch.where(mask, values.detach().to(dtype), 0.0).sum() / num_tokens.clamp(min=1)

    present = torch.cat([ratio.new_zeros(1), torch.where(mask, ratio.detach(), 0.0)])
    metrics = {
        "clip_ratio/low_mean": mean(low_clipped),
        "clip_ratio/high_mean": mean(high_clipped),
        "clip_ratio/region_mean": mean(low_clipped | high_clipped),
        "ratio/mean": mean(ratio),
        "ratio/max": present.max(),
        "kl": mean(kl),
        "num_tokens": num_tokens,
    }
    return loss, metrics


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
    advantages: Tensor,
    *,
    mask: Tensor,
    seq_index: Tensor,
    num_sequences: int,
    old_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    spec: PolicyLossSpec,
    denominators: Denominators,
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
    loss, metrics = policy_loss(
        logp,
        advantages,
        mask=mask,
        seq_index=seq_index,
        num_sequences=num_sequences,
        old_logprobs=old_logprobs,
        ref_logprobs=ref_logprobs,
        spec=spec,
        denominators=denominators,
    )
    if entropy_coef != 0:
        weights = token_weights(spec, denominators, mask, seq_index, num_sequences, logp.dtype)
        loss = loss - entropy_coef * (weights * torch.where(mask, entropy, 0.0)).sum()
    kept = torch.where(mask, entropy.detach(), 0.0)
    metrics["entropy"] = kept.sum() / mask.sum().clamp(min=1)
    return loss, logp.detach(), entropy.detach(), metrics
