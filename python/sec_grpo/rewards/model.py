"""A reward model, a sequence classifier with one output, as a reward function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class RewardModel:
    """The score that a sequence classifier gives to prompt and completion, as its logit.

    Chat messages are joined by the tokenizer's chat template, text by concatenation; nothing is
    added (TRL's way). Scores do not depend on the batch but for rounding.

    Args:
        model: a folder or Hub name, loaded with one label, or a loaded model; it is put into
            evaluation mode and stays on its device.
        tokenizer: the model's; default: loaded from the same name.
        batch_size: rows scored at a time, longest first.
        device: where a model that is loaded here goes; default: a GPU if there is one.
        name: becomes `__name__`; default: the last part of the model's name.

    Raises:
        ValueError: the model has more than one label, no tokenizer can be found, the tokenizer has
            no token to pad with, or `batch_size` is below 1.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        batch_size: int = 8,
        device: str | torch.device | None = None,
        name: str | None = None,
    ) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1. Got {batch_size}.")
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
        self._tokenizer = tokenizer
        self._batch_size = batch_size
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
            batch = self._tokenizer.pad(
                {"input_ids": [encoded[i] for i in rows]}, padding_side="right", return_tensors="pt"
            )
            with torch.inference_mode():
                logits = self._model(**batch.to(self._model.device)).logits[:, 0].float()
            for i, score in zip(rows, logits.tolist(), strict=True):
                scores[i] = score
        return scores

    def _encoded(self, prompt: Any, completion: Any) -> list[int]:
        if isinstance(prompt, str):
            text = prompt + completion
        else:
            text = self._tokenizer.apply_chat_template([*prompt, *completion], tokenize=False)
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        # A text without tokens cannot be scored; the end of text alone can.
        return ids or [self._tokenizer.pad_token_id]
