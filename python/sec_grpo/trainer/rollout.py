"""Rollouts: sampling completions with a key-value cache, and laying them out for the update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel

from sec_grpo.trainer.policy import base_model


def derive_seed(seed: int, stream: str, *counters: int) -> int:
    """A 63-bit seed from a counter, so that resuming needs no saved generator state."""
    words = [seed & 0xFFFFFFFF, *stream.encode(), *counters]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0]) >> 1


@torch.no_grad()
def sample_completions(
    model: PreTrainedModel,
    prompt_ids: list[list[int]],
    generation_config: GenerationConfig,
    *,
    seed: int,
    batch_size: int | None = None,
) -> list[list[int]]:
    """Sample one completion per prompt.

    Args:
        model: the policy; its train/eval mode is restored.
        prompt_ids: B prompts of token ids; a group's prompt stands there G times.
        generation_config: sampling parameters; its `eos_token_id` ends a completion and
            `pad_token_id` fills the batch.
        seed: seed of this call alone; the global generators are left as they were.
        batch_size: most prompts in one `generate` call; default all.

    Returns:
        B lists of token ids without padding, the end token included where one was sampled.
    """
    model = base_model(model)
    device = next(model.parameters()).device
    eos = generation_config.eos_token_id
    eos_ids = set() if eos is None else {eos} if isinstance(eos, int) else set(eos)
    size = batch_size or len(prompt_ids)
    was_training = model.training
    defaults = model.generation_config
    completions: list[list[int]] = []
    model.eval()
    # What the caller leaves unset would be filled from the model's own file (a top_k, a penalty),
    # and the policy that samples would differ from the one that is trained.
    model.generation_config = GenerationConfig()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            for start in range(0, len(prompt_ids), size):
                chunk = prompt_ids[start : start + size]
                inputs = _left_pad(chunk, generation_config.pad_token_id, device)
                output = model.generate(**inputs, generation_config=generation_config)
                new = output[:, inputs["input_ids"].shape[1] :].tolist()
                completions += [_cut_after(ids, eos_ids) for ids in new]
    finally:
        model.generation_config = defaults
        model.train(was_training)
    return completions


def _left_pad(
    prompt_ids: list[list[int]], pad_token_id: int, device: torch.device
) -> dict[str, torch.Tensor]:
    length = max(map(len, prompt_ids))
    input_ids = torch.full((len(prompt_ids), length), pad_token_id, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    for i, ids in enumerate(prompt_ids):
        input_ids[i, length - len(ids) :] = torch.tensor(ids)
        attention_mask[i, length - len(ids) :] = 1
    return {"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device)}


def _cut_after(ids: list[int], eos_ids: set[int]) -> list[int]:
    for i, token in enumerate(ids):
        if token in eos_ids:
            return ids[: i + 1]
    return ids


@dataclass
class Rollouts:
    """One process's completions of a generation batch, in micro-batch order.

    B completions; completion i has T_i tokens.
    """

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    advantages: torch.Tensor
    """(B,) float32"""
    in_loss: torch.Tensor
    """(B,) bool: False where a truncated completion is left out of the loss"""
    old_logprobs: list[torch.Tensor] | None = None
    """B tensors (T_i,) float32 under the policy that sampled; None when still on-policy"""
    ref_logprobs: list[torch.Tensor] | None = None
    """B tensors (T_i,) float32 under the reference model"""

    def __len__(self) -> int:
        return len(self.prompt_ids)

    def num_tokens(self, rows: slice) -> int:
        """Completion tokens of `rows` that are in the loss, those of dead groups included."""
        lengths = [len(ids) for ids in self.completion_ids[rows]]
        return sum(n for n, kept in zip(lengths, self.in_loss[rows].tolist(), strict=True) if kept)

    def learnable(self, rows: slice, *, skip_zero_advantages: bool) -> list[int]:
        """The rows that can have a gradient.

        A row with advantage 0 has none when nothing but the policy term is in the loss. When no
        row is left, the shortest is returned (with its zero gradient), so that every process runs
        the same collectives.
        """
        keep = self.in_loss[rows].clone()
        if skip_zero_advantages:
            keep &= self.advantages[rows] != 0
        start = rows.start or 0
        chosen = [start + int(i) for i in torch.nonzero(keep).flatten()]
        if chosen:
            return chosen
        indices = range(*rows.indices(len(self)))
        return [min(indices, key=lambda i: len(self.prompt_ids[i]) + len(self.completion_ids[i]))]

    def inputs(self, rows: list[int], pad_token_id: int) -> dict[str, Any]:
        """The model inputs of a micro-batch of b rows with N completion tokens in all.

        Returns:
            input_ids, attention_mask (b, L): prompt and completion, right-padded.
            logit_positions (N,): flat indices into (b * L) of the hidden states that predict the
            completion tokens. targets (N,), cu_seqlens (b + 1,), advantages (b,), and
            old_logprobs, ref_logprobs (N,) or None; in_loss: whether any row counts in the loss.
        """
        prompts = [self.prompt_ids[i] for i in rows]
        completions = [self.completion_ids[i] for i in rows]
        lengths = torch.tensor([len(c) for c in completions])
        width = max(len(p) + len(c) for p, c in zip(prompts, completions, strict=True))
        input_ids = torch.full((len(rows), width), pad_token_id, dtype=torch.int64)
        attention_mask = torch.zeros_like(input_ids)
        positions = []
        for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            total = len(prompt) + len(completion)
            input_ids[i, :total] = torch.tensor(prompt + completion)
            attention_mask[i, :total] = 1
            positions.append(torch.arange(len(prompt) - 1, total - 1) + i * width)
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "logit_positions": torch.cat(positions),
            "targets": torch.tensor([t for c in completions for t in c]),
            "cu_seqlens": torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
            "advantages": self.advantages[rows],
            "old_logprobs": _gather_rows(self.old_logprobs, rows),
            "ref_logprobs": _gather_rows(self.ref_logprobs, rows),
            "in_loss": bool(self.in_loss[rows].any()),
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything, as plain containers and tensors."""
        return dict(vars(self))

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Rollouts:
        """The rollouts saved by `state_dict`."""
        return cls(**state)


def _gather_rows(logprobs: list[torch.Tensor] | None, rows: list[int]) -> torch.Tensor | None:
    return None if logprobs is None else torch.cat([logprobs[i] for i in rows])
