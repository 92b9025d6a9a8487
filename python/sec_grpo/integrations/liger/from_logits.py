"""`triton_grpo_loss` on `policy_loss`.

Axes: B completions, L tokens of a padded completion, V vocabulary, N = B L.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sec_grpo.integrations.liger import arguments
from sec_grpo.kernels import reference
from sec_grpo.ops import _checks, policy_loss
from sec_grpo.ops._loss import LossTensors, check_spec

# Of float32 logits in a chunk of rows.
_CHUNK_BYTES = 64 * 2**20


def triton_grpo_loss(
    logits: Tensor,
    old_logp: Tensor | None,
    ref_logp: Tensor | None,
    completion_ids: Tensor,
    advantages: Tensor,
    completion_mask: Tensor | None = None,
    temperature: float = 0.9,
    beta: float = 0.04,
    eps_low: float = 0.2,
    eps_high: float = 0.4,
    inplace: bool = True,
    loss_type: str = "dapo",
    max_completion_length: int | None = None,
    importance_sampling_level: str = "token",
    reduce: bool = False,
    sapo_temperature_pos: float = 1.0,
    sapo_temperature_neg: float = 1.05,
    vllm_is_ratio: Tensor | None = None,
    delta: float | None = None,
    use_bias_correction_kl: bool = False,
    num_items_in_batch: float | Tensor | None = None,
    vespo_k_pos: float = 2.0,
    vespo_lambda_pos: float = 3.0,
    vespo_k_neg: float = 3.0,
    vespo_lambda_neg: float = 2.0,
) -> tuple[Tensor, list[Tensor]] | tuple[Tensor, Tensor | None, Tensor]:
    """GRPO loss of whole logits, with the signature of Liger's function of this name.

    The loss is that of `sec_grpo.policy_loss`, where its equations are. It runs on any device;
    numbers are Liger's (liger-kernel 0.8.5) but for what docs/integrations/liger.md lists.

    Args:
        logits: (B, L + 1, V), of which the last position is not used; differentiable.
        old_logp: (B, L) of the sampling policy; None is on-policy.
        ref_logp: (B, L) of the reference, needed where beta is not 0.
        completion_ids: (B, L) token ids; padding may hold anything.
        advantages: (B,).
        completion_mask: (B, L), 0 for padding; None keeps all.
        inplace: whether the backward may put the gradient into the memory of the logits.
        max_completion_length: of dr_grpo; None is L.
        reduce: whether to return the reduced loss or that of each token.
        vllm_is_ratio: (B,), (B, 1) or (B, L) rollout correction.
        num_items_in_batch: tokens of the whole batch over all processes, for dapo, cispo and
            vespo with reduce; None counts them with a collective call.
        The others: see `sec_grpo.policy_loss`, with eps for epsilon.

    Returns:
        With reduce, (loss, metrics), metrics being [mean KL, share clipped], or [share clipped]
        for beta 0. Without, (loss, KL or None, clipped), each (B, L) and 0 where masked.

    Raises:
        ValueError, TypeError: for what `policy_loss` refuses, or a shape that does not fit.
    """
    if logits.dim() != 3 or logits.shape[:2] != (
        len(completion_ids),
        completion_ids.shape[-1] + 1,
    ):
        raise ValueError(
            f"logits must have shape (B, L + 1, V) with (B, L) = {tuple(completion_ids.shape)} of "
            f"completion_ids, got {tuple(logits.shape)}"
        )
    mask = torch.ones_like(completion_ids, dtype=torch.bool)
    if completion_mask is not None:
        mask = arguments.boolean_mask("completion_mask", completion_mask, completion_ids)
    ids = arguments.safe_ids(completion_ids, mask)
    logprobs = _SelectedLogprob.apply(logits, ids, mask, temperature, inplace)
    keywords: dict[str, Any] = {
        "loss_type": loss_type,
        "importance_sampling_level": importance_sampling_level,
        "epsilon_low": eps_low,
        "epsilon_high": eps_high,
        "delta": delta,
        "beta": beta,
        "kl_bias_correction": use_bias_correction_kl,
        "sapo_temperature_pos": sapo_temperature_pos,
        "sapo_temperature_neg": sapo_temperature_neg,
        "vespo_k_pos": vespo_k_pos,
        "vespo_lambda_pos": vespo_lambda_pos,
        "vespo_k_neg": vespo_k_neg,
        "vespo_lambda_neg": vespo_lambda_neg,
    }
    tensors: dict[str, Any] = {
        "advantages": advantages,
        "old_logprobs": old_logp,
        "ref_logprobs": ref_logp if beta != 0 else None,
        "is_weights": arguments.correction_weights(vllm_is_ratio, mask),
    }
    if not reduce:
        return _of_each_token(logprobs, mask, tensors, keywords)
    result = policy_loss(
        logprobs,
        mask=mask,
        num_items_in_batch=arguments.tokens_per_process(loss_type, mask, num_items_in_batch),
        max_completion_length=ids.shape[1]
        if max_completion_length is None
        else max_completion_length,
        **tensors,
        **keywords,
    )
    return result.loss, arguments.metrics_of(result.metrics, beta)


def _of_each_token(
    logprobs: Tensor, mask: Tensor, tensors: dict[str, Any], keywords: dict[str, Any]
) -> tuple[Tensor, Tensor | None, Tensor]:
    """(loss, KL or None, clipped) of each token, (B, L)."""
    spec = check_spec(dual_clip=None, kl_type="k3", **keywords)
    layout = _checks.check_layout("logits", tuple(mask.shape), logprobs.device, mask, None)
    checked = LossTensors.checked(
        layout, logprobs.device, "logits", spec, policy_mask=None, **tensors
    )
    inputs = checked.inputs(layout, logprobs.device)
    tokens = reference.token_losses(logprobs.reshape(-1), inputs, spec)

    def shaped(values: Tensor) -> Tensor:
        return torch.where(mask, values.reshape(mask.shape), 0.0)

    clipped = tokens.low_clipped | tokens.high_clipped
    kl = shaped(tokens.kl.detach()) if spec.beta != 0 else None
    return shaped(tokens.loss), kl, shaped(clipped.float())


class _SelectedLogprob(torch.autograd.Function):
    """log p(id) of softmax(logits / temperature), in float32, some of the rows at a time.

    The gradient, in the dtype of the logits, is one-hot minus softmax, again in chunks.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, ids: Tensor, mask: Tensor, temperature: float, inplace: bool
    ) -> Tensor:
        """(B, L), 0 where masked."""
        dtype = reference.accumulation_dtype(logits)
        found = torch.zeros(ids.shape, dtype=dtype, device=logits.device)
        log_z = torch.zeros_like(found)
        for part in _chunks(logits):
            scaled = logits[part].to(dtype) / temperature
            log_z[part] = scaled.logsumexp(-1)
            found[part] = scaled.gather(-1, ids[part].unsqueeze(-1)).squeeze(-1)
        ctx.save_for_backward(logits, ids, mask, log_z)
        ctx.temperature, ctx.inplace = temperature, inplace
        return torch.where(mask, found - log_z, 0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        logits, ids, mask, log_z = ctx.saved_tensors
        gradient = torch.where(mask, gradients[0], 0.0).unsqueeze(-1) / ctx.temperature
        # .data: written unseen by autograd, as the caller allowed.
        result = logits.data if ctx.inplace else torch.empty_like(logits)
        for part in _chunks(logits):
            scaled = logits[part].to(log_z.dtype) / ctx.temperature
            chunk = (scaled - log_z[part].unsqueeze(-1)).exp_().mul_(-gradient[part])
            chunk.scatter_add_(-1, ids[part].unsqueeze(-1), gradient[part])
            # Padding's logits may be NaN.
            result[part] = chunk.masked_fill_(gradient[part] == 0, 0.0).to(result.dtype)
        result[:, -1] = 0
        return result, None, None, None, None


def _chunks(logits: Tensor) -> list[tuple[slice, slice]]:
    """Parts (of B, of L) that cover logits (B, L + 1, V) but the last position."""
    batch, length = logits.shape[0], logits.shape[1] - 1
    rows = max(1, _CHUNK_BYTES // (4 * logits.shape[2]))
    step, size = max(1, rows // max(length, 1)), min(rows, max(length, 1))
    return [
        (slice(first, first + step), slice(start, min(start + size, length)))
        for first in range(0, batch, step)
        for start in range(0, length, size)
    ]
