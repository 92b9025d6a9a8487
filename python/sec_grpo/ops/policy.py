"""Clipped policy-gradient losses over log-probabilities.

Axes: N tokens (packed), T padded length, B rollouts (sequences).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

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


class PolicyLoss(NamedTuple):
    """What `policy_loss` returns."""

    loss: Tensor
    """Scalar, float32 (float64 for float64 log-probabilities), differentiable in logprobs."""
    metrics: dict[str, Tensor]
    """Detached scalars on the device of logprobs."""


def policy_loss(
    logprobs: Tensor,
    advantages: Tensor,
    *,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    old_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    is_weights: Tensor | None = None,
    policy_mask: Tensor | None = None,
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
        l_t = -stop_gradient(phi) A_t logp_t + beta kl_t           ("vespo", arXiv 2602.10693)

    with tau = sapo_temperature_pos where A > 0, else sapo_temperature_neg, and for vespo
    ``phi = exp(lambda + k log w - lambda w)``, w = exp(sum over i of (logp - old)) times the
    product of is_weights, k and lambda those of the sign of A (``_pos`` where A >= 0). The policy
    term of l_t, not the KL term, is multiplied by is_weights (but for vespo) and policy_mask.
    The loss is the sum of l_t over unmasked tokens, weighted by ``loss_type``:

    - ``"grpo"`` (arXiv 2402.03300), ``"sapo"``: 1 / (tokens of its sequence x
      num_sequences_in_batch).
    - ``"luspo"`` (sequence level only): 1 / num_sequences_in_batch, so a sequence weighs as much
      as it has tokens, as TRL has it.
    - ``"dr_grpo"`` (arXiv 2503.20783): 1 / (num_sequences_in_batch x max_completion_length).
    - ``"bnpo"``, ``"dapo"`` (arXiv 2503.14476), ``"cispo"`` (arXiv 2506.13585), ``"vespo"``:
      1 / num_items_in_batch.

    The counts default to those of the tensors at hand, in which empty sequences count as
    sequences. Given the whole batch's counts, losses of micro-batches add up to the loss of the
    batch; sequences left out (dead groups) keep their share of the denominators in the same way.

    ``kl_t`` estimates KL(policy || reference): k1 = logp - ref, k2 = (logp - ref)^2 / 2,
    k3 = exp(ref - logp) - (ref - logp) - 1; with kl_bias_correction it is multiplied by rho_t
    (without delta), gradient through both (DeepSeek-V3.2, arXiv 2512.02556).

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
        is_weights: rollout-correction weights, per token or (B,) per sequence, at least 0, a
            constant; `rollout_weights` makes them.
        policy_mask: per token or (B,) per sequence, bool or integer; 0 drops the policy term and
            keeps the KL term and the place in the denominators; `off_policy_mask` and
            `top_entropy_mask` make them.
        delta: upper bound of the ratio where A < 0 (two-sided clip, INTELLECT-2, arXiv
            2505.07291), at least 1 + epsilon_high; None is none, as cispo, sapo and vespo must
            have it.
        dual_clip: the same bound under the name and range of dual-clip PPO (arXiv 1912.09729):
            above 1, instead of delta.
        sapo_temperature_pos, sapo_temperature_neg: above 0; the higher, the narrower the gate.
        vespo_k_pos, vespo_lambda_pos, vespo_k_neg, vespo_lambda_neg: above 0.
        num_items_in_batch, num_sequences_in_batch: a number or a tensor of one element.
        max_completion_length: the generation limit in tokens.
        backend: "triton" (no host synchronisation, no float64), "torch", or "auto": triton on a
            GPU, but torch for float64. The same call twice gives the same bits on the CPU and
            with triton.

    Returns:
        PolicyLoss(loss, metrics). Metrics, over unmasked tokens: clip_ratio/low_mean (rho below
        1 - epsilon_low where A < 0), clip_ratio/high_mean (rho above 1 + epsilon_high, or for
        cispo above epsilon_high, where A > 0; both 0 for sapo and vespo), clip_ratio/region_mean
        (either), clip_ratio/cap_mean (rho above delta or dual_clip where A < 0), ratio/mean,
        ratio/max, ratio/min, kl (mean of kl_t, 0 without ref_logprobs), num_tokens (int64), and
        for vespo vespo/phi_mean. All are 0, and so are loss and gradients, when no token is left.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or range, naming the argument.
    """
    _checks.check_dtype("logprobs", logprobs, _checks.FLOAT_DTYPES)
    device = logprobs.device
    layout = _checks.check_layout("logprobs", tuple(logprobs.shape), device, mask, cu_seqlens)
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
        "logprobs",
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
    loss, metrics = dispatch_policy_loss(logprobs, layout, tensors, spec, denominators, backend)
    return PolicyLoss(loss, metrics)
