"""Reading a run's log, plotting it and summing it up."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from sec_grpo.report.alarms import alarms
from sec_grpo.report.atomic import write_atomically
from sec_grpo.report.groups import RunGroup, group_runs, run_labels
from sec_grpo.report.log import EmptyLogError, Evaluation, RunLog, read_run
from sec_grpo.report.table import summary, summary_rows, summary_table
from sec_grpo.report.writer import MetricsWriter

if TYPE_CHECKING:
    from sec_grpo.report.contents import sections
    from sec_grpo.report.figures import section_figure, write_plots
    from sec_grpo.report.page import write_page

__all__ = [
    "EmptyLogError",
    "Evaluation",
    "MetricsWriter",
    "Report",
    "RunGroup",
    "RunLog",
    "alarms",
    "group_runs",
    "read_run",
    "report",
    "run_labels",
    "section_figure",
    "sections",
    "summary",
    "summary_rows",
    "summary_table",
    "write_page",
    "write_plots",
]

# The trainer imports this package for MetricsWriter and must not wait for matplotlib.
_LAZY = {
    "section_figure": "figures",
    "sections": "contents",
    "write_page": "page",
    "write_plots": "figures",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f"sec_grpo.report.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@dataclass(frozen=True)
class Report:
    """What ``report`` made of some runs."""

    runs: list[RunLog]
    page: Path  # report.html
    plots: list[Path]
    summary_path: Path
    summary: dict[str, Any]  # as in summary_path
    table: Table
    alarms: dict[str, list[str]]  # run label -> sentences, empty where nothing stands out
    skipped: dict[str, str] = field(default_factory=dict)  # folder -> why it has no report yet


def report(
    run_dirs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out_dir: str | os.PathLike[str] | None = None,
) -> Report:
    """Reads one or several runs, writes page, plots and ``summary.json``, and returns it all.

    Of several runs those that have not logged anything yet are left out and named in ``skipped``.

    Args:
        run_dirs: output folders of training runs, or their ``metrics.jsonl``.
        out_dir: created if missing; by default ``report/`` in the folder of a single run.

    Raises:
        ValueError: several runs without ``out_dir``, no run at all, or an unreadable log.
        FileNotFoundError: a run has no log.
    """
    from sec_grpo.report.figures import write_plots
    from sec_grpo.report.page import write_page

    dirs = [run_dirs] if isinstance(run_dirs, (str, os.PathLike)) else list(run_dirs)
    if not dirs:
        raise ValueError("run_dirs must name at least one run. Got none.")
    if out_dir is None and len(dirs) > 1:
        raise ValueError(f"out_dir must be given for a report on {len(dirs)} runs. Got None.")
    if out_dir is not None and Path(out_dir).exists() and not Path(out_dir).is_dir():
        raise ValueError(f"out_dir must be a folder. Got the file {os.fspath(out_dir)}.")
    runs, skipped = _read(dirs)
    folder = runs[0].path.parent / "report" if out_dir is None else Path(out_dir)

    found = {label: alarms(run) for label, run in zip(run_labels(runs), runs, strict=True)}
    numbers = summary(runs)
    for row in numbers["runs"]:
        row["alarms"] = found[row["label"]]
    text = json.dumps(numbers, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    return Report(
        runs=runs,
        page=write_page(runs, numbers["runs"], folder),
        plots=write_plots(runs, folder),
        summary_path=write_atomically(folder / "summary.json", text.encode()),
        summary=numbers,
        table=summary_table(runs),
        alarms=found,
        skipped=skipped,
    )


def _read(dirs: Sequence[str | os.PathLike[str]]) -> tuple[list[RunLog], dict[str, str]]:
    """The runs that can be read; of the others why not. Raises where none can be."""
    runs: list[RunLog] = []
    skipped: dict[str, str] = {}
    for path in dirs:
        try:
            runs.append(read_run(path))
        except EmptyLogError as error:
            if len(dirs) == 1:
                raise
            skipped[os.fspath(path)] = str(error)
    if not runs:
        raise ValueError("\n".join(skipped.values()))
    return runs, skipped
