"""Writing the metrics log of a run: one JSON object a line."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any

SCHEMA = 1
LOG_NAME = "metrics.jsonl"


def _to_json(value: Any, where: str) -> Any:
    """``value`` as plain JSON types; non-finite floats become None."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Enum):
        return _to_json(value.value, where)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): _to_json(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_json(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        return [_to_json(item, where) for item in sorted(value)]
    if hasattr(value, "tolist"):  # numpy and torch, scalars and arrays, without importing torch
        return _to_json(value.tolist(), where)
    raise TypeError(
        f"{where} must be a number, string, bool, None, or a list, dict or array of them. "
        f"Got {type(value).__name__}."
    )


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The JSON object on a line, or None where there is no valid one."""
    try:
        record = json.loads(line)
    except ValueError:  # JSONDecodeError, or UnicodeDecodeError where a character was cut
        return None
    return record if isinstance(record, dict) else None


class MetricsWriter:
    """Appends events to ``<run_dir>/metrics.jsonl``, one write call a line.

    Lines are strict JSON: NaN and infinities are written as null. Opening a log whose last line
    was cut by a kill drops that line, so that a resumed run leaves no corrupt line in the middle.
    Only one process of a distributed run may hold a writer.

    Args:
        path: the run's folder, created if missing, or a file name ending in ``.jsonl``.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        path = Path(path)
        self.path = path if path.suffix == ".jsonl" else path / LOG_NAME
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered append: each line reaches the file in one call and survives a killed process.
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115
        self._mend_tail()

    def _mend_tail(self) -> None:
        content = self.path.read_bytes()
        start = content.rfind(b"\n") + 1
        if start == len(content):
            return
        if parse_line(content[start:]) is None:
            self._file.truncate(start)
        else:
            self._file.write(b"\n")

    def write(self, event: str, **fields: Any) -> None:
        """Appends ``{"event": event, **fields}``.

        Python, numpy and torch scalars and arrays are accepted, nested in dicts and lists.
        Raises TypeError for other values and ValueError after ``close``.
        """
        if self._file.closed:
            raise ValueError(f"the metrics log {self.path} is closed: open a new MetricsWriter.")
        record = {"event": event}
        record.update({key: _to_json(value, key) for key, value in fields.items()})
        text = json.dumps(record, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        self._append(text.encode("utf-8", "replace") + b"\n")

    def _append(self, line: bytes) -> None:
        """The whole line, or, where the disk is full, none of it."""
        end = self._file.seek(0, os.SEEK_END)
        try:
            written = self._file.write(line)
            if written != len(line):
                self._file.write(line[written:])
        except OSError:
            self._file.truncate(end)
            raise

    def close(self) -> None:
        """Closes the file; closing twice is allowed."""
        self._file.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
