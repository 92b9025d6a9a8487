"""What `policy_loss` and `linear_policy_loss` share: the loss keywords, checked, and the dispatch.

Axes: N tokens (packed), T padded length, B rollouts (sequences).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from sec_grpo.kernels import reference
from sec_grpo.kernels.reference import Denominators, PolicyInputs, PolicyLossSpec
from sec_grpo.ops import _checks

LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"]
ImportanceSamplingLevel = Literal["token", "sequence"]
KlType = Literal["k1", "k2", "k3"]

# Losses with their own bound on the ratio, and what it is.
_OWN_BOUND = {
    "cispo": "whose epsilon_high already bounds the weight on both signs of the advantage",
    "sapo": "whose gate replaces the clip",
    "vespo": "whose weight replaces the clip",
}


def check_spec(
    *,
    loss_type: str,
    importance_sampling_level: str,
    epsilon_low: float,
    epsilon_high: float,
    delta: float | None,
    dual_clip: float | None,
    beta: float,
    kl_type: str,
    kl_bias_correction: bool,
    **shape_parameters: float,
) -> PolicyLossSpec:
    """The loss keywords, validated; `shape_parameters` are those of sapo and vespo."""
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
    if not isinstance(kl_bias_correction, bool):
        raise TypeError(f"kl_bias_correction must be True or False, got {kl_bias_correction!r}")
    for name, value in shape_parameters.items():
        _checks.check_number(name, value, 0, strict=True)
    level = {"luspo": "sequence", "vespo": "token"}.get(loss_type, importance_sampling_level)
    if importance_sampling_level != level:
        raise ValueError(
            f"importance_sampling_level must be {level!r} with loss_type={loss_type!r}, got "
            f"{importance_sampling_level!r}"
        )
    _check_caps(loss_type, delta, dual_clip, epsilon_high)
    return PolicyLossSpec(
        loss_type,
        importance_sampling_level,
        epsilon_low,
        epsilon_high,
        delta,
        dual_clip,
        beta,
        kl_type,
        kl_bias_correction,
        **shape_parameters,
    )


def _check_caps(
    loss_type: str, delta: float | None, dual_clip: float | None, epsilon_high: float
) -> None:
    for name, value in (("delta", delta), ("dual_clip", dual_clip)):
        if value is not None and loss_type in _OWN_BOUND:
            raise ValueError(
                f"{name} must be None with loss_type={loss_type!r}, {_OWN_BOUND[loss_type]}; it "
                f"goes with {', '.join(reference.CLIPPED_LOSSES)}, got {value}"
            )
    if delta is not None and dual_clip is not None:
        raise ValueError(
            "delta and dual_clip both bound the ratio where the advantage is negative: give one, "
            f"got {delta} and {dual_clip}"
        )
    if delta is not None:
        _checks.check_number("delta", delta, 1 + epsilon_high)
    if dual_clip is not None:
        _checks.check_number("dual_clip", dual_clip, 1, strict=True)


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


def check_per_token(
    name: str,
    tensor: Tensor,
    layout: _checks.Layout,
    device: torch.device,
    like: str,
    dtypes: tuple[torch.dtype, ...] = _checks.FLOAT_DTYPES,
) -> bool:
    """Whether the tensor holds one value per token (else one per sequence)."""
    _checks.check_dtype(name, tensor, dtypes)
    _checks.check_device(name, tensor, device, like)
    shape = tuple(tensor.shape)
    if shape == (layout.num_sequences,):
        return False
    if shape == layout.shape:
        return True
    raise ValueError(
        f"{name} must have shape ({layout.num_sequences},) (one per sequence) or "
        f"{layout.shape} (one per token), got {shape}"
    )


@dataclass(frozen=True)
class LossTensors:
    """The tensors of a loss besides the log-probabilities: checked, detached, flat (N,) per token.

    The advantages may be one a sequence (B,), and log_is_weights are.
    """

    advantages: Tensor
    per_token_advantages: bool
    old_logprobs: Tensor | None
    ref_logprobs: Tensor | None
    policy_weights: Tensor | None
    """(N,) factor of the policy term"""
    log_is_weights: Tensor | None
    """(B,) log weights inside VESPO's"""

    @classmethod
    def checked(
        cls,
        layout: _checks.Layout,
        device: torch.device,
        like: str,
        spec: PolicyLossSpec,
        *,
        advantages: Tensor,
        old_logprobs: Tensor | None,
        ref_logprobs: Tensor | None,
        is_weights: Tensor | None,
        policy_mask: Tensor | None,
    ) -> LossTensors:
        """Validated against `layout` and the device of the argument called `like`."""
        per_token = check_per_token("advantages", advantages, layout, device, like)
        for name, tensor in (("old_logprobs", old_logprobs), ("ref_logprobs", ref_logprobs)):
            if tensor is not None:
                _checks.check_dtype(name, tensor, _checks.FLOAT_DTYPES)
                _checks.check_shape(name, tensor, layout.shape, f"like {like}")
                _checks.check_device(name, tensor, device, like)
        if spec.beta != 0 and ref_logprobs is None:
            raise ValueError(f"ref_logprobs must be given with beta={spec.beta}, got None")
        weights = log_weights = keep = None
        if is_weights is not None:
            check_per_token("is_weights", is_weights, layout, device, like)
            if spec.loss_type == "vespo":
                log_weights = _log_sequence_weights(is_weights.detach(), layout)
            else:
                weights = spread(is_weights.detach(), layout)
        if policy_mask is not None:
            dtypes = (torch.bool, torch.uint8, *_checks.INTEGER_DTYPES)
            check_per_token("policy_mask", policy_mask, layout, device, like, dtypes)
            keep = spread(policy_mask, layout) != 0
        tensors = cls(
            advantages.detach().reshape(-1),
            per_token,
            None if old_logprobs is None else old_logprobs.detach().reshape(-1),
            None if ref_logprobs is None else ref_logprobs.detach().reshape(-1),
            weights,
            log_weights,
        )
        return tensors if keep is None else tensors.keeping(keep)

    def keeping(self, keep: Tensor) -> LossTensors:
        """With the policy terms outside `keep` (N,) bool dropped."""
        if self.policy_weights is None:
            weights = keep.float()
        else:
            # where, not a product: a dropped token's weight may be infinite.
            weights = torch.where(keep, self.policy_weights, 0.0)
        return replace(self, policy_weights=weights)

    def inputs(self, layout: _checks.Layout, device: torch.device) -> PolicyInputs:
        """What the reference takes."""
        return PolicyInputs(
            self.spread_advantages(layout),
            layout.flat_mask(device),
            layout.seq_index(device),
            layout.num_sequences,
            self.old_logprobs,
            self.ref_logprobs,
            self.policy_weights,
            self.log_is_weights,
        )

    def spread_advantages(self, layout: _checks.Layout) -> Tensor:
        """(N,)"""
        return self.advantages if self.per_token_advantages else spread(self.advantages, layout)


