"""Load prompts from a file, a saved data set or the hub, in one flat form."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets
    import pyarrow

_SUFFIXES = (".parquet", ".json", ".jsonl", ".csv")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_ROWS_PER_CHECK = 1000

# Text whatever it looks like: type inference would turn the answer "007" into 7.
_CSV_TEXT_COLUMNS = ("prompt", "ground_truth", "data_source", "type", "task")


def load_dataset_file(path_or_name: str | Path, split: str = "train") -> datasets.Dataset:
    """Load a data set of prompts.

    Rows in the format of the SEC authors and of verl (`prompt`, `reward_model.ground_truth`,
    `extra_info`) become flat columns: `prompt`, `ground_truth` and, where the source has them,
    `difficulty`, `type`, `data_source`, `index`. Values keep their structure (a struct stays a
    struct); other columns of that format are left out. Rows in TRL's format (`prompt` and any
    other columns) pass unchanged.

    Args:
        path_or_name: a .parquet, .json (an array of objects), .jsonl or .csv file, a directory
            written by `save_to_disk`, or the name of a data set on the Hugging Face hub. An
            existing path wins over a hub name.
        split: which split, where the source has splits; a file has none and is read whole.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: the source cannot be read, is empty, has no `prompt` column or no such split,
            or a row has no prompt or no ground truth. The message names the source, the column,
            the row (counted from 0) and the way out.
    """
    name = str(path_or_name)
    path = Path(path_or_name).expanduser()
    if path.is_dir():
        data = _read_directory(path, split)
    elif path.suffix in _SUFFIXES or path.is_file():
        data = _read_file(path)
    elif _HUB_NAME.fullmatch(name):
        data = _read_hub(name, split)
    else:
        raise FileNotFoundError(
            f"no file or directory {name!r}. Give an existing path (relative paths start at "
            f"{Path.cwd()}) or a hub name like 'owner/name'."
        )
    if len(data) == 0:
        raise ValueError(f"{name}: the data set is empty; at least one row is needed.")
    if "prompt" not in data.column_names:
        raise ValueError(
            f"{name}: no column 'prompt'. Columns: {', '.join(data.column_names) or 'none'}. "
            "Rename the column that holds the prompts to 'prompt'."
        )
    if "reward_model" in data.column_names:
        data = _flatten(data, name)
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


def _read_file(path: Path) -> datasets.Dataset:
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r} (relative paths start at {Path.cwd()}).")
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"{path}: the name must end in {', '.join(_SUFFIXES)}.")
    if path.suffix in (".json", ".jsonl"):
        return _read_json(path)
    import datasets
    import pyarrow

    read = _read_parquet_table if path.suffix == ".parquet" else _read_csv_table
    try:
        table = read(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(
            f"{path}: not a readable {path.suffix[1:]} file ({_first_line(error)}). "
            "It may be cut off: compare its size with the original and copy it again."
        ) from error
    return datasets.Dataset(datasets.table.InMemoryTable(table))


def _read_parquet_table(path: Path) -> pyarrow.Table:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path)


def _read_csv_table(path: Path) -> pyarrow.Table:
    import pyarrow
    import pyarrow.csv

    types = dict.fromkeys(_CSV_TEXT_COLUMNS, pyarrow.string())
    return pyarrow.csv.read_csv(
        path,
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(column_types=types),
    )


def _read_json(path: Path) -> datasets.Dataset:
    import datasets
    import pyarrow

    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error}). Save it as UTF-8.") from error
    if path.suffix == ".jsonl":
        # Not splitlines: it also breaks at U+2028, which JSON strings may hold.
        lines = enumerate(text.split("\n"), 1)
        rows = [_parse_json(line, f"{path}, line {i}") for i, line in lines if line.strip()]
    else:
        rows = _parse_json(text, str(path))
    if not isinstance(rows, list):
        raise ValueError(
            f"{path}: must hold an array of objects. Got {type(rows).__name__}. "
            "A file with one object a line must be named .jsonl."
        )
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"{path}: row {i} must be an object. Got {type(row).__name__}.")
    # Not from_list, whose columns are those of the first row.
    names = dict.fromkeys(name for row in rows for name in row)
    try:
        return datasets.Dataset.from_dict({name: [row.get(name) for row in rows] for name in names})
    except (pyarrow.ArrowException, TypeError) as error:
        raise ValueError(
            f"{path}: the rows do not fit one table ({_first_line(error)}). "
            "A column must hold one type in all rows."
        ) from error


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({_first_line(error)}).") from error


def _read_directory(path: Path, split: str) -> datasets.Dataset:
    import datasets

    if not ((path / "state.json").is_file() or (path / "dataset_dict.json").is_file()):
        raise ValueError(
            f"{path}: not a directory written by save_to_disk. "
            f"Name one file in it, ending in {', '.join(_SUFFIXES)}."
        )
    try:
        data = datasets.load_from_disk(str(path))
    except Exception as error:  # whatever a damaged directory makes the reader raise
        raise ValueError(
            f"{path}: cannot be read ({_first_line(error)}); save it again."
        ) from error
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise ValueError(f"{path}: no split {split!r}. Splits: {', '.join(data)}.")
        data = data[split]
    return data


def _read_hub(name: str, split: str) -> datasets.Dataset:
    import datasets

    try:
        return datasets.load_dataset(name, split=split)
    except Exception as error:  # network, authentication, format: all end the same way here
        raise ValueError(
            f"{name!r} is no file or directory here and could not be loaded from the hub, split "
            f"{split!r} ({type(error).__name__}: {_first_line(error)}). Check the name, the split "
            "and the network, or give a local file."
        ) from error


def _flatten(data: datasets.Dataset, name: str) -> datasets.Dataset:
    import datasets
    import pyarrow
    import pyarrow.compute

    table = data.with_format("arrow")[:]
    columns = {"prompt": table["prompt"]}
    for parent, child in (
        ("reward_model", "ground_truth"),
        ("extra_info", "difficulty"),
        ("extra_info", "type"),
        ("extra_info", "index"),
    ):
        kind = table.schema.field(parent).type if parent in table.column_names else None
        if isinstance(kind, pyarrow.StructType) and kind.get_field_index(child) >= 0:
            columns[child] = pyarrow.compute.struct_field(table[parent], child)
    if "data_source" in table.column_names:
        columns["data_source"] = table["data_source"]
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
    return datasets.Dataset(datasets.table.InMemoryTable(pyarrow.table(columns)))


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


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
