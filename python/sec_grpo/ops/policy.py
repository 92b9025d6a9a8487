"""Clipped policy-gradient losses over log-probabilities.

Axes: N tokens (packed), T padded length, B rollouts (sequences).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sec_grpo.kernels import reference
from sec_grpo.kernels.reference import Denominators, PolicyLossSpec
from sec_grpo.ops import _checks

LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo"]
ImportanceSamplingLevel = Literal["token", "sequence"]
KlType = Literal["k1", "k2", "k3"]


class PolicyLoss(NamedTuple):
    """What `policy_loss` returns."""

    loss: Tensor
    """Scalar, float32 (float64 for float64 log-probabilities), differentiable in logprobs."""
    metrics: dict[str, Tensor]
    """Detached scalars on the device of logprobs."""


def check_spec(
    loss_type: str,
    importance_sampling_level: str,
    epsilon_low: float,
    epsilon_high: float,
    delta: float | None,
    beta: float,
    kl_type: str,
    sapo_temperature_pos: float,
    sapo_temperature_neg: float,
) -> PolicyLossSpec:
    """The loss keywords, validated."""
    _checks.check_choice("loss_type", loss_type, reference.LOSS_TYPES)
    _checks.check_choice(
        "importance_sampling_level",
        importance_sampling_level,
        reference.IMPORTANCE_SAMPLING_LEVELS,
    )
    _checks.check_choice("kl_type", kl_type, reference.KL_TYPES)
    _checks.check_number("epsilon_low", epsilon_low, 0, high=1)
    _checks.check_number("epsilon_high", epsilon_high, 0)
    _checks.check_number("beta", beta, 0)
    _checks.check_number("sapo_temperature_pos", sapo_temperature_pos, 0, strict=True)
    _checks.check_number("sapo_temperature_neg", sapo_temperature_neg, 0, strict=True)
    if loss_type == "luspo" and importance_sampling_level != "sequence":
        raise ValueError(
            "importance_sampling_level must be 'sequence' with loss_type='luspo', got "
            f"{importance_sampling_level!r}"
        )
    if delta is not None:
        if loss_type == "sapo":
            raise ValueError(
                "delta must be None with loss_type='sapo', whose gate replaces the clip; it goes "
                f"with grpo, bnpo, dr_grpo, dapo and luspo, got {delta}"
            )
        if loss_type == "cispo":
            raise ValueError(
                f"delta must be None with loss_type='cispo', whose epsilon_high already bounds "
                f"the weight on both signs of the advantage, got {delta}"
            )
        _checks.check_number("delta", delta, 1 + epsilon_high)
    return PolicyLossSpec(
        loss_type,
        importance_sampling_level,
        epsilon_low,
        epsilon_high,
        delta,
        beta,
        kl_type,
        sapo_temperature_pos,
        sapo_temperature_neg,
    )


def check_denominators(
    loss_type: str,
    num_items_in_batch: float | Tensor | None,
    num_sequences_in_batch: float | Tensor | None,
    max_completion_length: float | None,
    device: torch.device,
) -> Denominators:
    """The batch-wide counts, validated."""
    _checks.check_count("num_items_in_batch", num_items_in_batch, device)
    _checks.check_count("num_sequences_in_batch", num_sequences_in_batch, device)
    if max_completion_length is not None:
        _checks.check_number("max_completion_length", max_completion_length, 0, strict=True)
    elif loss_type == "dr_grpo":
        raise ValueError(
            "max_completion_length must be given with loss_type='dr_grpo', got None; it is the "
            "generation limit, a constant of the run"
        )
    return Denominators(num_items_in_batch, num_sequences_in_batch, max_completion_length)


def check_advantages(
    advantages: Tensor, layout: _checks.Layout, device: torch.device, like: str
) -> bool:
    """Whether the advantages are one per token (else one per sequence)."""
    _checks.check_dtype("advantages", advantages, _checks.FLOAT_DTYPES)
    _checks.check_device("advantages", advantages, device, like)
    shape = tuple(advantages.shape)
    if shape == (layout.num_sequences,):
        return False
    if shape == layout.shape:
        return True
    raise ValueError(
        f"advantages must have shape ({layout.num_sequences},) (one per sequence) or "
        f"{layout.shape} (one per token), got {shape}"
    )


def check_other_logprobs(
    layout: _checks.Layout,
    device: torch.device,
    like: str,
    old_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    beta: float,
) -> None:
    """The behaviour and reference policies' log-probabilities."""
    for name, tensor in (("old_logprobs", old_logprobs), ("ref_logprobs", ref_logprobs)):
        if tensor is not None:
            _checks.check_dtype(name, tensor, _checks.FLOAT_DTYPES)
            _checks.check_shape(name, tensor, layout.shape, f"like {like}")
            _checks.check_device(name, tensor, device, like)
    if beta != 0 and ref_logprobs is None:
        raise ValueError(f"ref_logprobs must be given with beta={beta}, got None")