def spread(tensor: Tensor, layout: _checks.Layout) -> Tensor:
    """(N,) per token, from one value per token or per sequence."""
    if tuple(tensor.shape) != (layout.num_sequences,):
        return tensor.reshape(-1)
    if layout.cu_seqlens is None:
        return layout.spread_rows(tensor)
    return tensor[layout.seq_index(tensor.device)]


def _log_sequence_weights(weights: Tensor, layout: _checks.Layout) -> Tensor:
    """(B,) log of the product of each sequence's weights, every factor's within VESPO's bounds."""
    log_weights = weights.to(reference.accumulation_dtype(weights)).log()
    log_weights = log_weights.clamp(reference.VESPO_MIN_LOG_WEIGHT, reference.VESPO_MAX_LOG)
    if tuple(weights.shape) == (layout.num_sequences,):
        return log_weights
    kept = torch.where(layout.flat_mask(weights.device), log_weights.reshape(-1), 0.0)
    return reference.segment_sum(kept, layout.seq_index(weights.device), layout.num_sequences)


def dispatch_policy_loss(
    logprobs: Tensor,
    layout: _checks.Layout,
    tensors: LossTensors,
    spec: PolicyLossSpec,
    denominators: Denominators,
    backend: str,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run validated arguments, in `layout`, on a backend."""
    if backend == "auto" and logprobs.dtype == torch.float64:
        backend = "torch"
    if _checks.resolve_backend(backend, logprobs) == "torch":
        inputs = tensors.inputs(layout, logprobs.device)
        return reference.policy_loss(logprobs.reshape(-1), inputs, spec, denominators)

    from sec_grpo.kernels import policy_operator

    return policy_operator.policy_loss(
        logprobs.reshape(-1),
        tensors.advantages,
        mask=layout.flat(layout.mask),
        cu_seqlens=layout.cu_seqlens,
        num_sequences=layout.num_sequences,
        per_token_advantages=tensors.per_token_advantages,
        old_logprobs=tensors.old_logprobs,
        ref_logprobs=tensors.ref_logprobs,
        policy_weights=tensors.policy_weights,
        log_is_weights=tensors.log_is_weights,
        spec=spec,
        denominators=denominators,
    )
