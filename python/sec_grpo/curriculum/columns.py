"""Columns of a data set in any container, as codes into their distinct values.

Only the columns asked for are read: prompts are never materialised. N rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MISSING = -1


@dataclass(frozen=True)
class Column:
    """A column: what it is called in errors, its distinct values, and each row's place in them."""

    title: str
    distinct: list[Any]
    codes: NDArray[np.int64]
    """(N,), -1 where the value is missing"""

    def first_row(self, number: int) -> int:
        """The first row that holds `distinct[number]`; number -1 is a missing value."""
        return int(np.argmax(self.codes == number))


class Rows:
    """A data set by rows and by columns; a dotted name reaches into dicts and structs.

    Raises:
        TypeError: `dataset` is no container of rows.
        ValueError: it is a stream, a dict of splits, or has no rows.
    """

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self._read, self._names, self._iterate = _reader(dataset)
        self._length: int | None = None

    def column(self, name: str) -> Column:
        """The column of that name.

        Raises ValueError where there is none or its length is not that of the others, TypeError
        for values that cannot be compared.
        """
        title = f"column {name!r}"
        distinct, codes = self._read(name, title)
        self._check_length(len(codes), title)
        return Column(title, distinct, codes)

    def computed(self, feature: Callable[[Mapping[str, Any]], Any]) -> Column:
        """A column of what a function makes of each row; its exceptions become ValueErrors."""
        title = f"feature function {function_name(feature)}"
        values = []
        for row, cells in enumerate(self._iterate()):
            try:
                values.append(feature(cells))
            except Exception as error:
                raise ValueError(
                    f"row {row}: {title} raised {type(error).__name__}: {error}"
                ) from error
        self._check_length(len(values), title)
        distinct, codes = _factorize(values, title)
        return Column(title, distinct, codes)

    def _check_length(self, length: int, title: str) -> None:
        if length == 0:
            raise ValueError(f"the data set must have at least one row, {title} has none")
        if self._length is None:
            self._length = length
        elif length != self._length:
            raise ValueError(
                f"columns must be equally long, got {length} rows in {title} and {self._length} "
                "in those before it"
            )


_Read = Callable[[str, str], tuple[list[Any], NDArray[np.int64]]]
_Reader = tuple[_Read, Callable[[], list[str]], Callable[[], Iterator[Mapping[str, Any]]]]


def function_name(feature: Callable[..., Any]) -> str:
    """How errors and `bins` call a feature function."""
    return getattr(feature, "__name__", type(feature).__name__)


def _reader(dataset: Any) -> _Reader:
    """How the container gives a column, its names, and its rows."""
    if hasattr(dataset, "iloc") and hasattr(dataset, "columns"):
        return _frame_reader(dataset)
    if hasattr(dataset, "column_names") and not isinstance(dataset, Mapping):
        if not hasattr(dataset, "__len__"):
            raise ValueError(
                "the data set must not be a stream: a curriculum draws prompts by index. Load it "
                "without streaming=True, or collect its rows in a list"
            )
        return _arrow_reader(dataset)
    if isinstance(dataset, Mapping):
        if any(hasattr(value, "column_names") for value in dataset.values()):
            raise ValueError(
                "the data set must be one split, got a dict of the splits "
                f"{', '.join(map(repr, dataset))}; pass one of them"
            )
        return _mapping_reader(dataset)
    if isinstance(dataset, (str, bytes)) or not (
        hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    ):
        raise TypeError(
            "the data set must be a datasets.Dataset, a pandas DataFrame, a dict of columns or a "
            f"list of dicts, got a {type(dataset).__name__}"
        )
    return _list_reader(dataset)


def _no_column(name: str, names: Iterable[Any]) -> ValueError:
    shown = ", ".join(map(str, names)) or "none"
    return ValueError(f"the data set has no column {name!r}; its columns are {shown}")


# ---- Python values -----------------------------------------------------------------------------


