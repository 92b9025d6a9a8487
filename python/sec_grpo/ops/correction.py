"""Rollout correction: weights and masks for completions that another policy sampled.

An inference engine, stale weights or low-precision sampling give completions whose probability
under the policy differs from what the sampler said. These functions make the `is_weights` and
`policy_mask` of `policy_loss` and `linear_policy_loss`.

Axes: N tokens (packed), T padded length, B rollouts (sequences).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sec_grpo.kernels.reference import MAX_LOG_RATIO, accumulation_dtype, segment_sum
from sec_grpo.ops import _checks
from sec_grpo.ops._loss import check_per_token, spread

RolloutWeightMode = Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
_MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


def rollout_weights(
    old_logprobs: Tensor,
    sampling_logprobs: Tensor,
    *,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    mode: RolloutWeightMode = "token_truncate",
    clip_max: float | None = 3.0,
    clip_min: float | None = None,
) -> Tensor:
    """Importance weights of completions whose sampler is not the policy that training saw.

    ``w_t = exp(old_t - sampling_t)`` (``token_*`` modes), or one for a sequence,
    ``w = exp(sum over its tokens of (old - sampling))`` (``sequence_*``). ``*_truncate`` clamps
    them into [clip_min, clip_max] (truncated importance sampling), ``*_mask`` sets those outside
    to 0 (masked importance sampling), as TRL's vllm_importance_sampling_mode.

    Departure: 1. log-weights are capped at 60 before exp, which clip_max=None would let overflow.

    Args:
        old_logprobs: of the policy at the start of training on these completions, (B, T) or (N,).
        sampling_logprobs: what the sampler reported, same shape. NaN stands for a token that it
            could not score, and counts as equal to old_logprobs.
        mask, cu_seqlens: as in `policy_loss`; masked tokens get weight 1.
        mode: see above.
        clip_max, clip_min: bounds, clip_min <= clip_max; None is none.

    Returns:
        Weights like old_logprobs (``token_*``) or (B,) (``sequence_*``), float32 (float64 for
        float64 input), without gradient.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or range, naming the argument.
    """
    _checks.check_choice("mode", mode, _MODES)
    layout = _checked_pair("old_logprobs", old_logprobs, sampling_logprobs, mask, cu_seqlens)
    for name, bound in (("clip_max", clip_max), ("clip_min", clip_min)):
        if bound is not None:
            _checks.check_number(name, bound, 0)
    if clip_min is not None and clip_max is not None and clip_min > clip_max:
        raise ValueError(f"clip_min must be at most clip_max={clip_max}, got {clip_min}")
    log_weights = _log_difference(old_logprobs, sampling_logprobs, layout)
    if mode.startswith("sequence"):
        seq_index = layout.seq_index(old_logprobs.device)
        log_weights = segment_sum(log_weights, seq_index, layout.num_sequences)
    weights = log_weights.clamp(max=MAX_LOG_RATIO).exp()
    if mode.endswith("truncate"):
        weights = weights.clamp(clip_min, clip_max) if clip_min or clip_max else weights
    else:
        low = 0.0 if clip_min is None else clip_min
        high = torch.inf if clip_max is None else clip_max
        weights = torch.where((weights < low) | (weights > high), 0.0, weights)
    return weights if mode.startswith("sequence") else weights.reshape(old_logprobs.shape)


def off_policy_mask(
    logprobs: Tensor,
    sampling_logprobs: Tensor,
    advantages: Tensor,
    *,
    threshold: float,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Which tokens keep their policy term: A >= 0, or a sequence close to the sampler.

    A token with A < 0 is kept where the mean over its sequence of sampling - logp, an estimate of
    KL(sampler || policy), is at most `threshold` (DeepSeek-V3.2, arXiv 2512.02556, equation 9).

    Args:
        logprobs: the policy's, (B, T) or (N,); used without gradient.
        sampling_logprobs: the sampler's, same shape; NaN (not scored) counts as equal to logprobs.
        advantages: (B,) per sequence, or per token like logprobs.
        threshold: in nats, above 0.
        mask, cu_seqlens: as in `policy_loss`.

    Returns:
        bool in the shape of advantages, for `policy_mask`.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or range, naming the argument.
    """
    layout = _checked_pair("logprobs", logprobs, sampling_logprobs, mask, cu_seqlens)
    check_per_token("advantages", advantages, layout, logprobs.device, "logprobs")
    _checks.check_number("threshold", threshold, 0, strict=True)
    near = near_sampler(logprobs, sampling_logprobs, layout, threshold)
    if tuple(advantages.shape) == (layout.num_sequences,):
        return (advantages >= 0) | near
    return (advantages >= 0) | spread(near, layout).reshape(advantages.shape)


