"""Reading a run's log, plotting it and summing it up."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from sec_grpo.report.alarms import alarms
from sec_grpo.report.atomic import write_atomically
from sec_grpo.report.log import Evaluation, MetricsWriter, RunLog, read_run
from sec_grpo.report.table import run_labels, summary, summary_rows, summary_table

if TYPE_CHECKING:
    from sec_grpo.report.plots import (
        plot_accuracy,
        plot_allocation,
        plot_training,
        plot_values,
        write_plots,
    )

__all__ = [
    "Evaluation",
    "MetricsWriter",
    "Report",
    "RunLog",
    "alarms",
    "plot_accuracy",
    "plot_allocation",
    "plot_training",
    "plot_values",
    "read_run",
    "report",
    "run_labels",
    "summary",
    "summary_rows",
    "summary_table",
    "write_plots",
]

_PLOTS = ("plot_accuracy", "plot_allocation", "plot_training", "plot_values", "write_plots")


def __getattr__(name: str) -> Any:
    # The trainer imports this package for MetricsWriter and must not wait for matplotlib.
    if name in _PLOTS:
        from sec_grpo.report import plots

        return getattr(plots, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@dataclass(frozen=True)
class Report:
    """What ``report`` made of some runs."""

    runs: list[RunLog]
    plots: list[Path]
    summary_path: Path
    summary: dict[str, Any]  # as in summary_path
    table: Table
    alarms: dict[str, list[str]]  # run label -> sentences, empty where nothing stands out


def report(
    run_dirs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out_dir: str | os.PathLike[str] | None = None,
) -> Report:
    """Reads one or several runs, writes their plots and ``summary.json``, and returns it all.

    Args:
        run_dirs: output folders of training runs, or their ``metrics.jsonl``.
        out_dir: created if missing; by default ``report/`` in the folder of a single run.

    Raises:
        ValueError: several runs without ``out_dir``, no run at all, or an unreadable log.
        FileNotFoundError: a run has no log.
    """
    from sec_grpo.report.plots import write_plots

    dirs = [run_dirs] if isinstance(run_dirs, (str, os.PathLike)) else list(run_dirs)
    if not dirs:
        raise ValueError("run_dirs must name at least one run. Got none.")
    if out_dir is None and len(dirs) > 1:
        raise ValueError(f"out_dir must be given for a report on {len(dirs)} runs. Got None.")
    runs = [read_run(path) for path in dirs]
    folder = runs[0].path.parent / "report" if out_dir is None else Path(out_dir)

    found = {label: alarms(run) for label, run in zip(run_labels(runs), runs, strict=True)}
    numbers = summary(runs)
    for row in numbers["runs"]:
        row["alarms"] = found[row["label"]]
    text = json.dumps(numbers, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    return Report(
        runs=runs,
        plots=write_plots(runs, folder),
        summary_path=write_atomically(folder / "summary.json", text.encode()),
        summary=numbers,
        table=summary_table(runs),
        alarms=found,
    )
