"""The metrics log of a run: one JSON object a line, written by the trainer, read by the report.

Axes: T training steps, K arms.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

SCHEMA = 1
LOG_NAME = "metrics.jsonl"
ARM_KEYS = ("probability", "value", "draws", "epochs", "abs_advantage", "reward", "dead_groups")
_NOT_SCALARS = ("event", "step", "time", "arms")

FloatArray = npt.NDArray[np.float64]


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


def _parse_line(line: bytes) -> dict[str, Any] | None:
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
        if _parse_line(content[start:]) is None:
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
        self._file.write(text.encode() + b"\n")

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


@dataclass(frozen=True)
class Evaluation:
    """Accuracy of the model after ``step`` training steps, by level."""

    step: int
    time: float  # seconds since the start of training
    accuracy: dict[str, float]  # in [0, 1]; NaN where it was not measured
    num_prompts: dict[str, int]
    held_out: tuple[str, ...]  # levels never trained on


@dataclass(frozen=True, eq=False)
class RunLog:
    """What one run wrote, steps that a resume rolled back left out.

    Everything not observed at a step is NaN in the arrays: |A|, reward and dead groups of an arm
    not drawn since the logged step before, too.
    """

    path: Path
    name: str
    version: str
    strategy: dict[str, Any]
    max_steps: int | None
    config: dict[str, Any]
    arms: tuple[str, ...]  # K labels, easiest first
    steps: npt.NDArray[np.int64]  # (T,), increasing
    time: FloatArray  # (T,), seconds since the start of training
    scalars: dict[str, FloatArray]  # name -> (T,)
    probability: FloatArray  # (T, K)
    value: FloatArray  # (T, K), Q
    draws: FloatArray  # (T, K), cumulative
    epochs: FloatArray  # (T, K)
    abs_advantage: FloatArray  # (T, K), mean |A| of the arm at the step
    reward: FloatArray  # (T, K)
    dead_groups: FloatArray  # (T, K), share of the arm's groups with equal rewards
    evals: tuple[Evaluation, ...]  # by increasing step
    non_finite: dict[str, tuple[int, ...]] = field(default_factory=dict)  # scalar -> steps

    @property
    def levels(self) -> tuple[str, ...]:
        """Evaluated levels: those that are arms in their order, then the others as logged."""
        seen = dict.fromkeys(level for item in self.evals for level in item.accuracy)
        return (*(a for a in self.arms if a in seen), *(s for s in seen if s not in self.arms))

    @property
    def held_out(self) -> tuple[str, ...]:
        """Evaluated levels that no evaluation saw in training."""
        marked = {level for item in self.evals for level in item.held_out}
        return tuple(level for level in self.levels if level in marked)

    def scalar(self, name: str) -> FloatArray:
        """The scalar ``name`` by step, (T,), all NaN where the run did not log it."""
        return self.scalars.get(name, np.full(len(self.steps), np.nan))


class _Records:
    """The live step and eval lines of a log in file order.

    A segment begins at each run line, and where steps run backwards without one. A step or an
    evaluation supersedes everything at or after it that an earlier segment wrote; so does a run
    line that says at which step it resumes.
    """

    def __init__(self) -> None:
        self.segment = 0
        self.last_step = -1
        self.steps: dict[int, tuple[int, dict[str, Any]]] = {}
        self.evals: dict[int, tuple[int, dict[str, Any]]] = {}

    def new_segment(self) -> None:
        self.segment += 1
        self.last_step = -1

    def _drop(self, kept: dict[int, tuple[int, dict[str, Any]]], first: int) -> None:
        for step in [s for s, (g, _) in kept.items() if s >= first and g < self.segment]:
            del kept[step]

    def resume(self, step: int) -> None:
        """Begins a segment that goes on from the checkpoint of ``step``."""
        self.new_segment()
        self._drop(self.steps, step + 1)
        self._drop(self.evals, step + 1)

    def add_step(self, step: int, record: dict[str, Any]) -> None:
        if step < self.last_step:
            self.new_segment()
        self.last_step = step
        self._drop(self.steps, step)
        self._drop(self.evals, step)
        self.steps[step] = (self.segment, record)

    def add_eval(self, step: int, record: dict[str, Any]) -> None:
        self._drop(self.steps, step + 1)  # an evaluation at a step comes after that step
        self._drop(self.evals, step)
        self.evals[step] = (self.segment, record)

    def join_clocks(self) -> None:
        """Makes ``time`` run on where a resumed run restarted its clock at zero."""
        rows = [(step, 0, *row) for step, row in self.steps.items()]
        rows += [(step, 1, *row) for step, row in self.evals.items()]
        offset, latest, current = 0.0, 0.0, 0
        for _, _, segment, record in sorted(rows, key=lambda row: row[:3]):
            time = _number(record.get("time"))
            if segment != current:
                current = segment
                offset = latest if time + offset < latest else offset
            record["time"] = time + offset
            latest = max(latest, time + offset)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def _log_path(path: str | os.PathLike[str]) -> Path:
    given = Path(path)
    file = given / LOG_NAME if given.is_dir() else given
    if not file.is_file():
        raise FileNotFoundError(
            f"no metrics log at {file}: pass the output folder of a training run, "
            f"which holds {LOG_NAME}, or that file."
        )
    return file


def _read_lines(file: Path) -> list[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line; an incomplete last line is left out."""
    lines = [(n, s) for n, s in enumerate(file.read_bytes().split(b"\n"), 1) if s.strip()]
    if not lines:
        raise ValueError(f"{file} is empty: the run stopped before it logged anything. Run again.")
    parsed = []
    for number, line in lines:
        record = _parse_line(line)
        if record is not None:
            parsed.append((number, record))
        elif number != lines[-1][0]:
            raise ValueError(
                f"{file}, line {number}: not a JSON object. Only a cut last line is accepted; "
                f"remove this line or restore the file. Got {line[:60]!r}."
            )
    return parsed