def near_sampler(
    logprobs: Tensor, sampling_logprobs: Tensor, layout: _checks.Layout, threshold: float
) -> Tensor:
    """(B,) whether the mean of sampling - logp over a sequence is at most the threshold."""
    device = logprobs.device
    seq_index = layout.seq_index(device)
    distance = -_log_difference(logprobs, sampling_logprobs, layout)
    counts = segment_sum(layout.flat_mask(device).to(distance), seq_index, layout.num_sequences)
    mean = segment_sum(distance, seq_index, layout.num_sequences) / counts.clamp(min=1)
    return mean <= threshold


def top_entropy_mask(entropy: Tensor, *, quantile: float, mask: Tensor | None = None) -> Tensor:
    """The share `quantile` of tokens with the highest entropy (arXiv 2506.01939).

    Kept are unmasked tokens with entropy at least the (1 - quantile) quantile, linearly
    interpolated, of the unmasked tokens at hand; ties at the threshold are all kept.

    Args:
        entropy: in nats, any shape.
        quantile: in (0, 1]; 1 keeps every unmasked token.
        mask: like entropy, bool or integer; 0 leaves a token out.

    Returns:
        bool like entropy, for `policy_mask`. No host synchronisation.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or range, naming the argument.
    """
    _checks.check_dtype("entropy", entropy, _checks.FLOAT_DTYPES)
    _checks.check_number("quantile", quantile, 0, strict=True, high=1)
    keep = torch.ones_like(entropy, dtype=torch.bool)
    if mask is not None:
        _checks.check_shape("mask", mask, tuple(entropy.shape), "like entropy")
        _checks.check_device("mask", mask, entropy.device, "entropy")
        keep = mask != 0
    return (
        keep if quantile == 1 else keep & (entropy >= _entropy_threshold(entropy, keep, quantile))
    )


def _entropy_threshold(entropy: Tensor, keep: Tensor, quantile: float) -> Tensor:
    """The (1 - quantile) quantile of the kept entries.

    By sorting, not torch.quantile: that takes at most 2^24 values, and its ignoring form counts
    masked entries on the host.
    """
    values = torch.where(keep, entropy.detach(), torch.inf).reshape(-1).sort().values
    if values.numel() == 0:
        return entropy.new_zeros(())
    count = keep.sum()
    position = ((count - 1).clamp(min=0) * (1 - quantile)).to(torch.float64)
    below = position.floor().long()
    above = (below + 1).minimum((count - 1).clamp(min=0))
    share = (position - below).to(values.dtype)
    low, high = values.gather(0, below[None])[0], values.gather(0, above[None])[0]
    return low + (high - low) * share


def _checked_pair(
    name: str,
    logprobs: Tensor,
    sampling_logprobs: Tensor,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
) -> _checks.Layout:
    _checks.check_dtype(name, logprobs, _checks.FLOAT_DTYPES)
    device = logprobs.device
    layout = _checks.check_layout(name, tuple(logprobs.shape), device, mask, cu_seqlens)
    _checks.check_dtype("sampling_logprobs", sampling_logprobs, _checks.FLOAT_DTYPES)
    _checks.check_shape("sampling_logprobs", sampling_logprobs, layout.shape, f"like {name}")
    _checks.check_device("sampling_logprobs", sampling_logprobs, device, name)
    return layout


def _log_difference(logprobs: Tensor, sampling: Tensor, layout: _checks.Layout) -> Tensor:
    """(N,) logprobs - sampling, 0 where masked or not scored."""
    dtype = accumulation_dtype(logprobs)
    difference = (logprobs.detach().to(dtype) - sampling.detach().to(dtype)).reshape(-1)
    scored = layout.flat_mask(logprobs.device) & ~sampling.reshape(-1).isnan()
    return torch.where(scored, difference, 0.0)
