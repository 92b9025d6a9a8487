"""Prompt rows: validation, category labels, chat templates and tokenization."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Category = str | Sequence[str] | Callable[[Mapping[str, Any]], object] | None


class PromptDataset:
    """The rows of a data set with a `prompt` column and one category label each.

    Args:
        dataset: a `datasets.Dataset`, a list of dicts, or anything with a length whose items are
            dicts. `prompt` is a string or a list of chat messages.
        category: the column whose value is the row's curriculum arm, several columns (their tuple
            is the arm), a function of the row, or None for a single arm.
        argument: the name by which errors call the data set.

    Raises:
        ValueError: the data set is empty, a column is missing, or a row has no usable prompt or
            label; the message names the column and the row.
    """

    def __init__(
        self, dataset: Any, category: Category = None, argument: str = "train_dataset"
    ) -> None:
        self._argument = argument
        if dataset is None:
            raise ValueError(f"{argument} is missing: pass a data set with a 'prompt' column")
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise ValueError(
                f"{argument} must have a length and random access, got {type(dataset).__name__}: a "
                "curriculum draws prompts by index. Turn a streaming data set into a list or a "
                "datasets.Dataset first"
            )
        if len(dataset) == 0:
            raise ValueError(f"{argument} is empty: there is no prompt to train on")
        self._dataset = dataset
        columns = _columns(dataset)
        if "prompt" not in columns:
            raise ValueError(
                f"{argument} has no column 'prompt'; its columns are {', '.join(columns)}. Rename "
                "the column that holds the question to 'prompt'"
            )
        self.categories = self._labels(category, columns)

    def __len__(self) -> int:
        return len(self._dataset)

    def row(self, index: int) -> dict[str, Any]:
        """The row's columns; raises ValueError when its prompt is not usable."""
        row = dict(self._dataset[int(index)])
        prompt = row.get("prompt")
        if is_chat(prompt):
            assert prompt is not None
            for message in prompt:
                if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
                    raise ValueError(
                        f"{self._argument} row {index}: every message of column 'prompt' must be a "
                        f"dict with 'role' and a text 'content', got {message!r}"
                    )
        elif not isinstance(prompt, str) or not prompt:
            raise ValueError(
                f"{self._argument} row {index}: column 'prompt' must be a non-empty string or a "
                f"non-empty list of chat messages, got {prompt!r}"
            )
        return row

    def _labels(self, category: Category, columns: list[str]) -> list[object]:
        if category is None:
            return ["all"] * len(self)
        if callable(category):
            labels = [category(self.row(i)) for i in range(len(self))]
            name = "category function"
        else:
            names = [category] if isinstance(category, str) else list(category)
            for column in names:
                if column not in columns:
                    raise ValueError(
                        f"{self._argument} has no column {column!r} for category={category!r}; "
                        f"its columns are {', '.join(columns)}. Name one of them, or pass "
                        "category=None to train without arms"
                    )
            values = [_column(self._dataset, column) for column in names]
            labels = values[0] if isinstance(category, str) else list(zip(*values, strict=True))
            name = f"column {category!r}"
        for i, label in enumerate(labels):
            parts = label if isinstance(label, tuple) else (label,)
            if any(p is None or (isinstance(p, float) and math.isnan(p)) for p in parts):
                raise ValueError(
                    f"{self._argument} row {i}: {name} is {label!r}; every row needs a category"
                )
            if any(isinstance(p, (list, dict)) for p in parts):
                raise ValueError(
                    f"{self._argument} row {i}: {name} holds {label!r}; a category is a number, a "
                    "string, or a tuple of them"
                )
        return labels


def is_chat(prompt: object) -> bool:
    """Whether a prompt (or completion) is a list of chat messages."""
    return isinstance(prompt, (list, tuple)) and len(prompt) > 0


def prompt_text(prompt: Any, tokenizer: PreTrainedTokenizerBase) -> str:
    """A prompt as the text the model reads.

    Chat messages go through the tokenizer's chat template. A tokenizer without one (base models)
    gets the messages' contents joined by a blank line, with one warning.
    """
    if not is_chat(prompt):
        return str(prompt)
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(
            list(prompt), add_generation_prompt=True, tokenize=False
        )
        assert isinstance(text, str)
        return text
    warnings.warn(
        "the tokenizer has no chat template: the contents of chat messages are joined as plain "
        "text. Set processing_class.chat_template to format them",
        stacklevel=2,
    )
    return "\n\n".join(message["content"] for message in prompt)


def tokenize_prompt(prompt: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a prompt; a chat template writes its own special tokens."""
    text = prompt_text(prompt, tokenizer)
    templated = is_chat(prompt) and bool(tokenizer.chat_template)
    ids = tokenizer(text, add_special_tokens=not templated)["input_ids"]
    if not ids:
        raise ValueError(f"prompt {text!r} has no tokens under the tokenizer")
    return list(ids)


def _columns(dataset: Any) -> list[str]:
    names = getattr(dataset, "column_names", None)
    if names is not None:
        return list(names)
    first = dataset[0]
    if not isinstance(first, Mapping):
        raise ValueError(f"rows of the data set must be dicts, got {type(first).__name__}")
    return [str(name) for name in first]


def _column(dataset: Any, name: str) -> list[object]:
    if hasattr(dataset, "column_names"):
        return list(dataset[name])
    labels = []
    for i in range(len(dataset)):
        row = dataset[i]
        if name not in row:
            raise ValueError(f"row {i} has no column {name!r}; it has {', '.join(map(str, row))}")
        labels.append(row[name])
    return labels
