"""Data files as data sets: parquet, JSON, JSON lines and CSV, with errors that name the row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets
    import pyarrow

SUFFIXES = (".parquet", ".json", ".jsonl", ".csv")

# Larger parquet files are not held in memory: `datasets` keeps an Arrow file beside its others and
# maps it, which all processes of a machine share.
MAPPED_BYTES = 128 << 20
# Rows of a JSON file that are Python objects at a time.
_ROWS_AT_ONCE = 10_000
# Text whatever it looks like: type inference would turn the answer "007" into 7.
_CSV_TEXT_COLUMNS = ("prompt", "ground_truth", "ground_truth_json", "data_source", "type", "task")


def read_file(path: Path) -> datasets.Dataset:
    """The rows of a data file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it cannot be read; the message names the file, and the row where it is one.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r} (relative paths start at {Path.cwd()}).")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: the name must end in {', '.join(SUFFIXES)}.")
    import datasets

    if path.suffix in (".json", ".jsonl"):
        return datasets.Dataset(datasets.table.InMemoryTable(_read_json(path)))
    try:
        if path.suffix == ".csv":
            table = _read_csv(path)
        elif path.stat().st_size > MAPPED_BYTES:
            return datasets.Dataset.from_parquet(str(path))
        else:
            table = _read_parquet(path)
    except Exception as error:  # pyarrow's, the system's, or those that `datasets` wraps them in
        raise ValueError(
            f"{path}: not a readable {path.suffix[1:]} file ({first_line(error)}). "
            "It may be cut off: compare its size with the original and copy it again."
        ) from error
    twice = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
    if twice:
        raise ValueError(f"{path}: several columns are named {twice[0]!r}. Rename the others.")
    return datasets.Dataset(datasets.table.InMemoryTable(table))


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _read_parquet(path: Path) -> pyarrow.Table:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path)


def _read_csv(path: Path) -> pyarrow.Table:
    import pyarrow
    import pyarrow.csv

    types = dict.fromkeys(_CSV_TEXT_COLUMNS, pyarrow.string())
    return pyarrow.csv.read_csv(
        path,
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(column_types=types),
    )


def _read_json(path: Path) -> pyarrow.Table:
    import pyarrow

    rows = _lines(path) if path.suffix == ".jsonl" else _array(path)
    tables = []
    start = 0
    while chunk := list(islice(rows, _ROWS_AT_ONCE)):
        tables.append(_table(path, start, chunk))
        start += len(chunk)
    if not tables:
        return pyarrow.table({})
    try:
        return pyarrow.concat_tables(tables, promote_options="permissive").combine_chunks()
    except pyarrow.ArrowException as error:
        raise ValueError(
            f"{path}: the rows do not fit one table ({first_line(error)}). "
            "A column must hold one type in all rows."
        ) from error


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        row = 0
        # Not as text, whose line ends are more than JSON's; they may stand inside its strings.
        for number, line in enumerate(file, 1):
            text = _decoded(path, line, first=number == 1)
            if text.strip():
                yield _object(_parsed(text, f"{path}, line {number}"), path, row)
                row += 1


def _array(path: Path) -> Iterator[dict[str, Any]]:
    rows = _parsed(_decoded(path, path.read_bytes(), first=True), str(path))
    if not isinstance(rows, list):
        raise ValueError(
            f"{path}: must hold an array of objects. Got {type(rows).__name__}. "
            "A file with one object a line must be named .jsonl."
        )
    for number, row in enumerate(rows):
        yield _object(row, path, number)


def _decoded(path: Path, content: bytes, *, first: bool) -> str:
    try:
        # With a byte order mark, which only stands at the start, or without one.
        return content.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error}). Save it as UTF-8.") from error


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({first_line(error)}).") from error


def _object(row: Any, path: Path, number: int) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{path}: row {number} must be an object. Got {type(row).__name__}.")
    return row


def _table(path: Path, start: int, rows: list[dict[str, Any]]) -> pyarrow.Table:
    """The rows from number `start` on; their columns are those of any of them."""
    import pyarrow

    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pyarrow.array(values)
        except _misfits() as error:
            number = start + _first_misfit(values)
            raise ValueError(
                f"{path}: the rows do not fit one table: row {number}, column {name!r} "
                f"({first_line(error)}). A column must hold one type in all rows; integers of more "
                "than 64 bits must be written as text, and text must be whole Unicode."
            ) from error
    return pyarrow.table(columns)


def _misfits() -> tuple[type[Exception], ...]:
    """What Arrow raises for values that make no column."""
    import pyarrow

    # The last for half of a surrogate pair, which JSON can write and UTF-8 cannot.
    return (pyarrow.ArrowException, TypeError, OverflowError, UnicodeEncodeError)


def _first_misfit(values: list[Any]) -> int:
    """The number of the first value that does not fit those before it."""
    low, high = 0, len(values) - 1
    while low < high:
        middle = (low + high) // 2
        if _fits(values[: middle + 1]):
            low = middle + 1
        else:
            high = middle
    return low


def _fits(values: Iterable[Any]) -> bool:
    import pyarrow

    try:
        pyarrow.array(values)
    except _misfits():
        return False
    return True
