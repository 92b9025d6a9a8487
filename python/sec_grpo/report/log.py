"""Reading the metrics log of a run.

Axes: T training steps, K arms.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sec_grpo.report.writer import LOG_NAME, SCHEMA, parse_line

ARM_KEYS = (
    "probability",
    "value",
    "draws",
    "epochs",
    "abs_advantage",
    "abs_advantage_with_std",
    "abs_advantage_without_std",
    "reward",
    "dead_groups",
    "rollouts",
    "successes",
)
_REPEATED = ("abs_advantage", "reward", "dead_groups")
_NOT_SCALARS = ("event", "step", "time", "arms")

FloatArray = npt.NDArray[np.float64]


class EmptyLogError(ValueError):
    """A log in which no step and no evaluation has been written yet."""


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

    Everything not observed at a step is NaN in the arrays: |A|, reward, rollouts and the like of an
    arm not drawn since the logged step before, too. T is 0 for a run that has evaluated only.
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
    abs_advantage: FloatArray  # (T, K), mean |A| of the arm, A as the run estimates it
    abs_advantage_with_std: FloatArray  # (T, K), A divided by the group's standard deviation
    abs_advantage_without_std: FloatArray  # (T, K), A not divided
    reward: FloatArray  # (T, K)
    dead_groups: FloatArray  # (T, K), share of the arm's groups with equal rewards
    rollouts: FloatArray  # (T, K), completions of the arm since the logged step before
    successes: FloatArray  # (T, K), those of them that succeeded
    evals: tuple[Evaluation, ...]  # by increasing step
    non_finite: dict[str, tuple[int, ...]] = field(default_factory=dict)  # scalar -> steps
    damaged: tuple[str, ...] = ()  # what was left out of the file, and why

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


def _read_lines(file: Path) -> tuple[list[tuple[int, dict[str, Any]]], list[str]]:
    """(line number, object) of each line, and what is wrong with the lines left out.

    An incomplete last line is left out without a word: the run may be writing it.
    """
    lines = [(n, s) for n, s in enumerate(file.read_bytes().split(b"\n"), 1) if s.strip()]
    if not lines:
        raise EmptyLogError(
            f"{file} is empty: the run stopped before it logged anything. Run again."
        )
    parsed, damaged = [], []
    for number, line in lines:
        record = parse_line(line)
        if record is not None:
            parsed.append((number, record))
        elif number != lines[-1][0]:
            damaged.append(f"line {number}: not a JSON object, begins with {line[:40]!r}")
    return parsed, damaged


def _flaw(record: dict[str, Any], num_arms: int) -> str | None:
    """Why a step or eval line cannot be used."""
    step = record.get("step")
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        return f"step must be an integer >= 0. Got {step!r}"
    arms = record.get("arms") or {}
    if not isinstance(arms, dict):
        return f"arms must be a mapping. Got {arms!r:.60}"
    for key in ARM_KEYS:
        row = arms.get(key)
        if row is not None and (not isinstance(row, list) or len(row) > num_arms):
            return f"arms.{key} must be a list of at most {num_arms} entries. Got {row!r:.60}"
    for key in ("accuracy", "num_prompts"):
        if not isinstance(record.get(key) or {}, dict):
            return f"{key} must be a mapping. Got {record[key]!r:.60}"
    return None


class _Collector:
    """Sorts the lines of a file into the run's header, its arms, and its live records."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.header: dict[str, Any] | None = None
        self.arms: list[str] = []
        self.records = _Records()
        lines, self.damaged = _read_lines(file)
        for number, record in lines:
            self._add(number, record)
        if self.header is None or not (self.records.steps or self.records.evals):
            raise EmptyLogError(
                f"{file} holds no step lines: the run stopped before its first step. "
                "Train for at least one step, then report."
            )

    def _add(self, number: int, record: dict[str, Any]) -> None:
        event = record.get("event")
        if event == "run":
            self._begin(number, record)
        elif event == "arms" and isinstance(record.get("arms"), list):
            self.arms = [str(label) for label in record["arms"]]
        elif event in ("step", "eval"):
            flaw = _flaw(record, len(self.arms))
            if self.header is None:
                flaw = f"a run line must come before event {event!r}"
            if flaw is not None:
                self.damaged.append(f"line {number}: {flaw}")
            elif event == "step":
                self.records.add_step(record["step"], record)
            else:
                self.records.add_eval(record["step"], record)

    def _begin(self, number: int, record: dict[str, Any]) -> None:
        where = f"{self._file}, line {number}"
        if record.get("schema") != SCHEMA:
            raise ValueError(
                f"{where}: schema must be {SCHEMA}. Got {record.get('schema')!r}; read this "
                "log with the version of sec-grpo that wrote it."
            )
        if not isinstance(record.get("arms"), list):
            raise ValueError(f"{where}: arms must be a list of labels. Got {record!r:.60}.")
        self.header = record
        labels = [str(label) for label in record["arms"]]
        # Arms are only ever added, at the end: a run resumed from before that has fewer.
        self.arms = max(self.arms, labels, key=len)
        step = record.get("step")
        if isinstance(step, int) and step >= 0:
            self.records.resume(step)
        else:
            self.records.new_segment()


