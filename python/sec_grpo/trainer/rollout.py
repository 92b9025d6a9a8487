"""Sampling completions with a key-value cache."""

from __future__ import annotations

import copy

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


class Sampler:
    """Samples completions with the settings of a run.

    Args:
        generation_config: sampling parameters and end tokens.
        batch_size: most completions sampled together; None for all.
    """

    def __init__(self, generation_config: GenerationConfig, *, batch_size: int | None) -> None:
        self._config = generation_config
        self._batch_size = batch_size
        eos = generation_config.eos_token_id
        self._eos_ids = set(eos) if isinstance(eos, list) else {eos}

    def sample(
        self, model: PreTrainedModel, prompt_ids: list[list[int]], seed: int
    ) -> list[list[int]]:
        """One completion for each prompt; see `sample_completions`."""
        return sample_completions(
            model, prompt_ids, self._config, seed=seed, batch_size=self._batch_size
        )

    def is_finished(self, ids: list[int]) -> bool:
        """Whether a completion ended by itself."""
        return bool(ids) and ids[-1] in self._eos_ids

    def at_temperature(self, temperature: float, batch_size: int | None) -> Sampler:
        """The same at another temperature; 0 is greedy."""
        config = copy.deepcopy(self._config)
        if temperature > 0:
            config.temperature = temperature
        else:
            config.do_sample = False
            config.temperature = config.top_p = config.top_k = config.min_p = None
        return Sampler(config, batch_size=batch_size)
