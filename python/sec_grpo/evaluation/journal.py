"""The samples of an evaluation as they are made, so that an interrupted one loses none."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

FILE = "samples.jsonl"


class Sample(NamedTuple):
    """One completion: its text, token ids, and whether it ended by itself."""

    text: str
    ids: list[int]
    finished: bool


def _whole(lines: Sequence[bytes]) -> list[Sample]:
    """The samples of the lines up to the first that is cut off or damaged."""
    found: list[Sample] = []
    for line in lines:
        try:
            sample = Sample(*json.loads(line))
        except (TypeError, ValueError):
            break
        if not line.endswith(b"\n"):
            break
        found.append(sample)
    return found


class Journal:
    """A file of samples in the order they are made, batch by batch.

    Its first line holds what they depend on; the file of other settings is never continued.
    Batches that were not written whole are made again, and those after a damaged one.

    Args:
        folder: where; None: nothing is kept.
        settings: what the samples depend on, as JSON holds it.
        batch_size: samples in a batch.
        overwrite: drop the samples of other settings.

    Raises:
        ValueError: the folder holds samples of other settings (the message names those that
            differ), or another process is writing there.
    """

    def __init__(
        self,
        folder: Path | None,
        settings: Mapping[str, Any],
        batch_size: int,
        *,
        overwrite: bool = False,
    ) -> None:
        self.samples: list[Sample] = []
        """those that are there already"""
        self._file: Any = None
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / f".{FILE}.lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise ValueError(f"{folder}: another evaluation is writing there") from None
        self._path = folder / FILE
        try:
            self._open(dict(settings), batch_size, overwrite)
        except BaseException:
            self._lock.release()
            raise

    def _open(self, settings: dict[str, Any], batch_size: int, overwrite: bool) -> None:
        header = json.dumps(settings, sort_keys=True).encode() + b"\n"
        content = self._path.read_bytes() if self._path.exists() else b""
        lines = content.splitlines(True) or [b""]
        if lines[0] != header:
            if not overwrite:
                self._refuse_another(lines[0], json.loads(header))
            self._file = self._path.open("wb")
            self._append(header)
            return
        self.samples = _whole(lines[1:])
        if len(self.samples) < settings["total"]:
            del self.samples[len(self.samples) // batch_size * batch_size :]
        self._file = self._path.open("r+b")
        self._file.truncate(sum(map(len, lines[: 1 + len(self.samples)])))
        self._file.seek(0, os.SEEK_END)

    def _refuse_another(self, line: bytes, settings: dict[str, Any]) -> None:
        if not line.endswith(b"\n"):
            # Cut off while it was written: nothing came after it.
            return
        try:
            found = dict(json.loads(line))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{self._path} is no file of samples. Choose another folder, or overwrite it "
                "(--overwrite)"
            ) from error
        differ = sorted(
            name for name in {*settings, *found} if settings.get(name) != found.get(name)
        )
        if differ:
            shown = "; ".join(
                f"{name}: {found.get(name)!r:.60} there, {settings.get(name)!r:.60} here"
                for name in differ
            )
            raise ValueError(
                f"{self._path.parent} holds samples of another evaluation ({shown}). Choose "
                "another folder, or overwrite them (--overwrite)"
            )

    def write(self, samples: Sequence[Sample]) -> None:
        """Add a batch; it survives the end of the process and of the machine."""
        self.samples += samples
        if self._file is not None:
            self._append(b"".join(json.dumps(sample).encode() + b"\n" for sample in samples))

    def _append(self, content: bytes) -> None:
        self._file.write(content)
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._lock.release()