def _factorize(values: Any, title: str) -> tuple[list[Any], NDArray[np.int64]]:
    """The distinct values in some order, and each row's place among them."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    if isinstance(values, np.ndarray):
        if values.ndim != 1:
            raise ValueError(f"{title} must have shape (N,), got {values.shape}")
        if values.dtype.kind in "iufb":
            found, codes = np.unique(values, return_inverse=True)
            return found.tolist(), codes.astype(np.int64, copy=False)
        values = values.tolist()
    seen: dict[Any, int] = {}
    number = seen.setdefault
    try:
        codes = np.fromiter((number(v, len(seen)) for v in values), np.int64, len(values))
    except TypeError:
        row = next(i for i, value in enumerate(values) if not _is_hashable(value))
        raise TypeError(_not_a_label(row, title, values[row])) from None
    return list(seen), codes


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _not_a_label(row: int, title: str, value: Any) -> str:
    way_out = ""
    if isinstance(value, Mapping) and value:
        way_out = f"; name one of its keys after a dot, such as {next(iter(value))!r}"
    return (
        f"row {row}: {title} is {value!r:.60} of type {type(value).__name__}; a feature must be a "
        f"number, a string or a tuple of these{way_out}"
    )


def _follow(cells: Any, parts: Sequence[str]) -> Any:
    """The value at a path of keys; None where a key or a dict on the way is missing."""
    for part in parts:
        if not isinstance(cells, Mapping):
            return None
        cells = cells.get(part)
    return cells


def _inside(values: Sequence[Any], parts: Sequence[str]) -> list[Any] | None:
    """What each dict of a column holds at a path; None when no dict has its first key."""
    if not any(isinstance(value, Mapping) and parts[0] in value for value in values):
        return None
    return [_follow(value, parts) for value in values]


# ---- Containers --------------------------------------------------------------------------------


def _list_reader(rows: Sequence[Any]) -> _Reader:
    def names() -> list[str]:
        return list(rows[0]) if len(rows) else []

    def iterate() -> Iterator[Mapping[str, Any]]:
        for number in range(len(rows)):
            row = rows[number]
            if not isinstance(row, Mapping):
                raise TypeError(
                    f"row {number} of the data set must be a dict, got a {type(row).__name__}"
                )
            yield row

    def read(name: str, title: str) -> tuple[list[Any], NDArray[np.int64]]:
        parts = name.split(".")
        found = [row[name] if name in row else _follow(row, parts) for row in iterate()]
        nothing = bool(found) and all(value is None for value in found)
        if nothing and not any(name in row for row in iterate()):
            raise _no_column(name, names())
        return _factorize(found, title)

    return read, names, iterate


def _mapping_reader(columns: Mapping[str, Any]) -> _Reader:
    def names() -> list[str]:
        return list(columns)

    def read(name: str, title: str) -> tuple[list[Any], NDArray[np.int64]]:
        found: Any = columns.get(name)
        rest: list[str] = []
        if found is None:
            found, rest = columns, name.split(".")
            while rest and isinstance(found, Mapping):
                found, rest = found.get(rest[0]), rest[1:]
        if rest and found is not None:
            found = _inside(found, rest)
        if found is None:
            raise _no_column(name, names())
        if hasattr(found, "array") and hasattr(found, "iloc"):
            return _factorize_series(found, title)
        if isinstance(found, (str, bytes, Mapping)) or not hasattr(found, "__len__"):
            raise TypeError(
                f"{title} must be a sequence with one value a row, got a {type(found).__name__}"
            )
        return _factorize(found, title)

    def cells(values: Any, row: int) -> Any:
        if isinstance(values, Mapping):
            return {name: cells(inner, row) for name, inner in values.items()}
        return values.iloc[row] if hasattr(values, "iloc") else values[row]

    def length(values: Any) -> int:
        return length(next(iter(values.values()))) if isinstance(values, Mapping) else len(values)

    def iterate() -> Iterator[Mapping[str, Any]]:
        for row in range(length(columns) if columns else 0):
            yield cells(columns, row)

    return read, names, iterate


def _frame_reader(frame: Any) -> _Reader:
    def names() -> list[str]:
        return list(frame.columns)

    def read(name: str, title: str) -> tuple[list[Any], NDArray[np.int64]]:
        if name in frame.columns:
            series = frame[name]
            if hasattr(series, "columns"):
                raise ValueError(f"the data set has several columns {name!r}; rename one")
            return _factorize_series(series, title)
        top, *rest = name.split(".")
        found = _inside(frame[top].tolist(), rest) if rest and top in frame.columns else None
        if found is None:
            raise _no_column(name, names())
        return _factorize(found, title)

    def iterate() -> Iterator[Mapping[str, Any]]:
        keys = names()
        for values in frame.itertuples(index=False, name=None):
            yield dict(zip(keys, values, strict=True))

    return read, names, iterate


def _factorize_series(series: Any, title: str) -> tuple[list[Any], NDArray[np.int64]]:
    import pandas

    try:
        codes, found = pandas.factorize(series)
    except TypeError:
        return _factorize(series.tolist(), title)
    return found.tolist(), codes.astype(np.int64, copy=False)


def _arrow_reader(dataset: Any) -> _Reader:
    def names() -> list[str]:
        return list(dataset.column_names)

    def column(name: str) -> Any:
        """The (chunked) Arrow column; flattening a struct copies nothing."""
        top = name if name in dataset.column_names else name.split(".")[0]
        if top not in dataset.column_names:
            raise _no_column(name, names())
        table = dataset.select([top]) if is_table else dataset.select_columns([top])
        while name not in table.column_names:
            flat = table.flatten()
            if flat.column_names == table.column_names:
                raise _no_column(name, table.column_names)
            table = flat
        if not is_table:
            # A shuffled data set comes in one chunk a row, which are slow one by one.
            table = table.select_columns([name]).with_format("arrow")[:].combine_chunks()
        return table.column(name)

    def read(name: str, title: str) -> tuple[list[Any], NDArray[np.int64]]:
        import pyarrow

        values = column(name)
        if pyarrow.types.is_nested(values.type) and len(values):
            raise TypeError(_not_a_label(0, title, values[0].as_py()))
        encoded = values.dictionary_encode().unify_dictionaries()
        if encoded.num_chunks == 0:
            return [], np.zeros(0, np.int64)
        codes = [c.indices.fill_null(_MISSING).to_numpy() for c in encoded.chunks]
        return encoded.chunk(0).dictionary.to_pylist(), np.concatenate(codes).astype(np.int64)

    def iterate() -> Iterator[Mapping[str, Any]]:
        if is_table:
            return (row for batch in dataset.to_batches() for row in batch.to_pylist())
        return (
            dict(zip(batch, values, strict=True))
            for batch in dataset.with_format(None).iter(1000)
            for values in zip(*batch.values(), strict=True)
        )

    is_table = not hasattr(dataset, "select_columns")
    return read, names, iterate