def dispatch_policy_loss(
    logprobs: Tensor,
    advantages: Tensor,
    layout: _checks.Layout,
    per_token_advantages: bool,
    old_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    spec: PolicyLossSpec,
    denominators: Denominators,
    backend: str,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run validated arguments, in `layout`, on a backend."""
    if backend == "auto" and logprobs.dtype == torch.float64:
        backend = "torch"
    if _checks.resolve_backend(backend, logprobs) == "torch":
        seq_index = layout.seq_index(logprobs.device)
        flat = advantages.reshape(-1) if per_token_advantages else advantages[seq_index]
        return reference.policy_loss(
            logprobs.reshape(-1),
            flat.detach(),
            mask=layout.flat_mask(logprobs.device),
            seq_index=seq_index,
            num_sequences=layout.num_sequences,
            old_logprobs=None if old_logprobs is None else old_logprobs.detach().reshape(-1),
            ref_logprobs=None if ref_logprobs is None else ref_logprobs.detach().reshape(-1),
            spec=spec,
            denominators=denominators,
        )

    from sec_grpo.kernels import policy_loss as triton_kernel

    return triton_kernel.policy_loss(
        logprobs.reshape(-1),
        advantages.detach().reshape(-1),
        mask=layout.flat(layout.mask),
        cu_seqlens=layout.cu_seqlens,
        num_sequences=layout.num_sequences,
        per_token_advantages=per_token_advantages,
        old_logprobs=layout.flat(old_logprobs),
        ref_logprobs=layout.flat(ref_logprobs),
        spec=spec,
        denominators=denominators,
    )


def policy_loss(
    logprobs: Tensor,
    advantages: Tensor,
    *,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    old_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    loss_type: LossType = "dapo",
    importance_sampling_level: ImportanceSamplingLevel = "token",
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
    delta: float | None = None,
    beta: float = 0.0,
    kl_type: KlType = "k3",
    sapo_temperature_pos: float = 1.0,
    sapo_temperature_neg: float = 1.05,
    num_items_in_batch: float | Tensor | None = None,
    num_sequences_in_batch: float | Tensor | None = None,
    max_completion_length: float | None = None,
    backend: Literal["auto", "triton", "torch"] = "auto",
) -> PolicyLoss:
    """Clipped policy-gradient loss of a batch of completions, with its metrics.

    With ``rho_t = exp(logp_t - old_t)`` (token level), or for all t of sequence i
    ``rho_t = exp(mean over i of (logp - old))`` (``importance_sampling_level="sequence"``, GSPO,
    arXiv 2507.18071, gradient through the ratio), the loss of a token is::

        l_t = -min(min(rho_t, delta) A_t, clip(rho_t, 1 - epsilon_low, 1 + epsilon_high) A_t)
              + beta kl_t                                               (PPO, arXiv 1707.06347)
        l_t = -stop_gradient(min(rho_t, epsilon_high)) A_t logp_t + beta kl_t          ("cispo")
        l_t = -sigmoid(tau (rho_t - 1)) 4 / tau A_t + beta kl_t      ("sapo", arXiv 2511.20347)

    with tau = sapo_temperature_pos where A > 0, else sapo_temperature_neg,

    and the loss is their sum over unmasked tokens, weighted by ``loss_type``:

    - ``"grpo"`` (arXiv 2402.03300), ``"sapo"``: 1 / (tokens of its sequence x
      num_sequences_in_batch).
    - ``"luspo"`` (sequence level only): 1 / num_sequences_in_batch, so a sequence weighs as much
      as it has tokens, as TRL has it.
    - ``"dr_grpo"`` (arXiv 2503.20783): 1 / (num_sequences_in_batch x max_completion_length).
    - ``"bnpo"``, ``"dapo"`` (arXiv 2503.14476), ``"cispo"`` (arXiv 2506.13585):
      1 / num_items_in_batch.

    The counts default to those of the tensors at hand, in which empty sequences count as
    sequences. Given the whole batch's counts, losses of micro-batches add up to the loss of the
    batch; sequences left out (dead groups) keep their share of the denominators in the same way.

    ``kl_t`` estimates KL(policy || reference): k1 = logp - ref, k2 = (logp - ref)^2 / 2,
    k3 = exp(ref - logp) - (ref - logp) - 1.

    Departures: (1) log-ratios are capped at 60 before exp, in rho and in k3, past which a token has
    no gradient through them: exp would overflow float32 to inf and its gradient to NaN. (2) CISPO
    clamps at the raw epsilon_high, as TRL does (there 5.0 is usual), not at 1 + epsilon_high and
    not from below, as verl does. (3) Clip fractions are over tokens at both levels; TRL's are over
    sequences at the sequence level.

    Args:
        logprobs: (B, T) padded or (N,) packed; natural log. Float; math in float32, float64 stays.
        advantages: (B,) per sequence, or per token in the shape of logprobs. A packed (N,) with
            N == B counts as per sequence.
        mask: like logprobs, bool or integer; 0 leaves the token out, and its entries may hold
            anything, NaN included. None keeps all.
        cu_seqlens: (B + 1,) int32 or int64 offsets of the packed sequences.
        old_logprobs: behaviour policy's, like logprobs. None is on-policy: the ratio is exactly 1
            and its gradient flows.
        ref_logprobs: reference policy's, like logprobs; needed when beta is not 0.
        delta: upper bound of the ratio where A < 0 (two-sided clip, INTELLECT-2, arXiv
            2505.07291), at least 1 + epsilon_high; None is none, as cispo and sapo must have it.
        sapo_temperature_pos, sapo_temperature_neg: above 0; the higher, the narrower the gate.
        num_items_in_batch, num_sequences_in_batch: a number or a tensor of one element.
        max_completion_length: the generation limit in tokens.
        backend: "triton" (no host synchronisation, no float64), "torch", or "auto": triton on a
            GPU, but torch for float64. The same call twice gives the same bits on the CPU and
            with triton.

    Returns:
        PolicyLoss(loss, metrics). Metrics, over unmasked tokens: clip_ratio/low_mean (rho below
        1 - epsilon_low where A < 0), clip_ratio/high_mean (rho above 1 + epsilon_high, or for
        cispo above epsilon_high, where A > 0; both 0 for sapo), clip_ratio/region_mean (either),
        ratio/mean, ratio/max, kl (mean of kl_t, 0 without ref_logprobs), num_tokens (int64). All
        are 0, and so are loss and gradients, when no token is left.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or range, naming the argument.
    """
    _checks.check_dtype("logprobs", logprobs, _checks.FLOAT_DTYPES)
    device = logprobs.device
    layout = _checks.check_layout("logprobs", tuple(logprobs.shape), device, mask, cu_seqlens)
    per_token = check_advantages(advantages, layout, device, "logprobs")
    spec = check_spec(
        loss_type,
        importance_sampling_level,
        epsilon_low,
        epsilon_high,
        delta,
        beta,
        kl_type,
        sapo_temperature_pos,
        sapo_temperature_neg,
    )
    check_other_logprobs(layout, device, "logprobs", old_logprobs, ref_logprobs, beta)
    denominators = check_denominators(
        loss_type, num_items_in_batch, num_sequences_in_batch, max_completion_length, device
    )
    loss, metrics = dispatch_policy_loss(
        logprobs,
        advantages,
        layout,
        per_token,
        old_logprobs,
        ref_logprobs,
        spec,
        denominators,
        backend,
    )
    return PolicyLoss(loss, metrics)
