"""Load prompts from a file, a saved data set or the hub, in one flat form."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sec_grpo.tasks.files import SUFFIXES, first_line, read_file

if TYPE_CHECKING:
    import datasets

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_ROWS_PER_CHECK = 1000


def load_dataset_file(
    source: str | Path | datasets.Dataset | datasets.DatasetDict,
    split: str = "train",
    *,
    config: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> datasets.Dataset:
    """Load a data set of prompts.

    Rows in the format of the SEC authors and of verl (`prompt`, `reward_model.ground_truth`,
    `extra_info`) become flat columns: `prompt`, `ground_truth` and, where the source has them,
    `difficulty`, `type`, `data_source`, `index`. Values keep their structure (a struct stays a
    struct); other columns of that format are left out unless `columns` names them. Rows in TRL's
    format (`prompt` and any other columns) pass unchanged.

    Args:
        source: a .parquet, .json (an array of objects), .jsonl or .csv file; a directory written by
            `save_to_disk`, or of data files as they lie on the hub; the name of a data set on the
            Hugging Face hub; or a data set that is loaded already. An existing path wins over a hub
            name. Large parquet files are mapped, not held in memory.
        split: which split, where the source has splits; a file has none and is read whole.
        config: the configuration of a hub data set that has several.
        columns: the columns that a source calls otherwise, new name -> its name there, as
            {"prompt": "question", "ground_truth": "answer"}. A dot leads into a struct:
            {"type": "extra_info.topic"}.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: the source cannot be read, is empty, has no `prompt` column or no such split,
            or a row has no prompt or no ground truth. The message names the source, the column,
            the row (counted from 0) and the way out.
    """
    data, name = _read(source, split, config)
    if len(data) == 0:
        raise ValueError(f"{name}: the data set is empty; at least one row is needed.")
    named = _named(data, columns or {}, name)
    if "prompt" not in data.column_names and "prompt" not in named:
        raise ValueError(
            f"{name}: no column 'prompt'. Columns: {', '.join(data.column_names) or 'none'}. "
            "Rename the column that holds the prompts to 'prompt', or say which it is: "
            "columns={'prompt': its name}."
        )
    if "reward_model" in data.column_names:
        data = _flatten(data, name, named)
    elif named:
        kept = {column: data.data[column] for column in data.column_names}
        taken = {source for source in (columns or {}).values() if "." not in source}
        data = _dataset({**{c: v for c, v in kept.items() if c not in taken}, **named})
    _check_prompts(data, name)
    return data


# Before the name of a data set of reasoning_gym, in the name of its task.
GYM_PREFIX = "reasoning_gym/"
# The authors' names for the test sets of task "math" besides MATH itself, and for ARC-1D.
_OTHER_NAMES = {"aime": "math", "amc": "math", "arc": "arc_1d"}


def task_of(row: Mapping[str, Any] | str) -> str:
    """The name of the registered task that verifies a row.

    A row's `task` column decides; without one, the first word of its `data_source` that is a
    registered name ("countdown-easy-train" -> "countdown"), the contest of a math data set
    ("test_aime" -> "math"), or "arc" for arc_1d.

    Args:
        row: a row of a data set, or just its data source.

    Raises:
        ValueError: neither column, or no registered task fits.
    """
    from sec_grpo.tasks import names

    if isinstance(row, str):
        source = row
    elif row.get("task") is not None:
        source = row["task"]
        if source in names() or source.startswith(GYM_PREFIX):
            return str(source)
    elif row.get("data_source") is not None:
        source = row["data_source"]
    else:
        raise ValueError(
            "a row needs a column 'task' or 'data_source' to find its task. "
            f"Got: {', '.join(map(str, row)) or 'no columns'}."
        )
    for word in re.split(r"[-_/\s]+", source.lower()):
        word = _OTHER_NAMES.get(word, word)
        if word in names():
            return word
    raise ValueError(
        f"no registered task verifies {source!r}. Known: {', '.join(names())}. "
        "Register one with sec_grpo.tasks.register, or give the rows a column 'task'."
    )


def _read(source: Any, split: str, config: str | None) -> tuple[datasets.Dataset, str]:
    """The data set, its rows in order, and what to call it."""
    import datasets

    if isinstance(source, datasets.DatasetDict):
        return _split_of(source, split, "the DatasetDict"), f"split {split!r}"
    if isinstance(source, datasets.Dataset):
        return _in_order(source), "the data set"
    if not isinstance(source, (str, Path)):
        raise ValueError(
            "source must be a path, a hub name, a datasets.Dataset or a DatasetDict. "
            f"Got {type(source).__name__}."
        )
    name, path = str(source), Path(source).expanduser()
    if path.is_dir():
        return _in_order(_read_directory(path, split)), name
    if path.suffix in SUFFIXES or path.is_file():
        return read_file(path), name
    if _HUB_NAME.fullmatch(name):
        return _in_order(_read_hub(name, split, config)), name
    raise FileNotFoundError(
        f"no file or directory {name!r}. Give an existing path (relative paths start at "
        f"{Path.cwd()}) or a hub name like 'owner/name'."
    )


def _in_order(data: datasets.Dataset) -> datasets.Dataset:
    """The data set without a format, and without the indices of a selection or a shuffle."""
    data = data.with_format(None)
    return data if data._indices is None else data.flatten_indices()


def _split_of(data: datasets.DatasetDict, split: str, name: str) -> datasets.Dataset:
    if split not in data:
        raise ValueError(f"{name}: no split {split!r}. Splits: {', '.join(data)}.")
    return _in_order(data[split])


def _read_directory(path: Path, split: str) -> datasets.Dataset:
    import datasets

    if not ((path / "state.json").is_file() or (path / "dataset_dict.json").is_file()):
        return _read_shards(path, split)
    try:
        data = datasets.load_from_disk(str(path))
    except Exception as error:  # whatever a damaged directory makes the reader raise
        raise ValueError(f"{path}: cannot be read ({first_line(error)}); save it again.") from error
    if isinstance(data, datasets.DatasetDict):
        return _split_of(data, split, str(path))
    return data


def _read_shards(path: Path, split: str) -> datasets.Dataset:
    """A directory of data files, with the splits that `datasets` reads from their names."""
    import datasets

    if not any(file.suffix in SUFFIXES for file in path.rglob("*")):
        raise ValueError(
            f"{path}: not a directory written by save_to_disk, and none of data files. "
            f"Name one file, ending in {', '.join(SUFFIXES)}."
        )
    try:
        return datasets.load_dataset(str(path), split=split)
    except Exception as error:  # format, split: all end the same way here
        raise ValueError(
            f"{path}: the data files in it could not be loaded, split {split!r} "
            f"({type(error).__name__}: {first_line(error)})."
        ) from error


def _read_hub(name: str, split: str, config: str | None) -> datasets.Dataset:
    import datasets

    options = {} if config is None else {"name": config}
    try:
        return datasets.load_dataset(name, split=split, **options)
    except Exception as error:  # network, authentication, format: all end the same way here
        from sec_grpo.tasks import names

        near = difflib.get_close_matches(name, names(), n=1)
        hint = f" Or did you mean the task {near[0]!r}?" if near else ""
        raise ValueError(
            f"{name!r} is no file or directory here and could not be loaded from the hub, split "
            f"{split!r} ({type(error).__name__}: {first_line(error)}). Check the name, the split, "
            f"the config and the network, or give a local file.{hint}"
        ) from error


def _named(data: datasets.Dataset, columns: Mapping[str, str], name: str) -> dict[str, Any]:
    """The Arrow columns that `columns` names."""
    found = {}
    for new, path in columns.items():
        column = _column(data.data, path)
        if column is None:
            raise ValueError(
                f"{name}: no column {path!r} for {new!r}. Columns: "
                f"{', '.join(data.column_names) or 'none'}."
            )
        found[new] = column
    return found


def _column(table: Any, path: str) -> Any:
    """The column at a dotted path; None where there is none."""
    import pyarrow
    import pyarrow.compute

    parent, *children = [path] if path in table.column_names else path.split(".")
    if parent not in table.column_names:
        return None
    column = table[parent]
    for child in children:
        kind = column.type
        if not isinstance(kind, pyarrow.StructType) or kind.get_field_index(child) < 0:
            return None
        column = pyarrow.compute.struct_field(column, child)
    return column


_FLAT = {
    "prompt": "prompt",
    "ground_truth": "reward_model.ground_truth",
    "difficulty": "extra_info.difficulty",
    "type": "extra_info.type",
    "index": "extra_info.index",
    "data_source": "data_source",
}


def _flatten(data: datasets.Dataset, name: str, named: Mapping[str, Any]) -> datasets.Dataset:
    import pyarrow.compute

    found = {new: _column(data.data, path) for new, path in _FLAT.items()} | dict(named)
    columns = {new: column for new, column in found.items() if column is not None}
    if "ground_truth" not in columns:
        raise ValueError(
            f"{name}: column 'reward_model' has no field 'ground_truth'. Add it, or give the rows "
            "a flat column 'ground_truth' and drop 'reward_model'."
        )
    missing = pyarrow.compute.index(columns["ground_truth"].is_null(), True).as_py()
    if missing >= 0:
        raise ValueError(
            f"{name}: row {missing} has no 'reward_model.ground_truth'. "
            "Fill it in or remove the row."
        )
    return _dataset(columns)


def _dataset(columns: Mapping[str, Any]) -> datasets.Dataset:
    """Of Arrow columns, which are not copied: those of a mapped file stay mapped."""
    import datasets
    import pyarrow

    return datasets.Dataset(datasets.table.InMemoryTable(pyarrow.table(dict(columns))))


def _check_prompts(data: datasets.Dataset, name: str) -> None:
    prompts = data.select_columns(["prompt"]).with_format(None)
    row = 0
    for batch in prompts.iter(batch_size=_ROWS_PER_CHECK):
        for prompt in batch["prompt"]:
            problem = _problem_with(prompt)
            if problem:
                raise ValueError(
                    f"{name}: row {row}, column 'prompt': {problem}. It must be a non-empty string "
                    "or a list of chat messages with content. Fix or remove the row."
                )
            row += 1


def _problem_with(prompt: Any) -> str | None:
    if prompt is None:
        return "no value"
    if isinstance(prompt, str):
        return None if prompt.strip() else "an empty string"
    if not isinstance(prompt, list) or not all(isinstance(m, Mapping) for m in prompt):
        return f"a value of type {type(prompt).__name__}"
    if not prompt:
        return "an empty list of messages"
    for message in prompt:
        if not message.get("role"):
            return "a message without a role"
        content = message.get("content")
        if content is None or (isinstance(content, str) and not content.strip()):
            return "a message without content"
    return None
