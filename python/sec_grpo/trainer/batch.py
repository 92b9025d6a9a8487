"""A generation batch's completions, and their layout as model inputs.

B completions of one process; completion i has T_i tokens. A pack is a set of rows run together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class Rollouts:
    """One process's completions of a generation batch, in micro-batch order."""

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    advantages: torch.Tensor
    """(B,) float32"""
    in_loss: torch.Tensor
    """(B,) bool: False where a truncated completion is left out of the loss"""
    old_logprobs: list[torch.Tensor | None] | None = None
    """B tensors (T_i,) float32 under the policy that sampled; None where still on-policy"""
    ref_logprobs: list[torch.Tensor | None] | None = None
    """B tensors (T_i,) float32 under the reference model; None where never needed"""
    token_advantages: list[torch.Tensor] | None = None
    """B tensors (T_i,) float32, in place of `advantages`; with a critic"""
    returns: list[torch.Tensor] | None = None
    """B tensors (T_i,) float32, what the values should be"""
    old_values: list[torch.Tensor] | None = None
    """B tensors (T_i,) float32, the values under the policy that sampled"""

    def __len__(self) -> int:
        return len(self.prompt_ids)

    def length(self, row: int) -> int:
        """Tokens of the row, prompt and completion."""
        return len(self.prompt_ids[row]) + len(self.completion_ids[row])

    def num_tokens(self, rows: range) -> int:
        """Completion tokens of `rows` that are in the loss, those of dead groups included."""
        return sum(len(self.completion_ids[i]) for i in rows if self.in_loss[i])

    def learnable(self, rows: Sequence[int], *, skip_zero_advantages: bool) -> list[int]:
        """The rows that can have a gradient.

        A row with advantage 0 has none when nothing but the policy term is in the loss.
        """
        keep = self.in_loss.clone()
        if skip_zero_advantages:
            keep &= self.advantages != 0
        return [i for i in rows if keep[i]]

    def state_dict(self) -> dict[str, Any]:
        """Everything, as plain containers and tensors."""
        return dict(vars(self))

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Rollouts:
        """The rollouts saved by `state_dict`."""
        return cls(**state)


def padded_inputs(
    rollouts: Rollouts, rows: Sequence[int], pad_token_id: int, *, mask: bool
) -> dict[str, torch.Tensor]:
    """Model inputs of b rows side by side, right-padded to the longest.

    Causal attention needs no mask for padding on the right: a token sees nothing to its right, and
    what the padding computes is never read. `find_layout` tests whether a model needs one.

    Returns:
        input_ids (b, L); logit_positions (N,), flat indices into (b * L) of the states that predict
        the completion tokens; with `mask` attention_mask (b, L).
    """
    width = max(rollouts.length(i) for i in rows)
    input_ids = torch.full((len(rows), width), pad_token_id, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    positions = []
    for k, i in enumerate(rows):
        ids = rollouts.prompt_ids[i] + rollouts.completion_ids[i]
        input_ids[k, : len(ids)] = torch.tensor(ids)
        attention_mask[k, : len(ids)] = 1
        positions.append(torch.arange(len(rollouts.prompt_ids[i]) - 1, len(ids) - 1) + k * width)
    inputs = {"input_ids": input_ids, "logit_positions": torch.cat(positions)}
    return {**inputs, "attention_mask": attention_mask} if mask else inputs


def packed_inputs(rollouts: Rollouts, rows: Sequence[int]) -> dict[str, Any]:
    """Model inputs of several rows end to end in one, as variable-length attention takes them.

    Returns:
        input_ids, position_ids (1, L): each row's positions start at 0; logit_positions (N,);
        model_kwargs: the sequences' offsets, under the names of `transformers`'
        FlashAttentionKwargs, so that it need not find them out on the device.
    """
    lengths = torch.tensor([rollouts.length(i) for i in rows])
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    ids = [token for i in rows for token in rollouts.prompt_ids[i] + rollouts.completion_ids[i]]
    positions = [
        torch.arange(len(rollouts.prompt_ids[i]) - 1, rollouts.length(i) - 1) + starts[k]
        for k, i in enumerate(rows)
    ]
    offsets, longest = starts.to(torch.int32), int(lengths.max())
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.cat([torch.arange(int(n)) for n in lengths])[None],
        "logit_positions": torch.cat(positions),
        "model_kwargs": {
            "cu_seq_lens_q": offsets,
            "cu_seq_lens_k": offsets,
            "max_length_q": longest,
            "max_length_k": longest,
        },
    }


def loss_inputs(rollouts: Rollouts, rows: Sequence[int]) -> dict[str, Any]:
    """What the loss of a pack's N completion tokens reads besides the model's states.

    Returns:
        targets (N,), cu_seqlens (b + 1,), advantages (b,), or (N,) with a critic; old_logprobs,
        ref_logprobs, returns and old_values (N,) or None; in_loss: whether any row counts in the
        loss.
    """
    completions = [rollouts.completion_ids[i] for i in rows]
    lengths = torch.tensor([len(c) for c in completions])
    return {
        "targets": torch.tensor([t for c in completions for t in c]),
        "cu_seqlens": torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        "advantages": (
            rollouts.advantages[list(rows)]
            if rollouts.token_advantages is None
            else _gathered(rollouts.token_advantages, rows)
        ),
        "returns": _gathered(rollouts.returns, rows),
        "old_values": _gathered(rollouts.old_values, rows),
        "old_logprobs": _gathered(rollouts.old_logprobs, rows),
        "ref_logprobs": _gathered(rollouts.ref_logprobs, rows),
        "in_loss": any(bool(rollouts.in_loss[i]) for i in rows),
    }


def _gathered(logprobs: list[Any] | None, rows: Sequence[int]) -> torch.Tensor | None:
    if logprobs is None or any(logprobs[i] is None for i in rows):
        return None
    return torch.cat([logprobs[i] for i in rows])


def plan_padded(lengths: Sequence[int], rows: Sequence[int], budget: int) -> list[list[int]]:
    """Rows of similar length together, at most `budget` tokens a pack with the padding.

    The longest first, so that a batch that does not fit into memory fails at once. A row longer
    than the budget makes a pack of its own.
    """
    packs: list[list[int]] = []
    for i in sorted(rows, key=lambda i: (-lengths[i], i)):
        if packs and (len(packs[-1]) + 1) * lengths[packs[-1][0]] <= budget:
            packs[-1].append(i)
        else:
            packs.append([i])
    return packs


def plan_packed(lengths: Sequence[int], rows: Sequence[int], budget: int) -> list[list[int]]:
    """Rows of at most `budget` tokens together: first-fit decreasing bin packing."""
    packs: list[list[int]] = []
    room: list[int] = []
    for i in sorted(rows, key=lambda i: (-lengths[i], i)):
        fits = next((k for k, free in enumerate(room) if lengths[i] <= free), None)
        if fits is None:
            packs.append([i])
            room.append(budget - lengths[i])
        else:
            packs[fits].append(i)
            room[fits] -= lengths[i]
    return packs


def to_device(inputs: Any, device: torch.device) -> Any:
    """Every tensor of nested dicts on the device."""
    if isinstance(inputs, dict):
        return {name: to_device(value, device) for name, value in inputs.items()}
    return inputs.to(device) if isinstance(inputs, torch.Tensor) else inputs
