"""`sec-grpo report`: plots and a table from runs' logs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def report(
    run_dirs: Annotated[
        list[Path], typer.Argument(help="Output folders of training runs, or their metrics.jsonl.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "--output_dir",
            "--output-dir",
            help="Folder for page and plots. Default: report/ in the run's folder, or here for "
            "several runs.",
        ),
    ] = None,
) -> None:
    """Show what happened in runs: one HTML page, plots, a table, alarms.

    Runs that differ in their seeds alone are averaged. A run may still be going on.

    Example: sec-grpo report runs/sec-0 runs/sec-1 runs/random-0 --out runs/report
    """
    show_report(list(run_dirs), out, Console())


def show_report(run_dirs: list[Path], out: Path | None, console: Console) -> None:
    """Make the report and print its table, alarms and file names."""
    with console.status("drawing the report"):
        from sec_grpo.report import report as make_report

        if out is None and len(run_dirs) > 1:
            out = Path("report")
        made = make_report(run_dirs, out)
    console.print(made.table)
    for label, sentences in made.alarms.items():
        for sentence in sentences:
            console.print(f"{label}: {sentence}", style="yellow", markup=False, highlight=False)
    for reason in made.skipped.values():
        console.print(f"left out: {reason}", style="yellow", markup=False, highlight=False)
    console.print("report:", style="bold")
    for path in [made.page, *made.plots, made.summary_path]:
        console.print(f"  {path}", markup=False, highlight=False, soft_wrap=True)
