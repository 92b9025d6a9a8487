"""Sampling n completions of every prompt, in batches that can be continued."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import GenerationConfig

from sec_grpo.evaluation.journal import Journal, Sample
from sec_grpo.trainer.prompts import prompt_text, tokenize_prompt
from sec_grpo.trainer.rollout import derive_seed, sample_completions
from sec_grpo.trainer.setup import max_positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Values of a parameter that enter the model's digest.
_VALUES = 4096

Place = tuple[int, int]
"""of a completion: number of the row, number of the sample"""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How completions are sampled; see `evaluate`.

    Raises ValueError: an argument is out of range.
    """

    samples: int
    temperature: float | None
    top_p: float
    max_completion_length: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("samples", "max_completion_length", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.temperature is not None and not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be 0 or above, got {self.temperature}")
        if self.temperature == 0 and self.samples > 1:
            raise ValueError(
                f"temperature must be above 0 with samples={self.samples}: greedy samples are all "
                "the same"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.temperature is None:
            object.__setattr__(self, "temperature", 0.0 if self.samples == 1 else 0.6)

    def generation_config(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> GenerationConfig:
        """The arguments of `generate`; only the end tokens come from the model."""
        eos = getattr(model.generation_config, "eos_token_id", None) or tokenizer.eos_token_id
        tokens = (tokenizer.pad_token_id, tokenizer.eos_token_id)
        shared = {
            "max_new_tokens": self.max_completion_length,
            "eos_token_id": eos,
            "pad_token_id": next((token for token in tokens if token is not None), 0),
        }
        if self.temperature == 0:
            return GenerationConfig(do_sample=False, **shared)
        return GenerationConfig(
            do_sample=True, temperature=self.temperature, top_p=self.top_p, top_k=0, **shared
        )


class Sampler:
    """The completions of some prompts, the longest prompts first.

    Args:
        model, tokenizer: as `evaluate` takes them.
        prompts: texts or chat messages.
        sampling: how.

    Raises ValueError: a prompt has no tokens, or does not fit the model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Any],
        sampling: Sampling,
    ) -> None:
        self._model, self._tokenizer, self._sampling = model, tokenizer, sampling
        self._config = sampling.generation_config(model, tokenizer)
        self.texts = [prompt_text(prompt, tokenizer) for prompt in prompts]
        """the prompts as the model reads them"""
        self._ids = [tokenize_prompt(prompt, tokenizer) for prompt in prompts]
        self._check_lengths()
        rows = sorted(range(len(prompts)), key=lambda row: (-len(self._ids[row]), row))
        self._order = [(row, number) for row in rows for number in range(sampling.samples)]
        self.total = len(self._order)
        self.settings = {
            "total": self.total,
            "model": _digest_of_model(model),
            "prompts": _digest_of_prompts(self._ids),
            **dataclasses.asdict(sampling),
            "end": self._config.eos_token_id,
        }

    def journal(self, folder: Path | None, *, overwrite: bool) -> Journal:
        """The samples that `folder` holds."""
        return Journal(folder, self.settings, self._sampling.batch_size, overwrite=overwrite)

    def batches(self, journal: Journal) -> Iterator[tuple[list[Place], list[Sample]]]:
        """Every batch with its places: those of the journal, then new ones, which it keeps."""
        size = self._sampling.batch_size
        for start in range(0, self.total, size):
            places = self._order[start : start + size]
            if start >= len(journal.samples):
                journal.write(self._sampled(start, places))
            yield places, journal.samples[start : start + size]

    def _sampled(self, start: int, places: Sequence[Place]) -> list[Sample]:
        ids = sample_completions(
            self._model,
            [self._ids[row] for row, _ in places],
            self._config,
            seed=derive_seed(self._sampling.seed, "eval", start),
        )
        texts = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [
            # Lone surrogates, which UTF-8 does not have, become question marks.
            Sample(text.encode("utf-8", "replace").decode(), tokens, self._ended(tokens))
            for text, tokens in zip(texts, ids, strict=True)
        ]

    def _ended(self, tokens: Sequence[int]) -> bool:
        eos = self._config.eos_token_id
        return bool(tokens) and tokens[-1] in (eos if isinstance(eos, list) else [eos])

    def _check_lengths(self) -> None:
        limit, new = max_positions(self._model), self._sampling.max_completion_length
        for row, ids in enumerate(self._ids):
            if limit is not None and len(ids) + new > limit:
                raise ValueError(
                    f"row {row}: the prompt's {len(ids)} tokens and max_completion_length={new} "
                    f"exceed the model's {limit} positions; shorten the prompt or the completion"
                )


def _digest_of_prompts(prompts: Sequence[Sequence[int]]) -> str:
    digest = hashlib.sha256()
    for ids in prompts:
        digest.update(f"{','.join(map(str, ids))}\n".encode())
    return digest.hexdigest()[:16]


def _digest_of_model(model: PreTrainedModel) -> str:
    """Changes with the parameters' names, shapes, types and values.

    Of every parameter evenly spaced values are looked at: sums would differ in their last bits from
    one run on a GPU to the next.
    """
    import torch

    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        flat = parameter.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // _VALUES)].cpu().contiguous()
        digest.update(some.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
