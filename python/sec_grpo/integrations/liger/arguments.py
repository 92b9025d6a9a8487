"""From Liger's arguments to ours.

Axes: B completions, T tokens of a padded completion.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Losses whose sum is divided by the tokens of the whole batch.
_PER_TOKEN = ("dapo", "cispo", "vespo")


def boolean_mask(name: str, mask: Tensor, like: Tensor) -> Tensor:
    """(B, T) bool of a mask of any number type, for ids (B, T)."""
    if mask.shape != like.shape:
        raise ValueError(f"{name} must have shape {tuple(like.shape)}, got {tuple(mask.shape)}")
    return mask != 0


def safe_ids(ids: Tensor, mask: Tensor) -> Tensor:
    """(B, T) int64 with 0 in the place of padding, which may hold anything."""
    return torch.where(mask, ids, 0).long()


def correction_weights(ratio: Tensor | None, mask: Tensor) -> Tensor | None:
    """`vllm_is_ratio`, (B,), (B, 1) or (B, T), as is_weights (B,) or (B, T)."""
    if ratio is None:
        return None
    batch, length = mask.shape
    if tuple(ratio.shape) in ((batch,), (batch, 1)):
        return ratio.reshape(batch)
    if tuple(ratio.shape) == (batch, length):
        return ratio
    raise ValueError(
        f"vllm_is_ratio must have shape ({batch},), ({batch}, 1) or ({batch}, {length}), got "
        f"{tuple(ratio.shape)}"
    )


def tokens_per_process(
    loss_type: str, mask: Tensor, num_items_in_batch: float | Tensor | None
) -> Tensor | None:
    """The tokens of the whole batch over the number of processes, at least 1.

    Without num_items_in_batch they are counted over all processes, which is a collective call.
    None for losses that do not divide by it.
    """
    if loss_type not in _PER_TOKEN:
        return None
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    size = torch.distributed.get_world_size() if distributed else 1
    if num_items_in_batch is None:
        tokens = mask.sum().float()
        if distributed:
            torch.distributed.all_reduce(tokens)
    else:
        tokens = torch.as_tensor(num_items_in_batch, dtype=torch.float32, device=mask.device)
    return (tokens / size).clamp(min=1.0)


def metrics_of(metrics: dict[str, Tensor], beta: float) -> list[Tensor]:
    """Liger's metrics: the mean KL where beta is not 0, and the share of clipped tokens."""
    found = [metrics["clip_ratio/region_mean"]]
    return [metrics["kl"], *found] if beta != 0 else found