def _step_of(record: dict[str, Any], where: str) -> int:
    step = record.get("step")
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise ValueError(f"{where}: step must be an integer >= 0. Got {step!r}.")
    return step


def _check_arms(record: dict[str, Any], num_arms: int, where: str) -> None:
    arms = record.get("arms") or {}
    for key in ARM_KEYS:
        row = arms.get(key)
        if row is not None and (not isinstance(row, list) or len(row) != num_arms):
            raise ValueError(
                f"{where}: arms.{key} must be a list of {num_arms} entries, one an arm of the "
                f"run line. Got {row!r}."
            )


def _collect(file: Path) -> tuple[dict[str, Any], _Records]:
    """The last run line, and the live lines."""
    header: dict[str, Any] | None = None
    records = _Records()
    for number, record in _read_lines(file):
        event, where = record.get("event"), f"{file}, line {number}"
        if event == "run":
            if record.get("schema") != SCHEMA:
                raise ValueError(
                    f"{where}: schema must be {SCHEMA}. Got {record.get('schema')!r}; read this "
                    "log with the version of sec-grpo that wrote it."
                )
            if not isinstance(record.get("arms"), list):
                raise ValueError(f"{where}: arms must be a list of labels. Got {record}.")
            header = record
            if "step" in record:
                records.resume(_step_of(record, where))
            else:
                records.new_segment()
        elif event in ("step", "eval"):
            if header is None:
                raise ValueError(f"{where}: a run line must come first. Got event {event!r}.")
            if event == "step":
                _check_arms(record, len(header["arms"]), where)
                records.add_step(_step_of(record, where), record)
            else:
                records.add_eval(_step_of(record, where), record)
    if header is None or not records.steps:
        raise ValueError(
            f"{file} holds no step lines: the run stopped before its first step. "
            "Train for at least one step, then report."
        )
    return header, records


def _evaluation(record: dict[str, Any]) -> Evaluation:
    return Evaluation(
        step=record["step"],
        time=record["time"],
        accuracy={str(k): _number(v) for k, v in (record.get("accuracy") or {}).items()},
        num_prompts={str(k): int(v) for k, v in (record.get("num_prompts") or {}).items()},
        held_out=tuple(str(level) for level in record.get("held_out") or ()),
    )


def read_run(path: str | os.PathLike[str]) -> RunLog:
    """Reads the log of one run.

    The last line of a step wins, and steps that a resume rolled back are left out. Unknown events
    and keys are ignored, as is an incomplete last line.

    Args:
        path: the run's folder, or its ``metrics.jsonl``.

    Raises:
        FileNotFoundError: there is no log.
        ValueError: the log is empty, has no step, another schema, or a corrupt line.
    """
    file = _log_path(path)
    header, records = _collect(file)
    records.join_clocks()
    rows = [record for _, (_, record) in sorted(records.steps.items())]
    arms = tuple(str(label) for label in header["arms"])

    names = dict.fromkeys(
        key
        for row in rows
        for key, value in row.items()
        if key not in _NOT_SCALARS and (value is None or isinstance(value, (int, float)))
    )
    scalars = {name: np.array([_number(row.get(name)) for row in rows]) for name in names}
    non_finite = {
        name: tuple(r["step"] for r in rows if name in r and not math.isfinite(_number(r[name])))
        for name in names
    }

    def per_arm(key: str) -> FloatArray:
        unseen = [None] * len(arms)
        table = [(row.get("arms") or {}).get(key) or unseen for row in rows]
        return np.array([[_number(cell) for cell in line] for line in table], dtype=np.float64)

    columns = {key: per_arm(key) for key in ARM_KEYS}
    # The trainer repeats an arm's last observation until the next one.
    idle = np.diff(columns["draws"], axis=0, prepend=0.0) <= 0
    for key in ("abs_advantage", "reward", "dead_groups"):
        columns[key] = np.where(idle, np.nan, columns[key])
    max_steps = header.get("max_steps")
    return RunLog(
        path=file,
        name=str(header.get("name") or file.parent.name),
        version=str(header.get("version", "")),
        strategy=dict(header.get("strategy") or {}),
        max_steps=max_steps if isinstance(max_steps, int) else None,
        config=dict(header.get("config") or {}),
        arms=arms,
        steps=np.array([row["step"] for row in rows], dtype=np.int64),
        time=np.array([row["time"] for row in rows], dtype=np.float64),
        scalars=scalars,
        evals=tuple(_evaluation(record) for _, (_, record) in sorted(records.evals.items())),
        non_finite={name: steps for name, steps in non_finite.items() if steps},
        **columns,
    )
