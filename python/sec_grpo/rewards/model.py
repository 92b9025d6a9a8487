"""A reward model, a sequence classifier with one output, as a reward function."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class RewardModel:
    """The score that a sequence classifier gives to prompt and completion, as its logit.

    Chat messages are joined by the tokenizer's chat template, text by concatenation; nothing is
    added (TRL's way). Scores do not depend on the batch but for rounding.

    A completion is hostile input: what it spells like a special token (the end of a turn, the start
    of another) is read as plain text, and of a text that is too long the end counts.

    Args:
        model: a folder or Hub name, loaded with one label, or a loaded model; it is put into
            evaluation mode and stays on its device.
        tokenizer: the model's; default: loaded from the same name.
        batch_size: rows scored at a time, longest first.
        max_length: tokens of prompt and completion together; default: what the model's positions
            cover.
        device: where a model that is loaded here goes; default: a GPU if there is one.
        name: becomes `__name__`; default: the last part of the model's name.

    Raises:
        ValueError: the model has more than one label, no tokenizer can be found, the tokenizer has
            no token to pad with, or `batch_size` or `max_length` is below 1.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        batch_size: int = 8,
        max_length: int | None = None,
        device: str | torch.device | None = None,
        name: str | None = None,
    ) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        for argument, value in (("batch_size", batch_size), ("max_length", max_length)):
            if value is not None and value < 1:
                raise ValueError(f"{argument} must be at least 1. Got {value}.")
        if isinstance(model, str):
            loaded = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1)
            model = loaded.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        source = str(model.config._name_or_path)
        if model.config.num_labels != 1:
            raise ValueError(
                f"a reward model must have one label. Got {model.config.num_labels} in "
                f"{source or type(model).__name__}; wrap it in a function of your own."
            )
        if tokenizer is None:
            if not source:
                raise ValueError("tokenizer is missing: this model was not loaded by a name")
            tokenizer = AutoTokenizer.from_pretrained(source)
        if tokenizer.pad_token_id is None:
            if tokenizer.eos_token_id is None:
                raise ValueError("tokenizer has no token to pad with: set its pad_token")
            tokenizer.pad_token = tokenizer.eos_token
        # The classifier scores the last token that is not padding.
        model.config.pad_token_id = tokenizer.pad_token_id
        self._model = model.eval()
        self.tokenizer = tokenizer
        self._batch_size = batch_size
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._max_length = max_length or positions
        special = {*tokenizer.all_special_tokens, *_special_of(tokenizer)} - {""}
        # A position where one starts; without any, a position that does not exist.
        starts = "|".join(map(re.escape, sorted(special))) or "(?!)"
        self._special = re.compile(f"(?={starts})(.)", re.DOTALL)
        self.__name__ = name or source.rstrip("/").rpartition("/")[2] or type(model).__name__

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float]:
        """One score for each completion."""
        import torch

        encoded = [self._encoded(p, c) for p, c in zip(prompts, completions, strict=True)]
        scores = [0.0] * len(encoded)
        order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i]))
        for start in range(0, len(order), self._batch_size):
            rows = order[start : start + self._batch_size]
            batch = self.tokenizer.pad(
                {"input_ids": [encoded[i] for i in rows]}, padding_side="right", return_tensors="pt"
            )
            with torch.inference_mode():
                logits = self._model(**batch.to(self._model.device)).logits[:, 0].float()
            for i, score in zip(rows, logits.tolist(), strict=True):
                scores[i] = score
        return scores

    def _encoded(self, prompt: Any, completion: Any) -> list[int]:
        if isinstance(prompt, str):
            text = prompt + self._plain(completion)
        else:
            messages = [{**m, "content": self._plain(m.get("content") or "")} for m in completion]
            text = self.tokenizer.apply_chat_template([*prompt, *messages], tokenize=False)
        text = text.encode("utf-8", "replace").decode()
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if self._max_length is not None:
            ids = ids[-self._max_length :]
        # A text without tokens cannot be scored; the end of text alone can.
        return ids or [self.tokenizer.pad_token_id]

    def _plain(self, text: Any) -> Any:
        """The text with a space inside what would be read as a special token."""
        return self._special.sub(r"\1 ", text) if isinstance(text, str) else text


def _special_of(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return [str(token) for token in added.values() if token.special]
