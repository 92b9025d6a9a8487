"""How rows of unequal length are laid out for a model, tested on the model itself."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.utils import logging

from sec_grpo.trainer.batch import Rollouts, packed_inputs, padded_inputs, to_device
from sec_grpo.trainer.policy import base_model, completion_hidden_states

logger = logging.get_logger(__name__)


class Layout(NamedTuple):
    """The layout of a pack's rows."""

    packed: bool = False
    """end to end in one row, which attention keeps apart, instead of side by side with padding"""
    mask_padding: bool = False
    """whether the model has to be told of padding on the right"""


def uses_flash_attention(model: nn.Module) -> bool:
    """Whether attention takes the sequences' offsets and does no work between them."""
    implementation = getattr(base_model(model).config, "_attn_implementation", None) or ""
    return "flash" in str(implementation)


@torch.no_grad()
def find_layout(model: nn.Module, padding_free: bool | None) -> Layout:
    """The layout that is asked for, or the best that leaves every row's states as they are alone.

    Args:
        padding_free: True packs, False pads, None packs where attention is flash attention.

    Raises:
        ValueError: `padding_free` is True and the model mixes packed rows.
    """
    packed = uses_flash_attention(model) if padding_free is None else padding_free
    if packed and not _keeps_rows_apart(model, Layout(packed=True)):
        if padding_free:
            raise ValueError(
                f"padding_free must be False with {type(base_model(model)).__name__}, which lets "
                "rows that are packed together see each other; rows are then sorted by length"
            )
        logger.warning(
            "%s lets packed rows see each other: rows are padded instead, sorted by length",
            type(base_model(model)).__name__,
        )
        packed = False
    if packed:
        return Layout(packed=True)
    return Layout(mask_padding=not _keeps_rows_apart(model, Layout()))


def _keeps_rows_apart(model: nn.Module, layout: Layout) -> bool:
    """Whether rows of unequal length have the states in `layout` that they have alone."""
    device = next(model.parameters()).device
    if uses_flash_attention(model) and device.type == "cpu":
        return True  # it will be moved to where flash attention runs; nothing can be tried here
    rows = Rollouts(
        prompt_ids=[[0, 1], [1]],
        completion_ids=[[0, 1, 0, 1], [1, 0]],
        advantages=torch.zeros(2),
        in_loss=torch.ones(2, dtype=torch.bool),
    )
    was_training = model.training
    model.eval()
    try:
        alone = [_states(model, padded_inputs(rows, [i], 0, mask=False), device) for i in (0, 1)]
        if layout.packed:
            together = _states(model, packed_inputs(rows, [0, 1]), device)
        else:
            inputs = padded_inputs(rows, [0, 1], 0, mask=layout.mask_padding)
            together = _states(model, inputs, device)
    finally:
        model.train(was_training)
    expected = torch.cat(alone)
    # Rounding depends on the batch's shape; a token that is seen changes more than that.
    tolerance = 1e-3 if together.dtype == torch.float32 else 0.03
    return bool((together - expected).abs().max() <= tolerance * expected.abs().max())


def _states(model: nn.Module, inputs: dict[str, Any], device: torch.device) -> torch.Tensor:
    return completion_hidden_states(model, to_device(inputs, device))
