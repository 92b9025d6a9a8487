"""Generated rows on disk, so that what takes minutes to make is made once."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sec_grpo.tasks.base import Row, Task

_log = logging.getLogger(__name__)


def cached(
    task: Task, level: int, n: int, seed: int, generate: Callable[[], list[Row]]
) -> list[Row]:
    """What `generate` returns, read from disk if it was written there with the same settings.

    Several processes that ask for the same rows generate them once. A folder that cannot be
    written is no error: the rows are generated, with a warning.
    """
    settings = task.version()
    if settings is None:
        return generate()
    from filelock import FileLock

    kind = f"{type(task).__module__}.{type(task).__qualname__}"
    key = json.dumps([kind, task.name, level, n, seed, settings, version("sec-grpo")])
    name = re.sub(r"[^A-Za-z0-9]+", "-", f"{task.name} {level} {n} {seed}")
    path = _folder() / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.parquet"
    lock = FileLock(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        _log.warning("generated rows are not kept: %s", error)
        return generate()
    try:
        rows = _read(path)
        if rows is None:
            rows = generate()
            _write(path, rows)
        return rows
    finally:
        lock.release()


def _folder() -> Path:
    import datasets

    return Path(datasets.config.HF_DATASETS_CACHE) / "sec_grpo"


def _read(path: Path) -> list[Row] | None:
    import pyarrow
    import pyarrow.parquet

    if not path.exists():
        return None
    try:
        rows: list[Row] = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        _log.warning("%s is damaged and made anew: %s", path, error)
        return None
    return rows


def _write(path: Path, rows: list[Row]) -> None:
    import pyarrow
    import pyarrow.parquet

    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), temporary)
        os.replace(temporary, path)
    except OSError as error:
        _log.warning("generated rows are not kept: %s", error)
    finally:
        temporary.unlink(missing_ok=True)
