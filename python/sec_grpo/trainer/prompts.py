"""Prompt rows: validation, category labels, chat templates and tokenization."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RESERVED_COLUMNS = ("prompts", "completions", "trainer_state", "log_metric", "log_extra")

logger = logging.get_logger(__name__)

Category = str | Sequence[str] | Callable[[Mapping[str, Any]], object] | None
DEFAULT_CATEGORY = "difficulty"


class PromptDataset:
    """The rows of a data set with a `prompt` column and one category label each.

    Args:
        dataset: a `datasets.Dataset`, a list of dicts, or anything with a length whose items are
            dicts. `prompt` is a string or a list of chat messages.
        category: the column whose value is the row's curriculum arm, several columns (their tuple
            is the arm), a function of the row, or None for a single arm.
        argument: the name by which errors call the data set.

    Every prompt is looked at once, here.

    Raises:
        ValueError: the data set is empty, a column is missing or has a name that reward functions
            are called with, or a row has no usable prompt or label; the message names the column
            and the row.
    """

    def __init__(
        self, dataset: Any, category: Category = None, argument: str = "train_dataset"
    ) -> None:
        self._argument = argument
        if dataset is None:
            raise ValueError(f"{argument} is missing: pass a data set with a 'prompt' column")
        random_access = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
        if not random_access or hasattr(dataset, "iloc") or isinstance(dataset, (Mapping, str)):
            raise ValueError(
                f"{argument} must be a list of rows or a datasets.Dataset, got "
                f"{type(dataset).__name__}: a curriculum draws prompts by index. Turn a streaming "
                "data set into a list first, a data frame into a datasets.Dataset (from_pandas), "
                "and choose one split of several"
            )
        if len(dataset) == 0:
            raise ValueError(f"{argument} is empty: there is no prompt to train on")
        self._dataset = dataset
        self.columns = _columns(dataset, argument)
        """every column's name, `prompt` included"""
        if "prompt" not in self.columns:
            raise ValueError(
                f"{argument} has no column 'prompt'; its columns are {', '.join(self.columns)}. "
                "Rename the column that holds the question to 'prompt'"
            )
        if clash := [name for name in RESERVED_COLUMNS if name in self.columns]:
            raise ValueError(
                f"{argument} must not have a column {clash[0]!r}: reward functions are called with "
                "an argument of that name. Rename it"
            )
        self.lengths, self.digest = self._look_at_prompts()
        self.categories = self._labels(category, self.columns)

    def __len__(self) -> int:
        return len(self._dataset)

    def row(self, index: int) -> dict[str, Any]:
        """The row's columns."""
        return dict(_row(self._dataset, int(index), self._argument))

    def require_column(self, name: str | None, setting: str) -> None:
        """ValueError unless there is a column of that name; None passes."""
        if name is not None and name not in self.columns:
            raise ValueError(
                f"{setting}={name!r}: {self._argument} has no such column; its columns are "
                f"{', '.join(self.columns)}"
            )

    def _look_at_prompts(self) -> tuple[list[int], str]:
        """Check every prompt; the UTF-8 bytes of each, and a digest of them all."""
        lengths = []
        digest = hashlib.sha256()
        for i, prompt in enumerate(_column(self._dataset, "prompt", self._argument)):
            self._check_prompt(i, prompt)
            messages = prompt if is_chat(prompt) else [{"role": "", "content": prompt}]
            parts = [part for m in messages for part in (m["role"], m["content"])]
            try:
                encoded = [str(part).encode() for part in parts]
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"{self._argument} row {i}: column 'prompt' must be text, got {prompt!r:.200} "
                    f"({error.reason})"
                ) from error
            lengths.append(sum(map(len, encoded)))
            digest.update(b"\x1f".join(encoded) + b"\x1e")
        return lengths, digest.hexdigest()[:16]

    def _check_prompt(self, index: int, prompt: Any) -> None:
        if not is_chat(prompt):
            if not isinstance(prompt, str) or not prompt:
                raise ValueError(
                    f"{self._argument} row {index}: column 'prompt' must be a non-empty string or "
                    f"a non-empty list of chat messages, got {prompt!r}"
                )
            return
        for message in prompt:
            text = isinstance(message, Mapping) and isinstance(message.get("content"), str)
            if not text or not isinstance(message.get("role"), str):
                raise ValueError(
                    f"{self._argument} row {index}: every message of column 'prompt' must be a "
                    f"dict with a 'role' and a text 'content', got {message!r}"
                )

    def _labels(self, category: Category, columns: list[str]) -> list[object]:
        if category is None:
            return ["all"] * len(self)
        if callable(category):
            labels = [self._label(category, i) for i in range(len(self))]
            name = "category function"
        else:
            names = [category] if isinstance(category, str) else list(_names(category))
            for column in names:
                if column not in columns:
                    raise ValueError(
                        f"{self._argument} has no column {column!r} for category={category!r}; "
                        f"its columns are {', '.join(columns)}. Name one of them, or pass "
                        "category=None (--category none) for no arms"
                    )
            values = [_column(self._dataset, column, self._argument) for column in names]
            labels = values[0] if isinstance(category, str) else list(zip(*values, strict=True))
            name = f"column {category!r}"
        labels = [_number(label) for label in labels]
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

    def _label(self, category: Callable[[Mapping[str, Any]], object], index: int) -> object:
        row = self.row(index)
        try:
            return category(row)
        except Exception as error:
            raise ValueError(
                f"{self._argument} row {index}: the category function raised "
                f"{type(error).__name__}: {error}; the row is {row!r:.200}"
            ) from error


