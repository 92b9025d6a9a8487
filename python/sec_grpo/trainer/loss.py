"""The policy loss of a pack, through the fused head or through the whole logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from sec_grpo.ops import (
    LinearPolicyLoss,
    linear_policy_loss,
    off_policy_mask,
    policy_loss,
    top_entropy_mask,
)
from sec_grpo.trainer.config import GRPOConfig
from sec_grpo.trainer.critic import value_head, value_loss
from sec_grpo.trainer.policy import call_head, completion_hidden_states, lm_head, whole_logprobs


class PackLoss(NamedTuple):
    """What a pack of N tokens adds to the loss."""

    loss: torch.Tensor
    """scalar; of the packs of an optimizer step the sum is the step's loss"""
    logprobs: torch.Tensor
    """(N,) float32, detached"""
    metrics: dict[str, torch.Tensor]
    """scalars, detached: means over the tokens, and extremes"""
    bonus: torch.Tensor | None
    """scalar, detached: what the entropy took off the loss; None without it"""


def loss_keywords(args: GRPOConfig, inputs: dict[str, Any]) -> dict[str, Any]:
    """The arguments that `policy_loss` and `linear_policy_loss` have in common."""
    return {
        "cu_seqlens": inputs["cu_seqlens"],
        "old_logprobs": inputs["old_logprobs"],
        "ref_logprobs": inputs["ref_logprobs"],
        "loss_type": args.loss_type,
        "importance_sampling_level": args.importance_sampling_level,
        "epsilon_low": args.epsilon,
        "epsilon_high": args.epsilon if args.epsilon_high is None else args.epsilon_high,
        "delta": args.delta,
        "beta": args.beta,
        "kl_bias_correction": args.use_bias_correction_kl,
        "sapo_temperature_pos": args.sapo_temperature_pos,
        "sapo_temperature_neg": args.sapo_temperature_neg,
        "vespo_k_pos": args.vespo_k_pos,
        "vespo_lambda_pos": args.vespo_lambda_pos,
        "vespo_k_neg": args.vespo_k_neg,
        "vespo_lambda_neg": args.vespo_lambda_neg,
        "num_items_in_batch": inputs["num_items_in_batch"],
        "num_sequences_in_batch": inputs["num_sequences_in_batch"],
        "max_completion_length": args.max_completion_length,
    }


def fused_loss(model: nn.Module, args: GRPOConfig, inputs: dict[str, Any]) -> PackLoss:
    """The loss of a pack; the (tokens, vocabulary) logits never exist whole."""
    found: list[LinearPolicyLoss] = []

    def through_head(hidden: torch.Tensor) -> torch.Tensor:
        head = lm_head(model)
        out = linear_policy_loss(
            hidden,
            head.weight,
            inputs["targets"],
            inputs["advantages"],
            bias=head.bias,
            temperature=args.temperature,
            logit_scale=head.logit_scale,
            softcap=head.softcap,
            off_policy_threshold=args.off_policy_mask_threshold,
            top_entropy_quantile=args.top_entropy_quantile,
            entropy_coef=inputs["entropy_coef"] * _entropy_scale(args, inputs),
            **loss_keywords(args, inputs),
        )
        found.append(out)
        return out.loss

    hidden = completion_hidden_states(model, inputs)
    loss = call_head(model, through_head, hidden)
    metrics = found[0].metrics
    critic = value_head(model)
    if critic is not None:
        extra = value_loss(
            critic(hidden),
            inputs["old_values"],
            inputs["returns"],
            clip_range=args.cliprange_value,
            num_items_in_batch=inputs["num_items_in_batch"],
        )
        loss = loss + args.vf_coef * extra.loss
        metrics = {**metrics, **extra.metrics}
    return PackLoss(loss, found[0].logprobs, metrics, _bonus(args, inputs, found[0].entropy))


def whole_logits_loss(model: nn.Module, args: GRPOConfig, inputs: dict[str, Any]) -> PackLoss:
    """The same through the model's own forward."""
    logprobs, entropy = whole_logprobs(model, inputs, args.temperature)
    out = policy_loss(
        logprobs,
        inputs["advantages"],
        policy_mask=_policy_mask(args, inputs, logprobs, entropy),
        **loss_keywords(args, inputs),
    )
    loss = out.loss
    bonus = _bonus(args, inputs, entropy)
    if bonus is not None:
        loss = loss - bonus
        bonus = bonus.detach()
    metrics = {**out.metrics, "entropy": entropy.detach().mean()}
    return PackLoss(loss, logprobs.detach(), metrics, bonus)


def _bonus(args: GRPOConfig, inputs: dict[str, Any], entropy: torch.Tensor) -> torch.Tensor | None:
    """The entropy bonus of a pack's entropies (N,); None where it has no weight."""
    coef: float = inputs["entropy_coef"]
    return coef * _mean_entropy(args, inputs, entropy) if coef else None


def _entropy_scale(args: GRPOConfig, inputs: dict[str, Any]) -> float:
    """What makes the bonus of `linear_policy_loss`, weighted as the loss, a mean over tokens.

    A mean over the tokens that it applies to; for grpo and sapo of each completion's mean.
    """
    sequences, tokens = inputs["num_sequences_in_batch"], inputs["num_tokens"]
    per_token = {
        "dr_grpo": sequences * args.max_completion_length / tokens,
        "luspo": sequences / tokens,
    }
    return per_token.get(args.loss_type, 1.0) / args.top_entropy_quantile


def _mean_entropy(args: GRPOConfig, inputs: dict[str, Any], entropy: torch.Tensor) -> torch.Tensor:
    """The same mean, of a pack's entropies (N,)."""
    if args.top_entropy_quantile < 1:
        kept = top_entropy_mask(entropy, quantile=args.top_entropy_quantile)
        entropy = torch.where(kept, entropy, 0.0) / args.top_entropy_quantile
    if args.loss_type in ("grpo", "sapo"):
        lengths = inputs["cu_seqlens"].diff()
        spread = lengths.repeat_interleave(lengths, output_size=entropy.numel())
        return (entropy / spread).sum() / inputs["num_sequences_in_batch"]
    tokens = "num_items_in_batch" if args.loss_type == "bnpo" else "num_tokens"
    return entropy.sum() / inputs[tokens]


def _policy_mask(
    args: GRPOConfig, inputs: dict[str, Any], logprobs: torch.Tensor, entropy: torch.Tensor
) -> torch.Tensor | None:
    """(N,) bool tokens whose policy term counts; None for all."""
    threshold, old = args.off_policy_mask_threshold, inputs["old_logprobs"]
    mask = None
    if threshold is not None and old is not None:
        offsets = inputs["cu_seqlens"]
        near = off_policy_mask(
            logprobs, old, inputs["advantages"], threshold=threshold, cu_seqlens=offsets
        )
        # Its size is known here; finding it out on a GPU would synchronise.
        mask = near.repeat_interleave(offsets.diff(), output_size=logprobs.numel())
    if args.top_entropy_quantile < 1:
        varied = top_entropy_mask(entropy, quantile=args.top_entropy_quantile)
        mask = varied if mask is None else mask & varied
    return mask