def _evaluation(record: dict[str, Any]) -> Evaluation:
    return Evaluation(
        step=record["step"],
        time=record["time"],
        accuracy={str(k): _number(v) for k, v in (record.get("accuracy") or {}).items()},
        num_prompts={
            str(k): v for k, v in (record.get("num_prompts") or {}).items() if isinstance(v, int)
        },
        held_out=tuple(str(level) for level in record.get("held_out") or ()),
    )


def _scalars(rows: list[dict[str, Any]]) -> tuple[dict[str, FloatArray], dict[str, Any]]:
    """Every scalar by step, (T,), and the steps at which it was logged without being finite."""
    names = dict.fromkeys(
        key
        for row in rows
        for key, value in row.items()
        if key not in _NOT_SCALARS
        and (value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)))
    )
    scalars = {name: np.array([_number(row.get(name)) for row in rows]) for name in names}
    non_finite = {
        name: tuple(r["step"] for r in rows if name in r and not math.isfinite(_number(r[name])))
        for name in names
    }
    return scalars, {name: steps for name, steps in non_finite.items() if steps}


def _columns(rows: list[dict[str, Any]], num_arms: int) -> dict[str, FloatArray]:
    """Every column of the arms by step, (T, K)."""
    columns = {key: np.full((len(rows), num_arms), np.nan) for key in ARM_KEYS}
    for t, row in enumerate(rows):
        for key, values in (row.get("arms") or {}).items():
            if key in columns and values is not None:
                columns[key][t, : len(values)] = [_number(value) for value in values]
    # The trainer repeats an arm's last observation until the next one.
    idle = np.diff(columns["draws"], axis=0, prepend=0.0) <= 0
    for key in _REPEATED:
        columns[key] = np.where(idle, np.nan, columns[key])
    return columns


def read_run(path: str | os.PathLike[str]) -> RunLog:
    """Reads the log of one run, which may still be going on.

    The last line of a step wins, and steps that a resume rolled back are left out. Unknown events
    and keys are ignored, as is an incomplete last line; other lines that cannot be read are left
    out and named in `damaged`.

    Args:
        path: the run's folder, or its ``metrics.jsonl``.

    Raises:
        FileNotFoundError: there is no log.
        EmptyLogError: the log is empty, or has no step and no evaluation.
        ValueError: the log has another schema.
    """
    file = _log_path(path)
    found = _Collector(file)
    header, records = found.header, found.records
    assert header is not None
    records.join_clocks()
    rows = [record for _, (_, record) in sorted(records.steps.items())]
    scalars, non_finite = _scalars(rows)
    max_steps = header.get("max_steps")
    return RunLog(
        path=file,
        name=str(header.get("name") or file.parent.name),
        version=str(header.get("version", "")),
        strategy=dict(header.get("strategy") or {}),
        max_steps=max_steps if isinstance(max_steps, int) else None,
        config=dict(header.get("config") or {}),
        arms=tuple(found.arms),
        steps=np.array([row["step"] for row in rows], dtype=np.int64),
        time=np.array([row["time"] for row in rows], dtype=np.float64),
        scalars=scalars,
        evals=tuple(_evaluation(record) for _, (_, record) in sorted(records.evals.items())),
        non_finite=non_finite,
        damaged=tuple(found.damaged),
        **_columns(rows, len(found.arms)),
    )