def used_category(category: Category, dataset: Any, *, has_strategy: bool) -> Category:
    """`category`, or None where it is the default column, missing, and no strategy asks for arms.

    So rows without categories train with the arguments of a trainer that knows no curriculum.
    """
    if has_strategy or not isinstance(category, str) or category != DEFAULT_CATEGORY:
        return category
    columns = getattr(dataset, "column_names", None)
    if columns is None and isinstance(dataset, Sequence):
        columns = [name for row in dataset if isinstance(row, Mapping) for name in row]
    return category if columns is None or category in columns else None


def is_chat(prompt: object) -> bool:
    """Whether a prompt (or completion) is a list of chat messages."""
    return isinstance(prompt, (list, tuple)) and len(prompt) > 0


def prompt_text(
    prompt: Any,
    tokenizer: PreTrainedTokenizerBase,
    template_kwargs: Mapping[str, Any] | None = None,
) -> str:
    """A prompt as the text the model reads.

    Chat messages go through the tokenizer's chat template. A tokenizer without one (base models)
    gets the messages' contents joined by a blank line, with one warning.
    """
    if not is_chat(prompt):
        return str(prompt)
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(
            list(prompt), add_generation_prompt=True, tokenize=False, **(template_kwargs or {})
        )
        assert isinstance(text, str)
        return text
    logger.warning_once(
        "the tokenizer has no chat template: the contents of chat messages are joined as plain "
        "text. Set processing_class.chat_template to format them"
    )
    return "\n\n".join(message["content"] for message in prompt)


def tokenize_prompt(
    prompt: Any,
    tokenizer: PreTrainedTokenizerBase,
    template_kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """Token ids of a prompt; a chat template writes its own special tokens.

    Args:
        template_kwargs: more arguments of the chat template.
    """
    text = prompt_text(prompt, tokenizer, template_kwargs)
    templated = is_chat(prompt) and bool(tokenizer.chat_template)
    ids = tokenizer(text, add_special_tokens=not templated)["input_ids"]
    if not ids:
        raise ValueError(f"prompt {text!r} has no tokens under the tokenizer")
    return list(ids)


def _number(label: Any) -> object:
    """The number in an array without axes, which is what a data set with format "torch" has."""
    return label.item() if getattr(label, "shape", None) == () else label


def _names(category: Any) -> Sequence[str]:
    """Several columns, checked."""
    is_list = isinstance(category, (list, tuple)) and len(category) > 0
    if not is_list or not all(isinstance(column, str) for column in category):
        raise ValueError(
            "category must be a column's name, a list of names, a function of the row, or None, "
            f"got {category!r}"
        )
    names: Sequence[str] = category
    return names


def _row(dataset: Any, index: int, argument: str) -> Any:
    try:
        return dataset[index]
    except Exception as error:
        raise ValueError(
            f"{argument} row {index} cannot be read: {type(error).__name__}: {error}"
        ) from error


def _columns(dataset: Any, argument: str) -> list[str]:
    """The columns of a data set; rows of a list may lack some, whose value is then None."""
    names = getattr(dataset, "column_names", None)
    if names is not None:
        return list(names)
    columns: dict[str, None] = {}
    for i in range(len(dataset)):
        row = _row(dataset, i, argument)
        if not isinstance(row, Mapping):
            raise ValueError(f"{argument} row {i} must be a dict, got {type(row).__name__}")
        columns.update(dict.fromkeys(map(str, row)))
    return list(columns)


def _column(dataset: Any, name: str, argument: str) -> list[Any]:
    if hasattr(dataset, "column_names"):
        return list(dataset[name][:])  # datasets 4 has it read row by row otherwise
    values = []
    for i in range(len(dataset)):
        row = _row(dataset, i, argument)
        if name not in row:
            raise ValueError(
                f"{argument} row {i} has no column {name!r}; it has {', '.join(map(str, row))}"
            )
        values.append(row[name])
    return values
