"""Prompts as token ids, and completions as what reward functions get."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from sec_grpo.trainer.prompts import PromptDataset, is_chat, tokenize_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Encoder:
    """A tokenizer, and the room that a model has.

    Args:
        max_positions: the longest sequence the model takes; None if it does not say.
        max_completion_length: of these, how many are for the completion.
        template_kwargs: more arguments of the chat template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_positions: int | None,
        max_completion_length: int,
        template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._max_positions = max_positions
        self._max_completion_length = max_completion_length
        self._template_kwargs = template_kwargs

    def check(self, prompts: PromptDataset) -> None:
        """Tokenize the first prompt and those that may not fit the model's positions.

        A prompt is taken to fit unseen when its UTF-8 bytes are at most half of what is left for
        it: tokens are no more than bytes, and the other half is for the chat template.

        Raises:
            ValueError: a prompt does not fit, or the tokenizer cannot take the first.
        """
        fits = math.inf
        if self._max_positions is not None:
            fits = (self._max_positions - self._max_completion_length) / 2
        long = [i for i, length in enumerate(prompts.lengths) if length > fits]
        for index in dict.fromkeys([0, *long]):
            self.encode([prompts.row(index)], [index])

    def encode(self, rows: list[dict[str, Any]], indices: Iterable[int]) -> list[list[int]]:
        """Token ids of the rows' prompts; `indices` are their places in the data set."""
        cache: dict[int, list[int]] = {}
        where = [int(index) for index in indices]
        for index, row in zip(where, rows, strict=True):
            if index not in cache:
                cache[index] = self._tokenize(row["prompt"])
                self._check_length(index, len(cache[index]))
        return [cache[index] for index in where]

    def _tokenize(self, prompt: Any) -> list[int]:
        return tokenize_prompt(prompt, self._tokenizer, self._template_kwargs)

    def decode(self, rows: list[dict[str, Any]], completion_ids: list[list[int]]) -> list[Any]:
        """Completions as reward functions get them: text, or a message where the prompt is chat."""
        texts = self._tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
        return [
            [{"role": "assistant", "content": text}] if is_chat(row["prompt"]) else text
            for row, text in zip(rows, texts, strict=True)
        ]

    def _check_length(self, index: int, length: int) -> None:
        new = self._max_completion_length
        if self._max_positions is not None and length + new > self._max_positions:
            raise ValueError(
                f"row {index}: the prompt's {length} tokens and max_completion_length={new} exceed "
                f"the model's {self._max_positions} positions; shorten the prompt or the completion"
            )
