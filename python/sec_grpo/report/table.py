"""The numbers of one or several runs, as a dict for JSON and as a table for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from sec_grpo.report.groups import run_labels
from sec_grpo.report.log import Evaluation, RunLog
from sec_grpo.report.series import OUTCOMES, step_times, wilson_interval

SUMMARY_SCHEMA = 1
LIKELIEST_ARMS = 3  # shown in the table; the dict holds all
MAX_LEVELS = 24  # likewise: beyond, the table has the means alone


def _mean(values: Iterable[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else None


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _evaluation_rows(run: RunLog, item: Evaluation | None) -> dict[str, Any] | None:
    if item is None:
        return None
    accuracy = {level: item.accuracy.get(level, math.nan) for level in run.levels}
    counts = {level: item.num_prompts.get(level, 0) for level in run.levels}
    return {
        "step": item.step,
        "seconds": _finite(item.time),
        "accuracy": {level: _finite(value) for level, value in accuracy.items()},
        "interval": {
            level: list(wilson_interval(value, counts[level]))
            if counts[level] > 0 and 0 <= value <= 1
            else None
            for level, value in accuracy.items()
        },
        "num_prompts": counts,
        "mean_trained": _mean(v for s, v in accuracy.items() if s not in run.held_out),
        "mean_held_out": _mean(v for s, v in accuracy.items() if s in run.held_out),
    }


def _before_and_after(run: RunLog) -> tuple[Evaluation | None, Evaluation | None]:
    """The first and the last evaluation; a single one is "after" unless it was at step 0."""
    if not run.evals:
        return None, None
    if len(run.evals) > 1:
        return run.evals[0], run.evals[-1]
    only = run.evals[0]
    return (only, None) if only.step == 0 else (None, only)


def _last_finite(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if len(finite) else None


def summary_rows(run: RunLog) -> dict[str, Any]:
    """The numbers of one run, JSON-able; None where the log does not hold them.

    ``before`` and ``after`` are its first and last evaluation: accuracy and 95% Wilson interval
    by level, and the means over trained and over held-out levels (each level weighs the same).
    ``dead_groups`` is the mean over steps of the share of groups with equal rewards, and
    ``outcomes`` that of each kind of group; ``completion_tokens`` is the trainer's count of sampled
    tokens, ``seconds_per_step`` the mean by part of a step, and ``final_probability`` that of the
    last step. ``damaged`` names the lines of the log that were left out.
    """
    before, after = _before_and_after(run)
    tokens = _last_finite(run.scalar("num_completion_tokens"))
    last = run.probability[-1].tolist() if len(run.steps) else [math.nan] * len(run.arms)
    return {
        "name": run.name,
        "strategy": run.strategy,
        "version": run.version,
        "levels": list(run.levels),
        "held_out": list(run.held_out),
        "before": _evaluation_rows(run, before),
        "after": _evaluation_rows(run, after),
        "steps": int(run.steps[-1]) if len(run.steps) else 0,
        "max_steps": run.max_steps,
        "seconds": _last_finite(run.time),
        "seconds_per_step": step_times(run) or None,
        "dead_groups": _mean(run.scalar("frac_reward_zero_std").tolist()),
        "outcomes": {name: _mean(run.scalar(f"groups/{name}").tolist()) for name in OUTCOMES},
        "completion_tokens": None if tokens is None else round(tokens),
        "final_probability": {arm: _finite(p) for arm, p in zip(run.arms, last, strict=True)},
        "damaged": list(run.damaged),
    }


def summary(runs: Sequence[RunLog]) -> dict[str, Any]:
    """``summary_rows`` of every run, each with a ``label`` no other run has."""
    rows = [
        {"label": label, **summary_rows(run)}
        for label, run in zip(run_labels(runs), runs, strict=True)
    ]
    return {"schema": SUMMARY_SCHEMA, "runs": rows}


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _pair(row: dict[str, Any], key: str, level: str | None = None) -> str:
    """Before -> after of a mean, or of ``level`` where ``key`` is kept by level."""
    cells = []
    for when in ("before", "after"):
        value = (row[when] or {}).get(key)
        if level is not None:
            value = (value or {}).get(level)
        cells.append(_share(value))
    return "-" if cells == ["-", "-"] else f"{cells[0]:>4} -> {cells[1]:>4}"


def count_text(value: int | None) -> str:
    """A number in a few characters, 1.9k."""
    if value is None:
        return "-"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return str(value)


def progress_text(row: Mapping[str, Any]) -> str:
    """Steps done, and of how many where some are left."""
    done, wanted = row["steps"], row["max_steps"]
    return str(done) if wanted is None or not done < wanted else f"{done} of {wanted}"


def strategy_text(strategy: Mapping[str, Any]) -> str:
    """A strategy and its parameters as they are written in Python."""
    parameters = ", ".join(f"{name}={value}" for name, value in strategy.items() if name != "name")
    return f"{strategy.get('name', '-')}({parameters})" if strategy else "-"


def _step_seconds(row: Mapping[str, Any]) -> str:
    """Mean seconds of a step, and the parts that make up a tenth or more."""
    parts = row["seconds_per_step"]
    if not parts:
        return "-"
    total = sum(parts.values())
    large = [f"{n} {v / total:.0%}" for n, v in parts.items() if v >= total / 10]
    return "\n".join([f"{total:.3g}", *large])


def _likeliest(row: dict[str, Any]) -> str:
    known = [(arm, p) for arm, p in row["final_probability"].items() if p is not None]
    known.sort(key=lambda item: -item[1])
    return "\n".join(f"{escape(arm)}: {p:.2f}" for arm, p in known[:LIKELIEST_ARMS]) or "-"


def summary_table(runs: Sequence[RunLog]) -> Table:
    """Accuracy by level before -> after, and what each run cost; levels as rows, runs as columns.

    Of more than `MAX_LEVELS` levels the means alone.
    Ten levels and three runs fit in 80 columns.
    """
    rows = summary(runs)["runs"]
    levels = list(dict.fromkeys(level for row in rows for level in row["levels"]))
    held_out = {level for row in rows for level in row["held_out"]}
    levels.sort(key=lambda level: level in held_out)

    table = Table(title="Accuracy before -> after training", title_justify="left")
    table.add_column("level", overflow="fold", max_width=24)
    for row in rows:
        table.add_column(escape(row["label"]), justify="right", overflow="fold", max_width=18)
    for i, level in enumerate(levels if len(levels) <= MAX_LEVELS else ()):
        mark = " (held out)" if level in held_out else ""
        cells = [_pair(row, "accuracy", level) for row in rows]
        table.add_row(escape(level) + mark, *cells, end_section=i == len(levels) - 1)
    if levels:
        table.add_row("mean, trained", *(_pair(row, "mean_trained") for row in rows))
        if held_out:
            table.add_row("mean, held out", *(_pair(row, "mean_held_out") for row in rows))
        table.add_section()
    table.add_row("steps", *(progress_text(row) for row in rows))
    seconds = [row["seconds"] for row in rows]
    table.add_row("seconds", *("-" if s is None else f"{s:.0f}" for s in seconds))
    table.add_row("seconds a step", *(_step_seconds(row) for row in rows))
    table.add_row("dead groups", *(_share(row["dead_groups"]) for row in rows))
    table.add_row("completion tokens", *(count_text(row["completion_tokens"]) for row in rows))
    table.add_row("likeliest arms\nat the end", *(_likeliest(row) for row in rows))
    return table
