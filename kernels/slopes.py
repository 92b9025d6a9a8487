"""Derivative of a token's loss in its own log-probability, for losses without sums over others."""

from __future__ import annotations

import torch
from torch import Tensor

from sec_grpo.kernels.reference import (
    MAX_LOG_RATIO,
    PolicyInputs,
    PolicyLossSpec,
    accumulation_dtype,
    cap_log_ratio,
    kl_estimate,
)


def depends_on_own_token_only(spec: PolicyLossSpec) -> bool:
    """Whether d loss/d logp of a token follows from that token, given its weight."""
    return spec.importance_sampling_level == "token" and spec.loss_type != "vespo"


def token_loss_slopes(logprobs: Tensor, inputs: PolicyInputs, spec: PolicyLossSpec) -> Tensor:
    """d loss_t/d logp_t (N,) of `reference.token_losses`, where that token alone decides it.

    Written out, because operators that torch.compile sees have no autograd inside.
    """
    dtype = accumulation_dtype(logprobs)
    logp = inputs.kept(logprobs, dtype)
    adv = inputs.kept(inputs.advantages, dtype)
    old = logp if inputs.old_logprobs is None else inputs.kept(inputs.old_logprobs, dtype)
    log_ratio = logp - old
    ratio = cap_log_ratio(log_ratio).exp()
    # d ratio/d logp: past the cap of the log-ratio there is none.
    ratio_slope = torch.where(log_ratio > MAX_LOG_RATIO, 0.0, ratio)

    if spec.loss_type == "cispo":
        slope = ratio.clamp(max=spec.epsilon_high) * adv
    elif spec.loss_type == "sapo":
        positive = torch.full_like(adv, spec.sapo_temperature_pos)
        temperature = torch.where(adv > 0, positive, spec.sapo_temperature_neg)
        gate = torch.sigmoid(temperature * (ratio - 1))
        slope = 4 * gate * (1 - gate) * adv * ratio_slope
    else:
        cap = torch.inf if spec.negative_cap is None else spec.negative_cap
        outside = (ratio < 1 - spec.epsilon_low) | (ratio > cap)
        # A NaN is not clipped: it has to show in the gradient as it does in the loss.
        clipped = torch.where(adv > 0, ratio > 1 + spec.epsilon_high, outside & (adv <= 0))
        slope = torch.where(clipped, 0.0, adv * ratio_slope)
    if inputs.policy_weights is not None:
        slope = slope * inputs.kept(inputs.policy_weights, dtype)
    slope = -slope
    if inputs.ref_logprobs is not None and spec.beta != 0:
        ref = inputs.kept(inputs.ref_logprobs, dtype)
        kl_slope = _kl_slope(logp, ref, spec.kl_type)
        if spec.kl_bias_correction:
            kl_slope = kl_slope * ratio + kl_estimate(logp, ref, spec.kl_type) * ratio_slope
        slope = slope + spec.beta * kl_slope
    return torch.where(inputs.mask, slope, 0.0)


def _kl_slope(logp: Tensor, ref: Tensor, kl_type: str) -> Tensor:
    if kl_type == "k1":
        return torch.ones_like(logp)
    if kl_type == "k2":
        return logp - ref
    log_ratio = ref - logp
    return torch.where(log_ratio > MAX_LOG_RATIO, 0.0, -cap_log_ratio(log_ratio).expm1())
