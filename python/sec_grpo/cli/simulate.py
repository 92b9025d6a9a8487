"""`sec-grpo simulate`: every curriculum on a simulated learner."""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

if TYPE_CHECKING:
    from sec_grpo.simulation import Comparison, Method, Protocol, Scenario

_LEVEL_LINES = ("random", "ordered", "reverse", "sec", "sec tau=0.2", "dump", "adarft")


def simulate(
    strategies: Annotated[
        str | None,
        typer.Option(
            help="Names joined by commas, or package.module:Class of your own; default: all, each "
            "in one untuned setting."
        ),
    ] = None,
    scenario: Annotated[
        str, typer.Option(help="base, strong, noise, unsolvable, several joined by commas, or all.")
    ] = "all",
    seeds: Annotated[int, typer.Option(help="Runs of each method, on the same seeds.")] = 20,
    seed: Annotated[int, typer.Option(help="The first seed.")] = 0,
    steps: Annotated[int, typer.Option(help="Steps of a run without refills.")] = 150,
    batch_size: Annotated[
        int, typer.Option("--batch_size", "--batch-size", help="Prompts a step.")
    ] = 64,
    num_generations: Annotated[
        int, typer.Option("--num_generations", "--num-generations", help="Rollouts a prompt.")
    ] = 8,
    processes: Annotated[
        int | None, typer.Option(help="Worker processes; default: as many as processors.")
    ] = None,
    output_dir: Annotated[
        Path, typer.Option("--output_dir", "--output-dir", help="Folder of plots and numbers.")
    ] = Path("runs/simulate"),
) -> None:
    """Compare curricula on a simulated learner: seconds instead of GPU-days.

    Example: sec-grpo simulate --strategies random,sec,dump --scenario base
    """
    from sec_grpo.simulation import Protocol

    console = Console()
    started = time.perf_counter()
    protocol = Protocol(seeds, steps, batch_size, num_generations, first_seed=seed)
    methods, scenarios = methods_of(strategies), scenarios_of(scenario)
    workers = len(os.sched_getaffinity(0)) if processes is None else processes
    # A folder that cannot be written to is said now, not when the runs are done.
    output_dir.mkdir(parents=True, exist_ok=True)
    comparisons = _run(methods, scenarios, protocol, workers, console)
    paths, caveat = write_results(comparisons, output_dir, console)
    console.print(caveat, style="yellow", highlight=False)
    console.print(
        f"{seeds} paired seeds, {protocol.rollouts:,} rollouts a run, refills included; ± is a 95% "
        "interval, over random of the paired differences",
        highlight=False,
    )
    console.print("plots and numbers:", style="bold")
    for path in paths:
        console.print(f"  {path}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"{time.perf_counter() - started:.0f} s in all", highlight=False)


def methods_of(names: str | None) -> list[Method]:
    """The methods of a comma-separated list; random is added, since all are compared with it."""
    from sec_grpo.simulation import Method, default_methods

    known = {method.name: method for method in default_methods()}
    if names is None:
        return list(known.values())
    chosen = []
    for name in dict.fromkeys(part.strip() for part in names.split(",")):
        if name not in known and ":" not in name:
            raise ValueError(
                f"--strategies must be of {', '.join(known)}, or package.module:Class; got {name!r}"
            )
        chosen.append(known.get(name) or Method(name.rpartition(":")[2], name))
    if all(method.name != "random" for method in chosen):
        chosen.insert(0, known["random"])
    return chosen


def scenarios_of(names: str) -> list[Scenario]:
    """The scenarios of a comma-separated list."""
    from sec_grpo.simulation import SCENARIOS

    if names == "all":
        return list(SCENARIOS.values())
    parts = [part.strip() for part in names.split(",")]
    if unknown := [part for part in parts if part not in SCENARIOS]:
        raise ValueError(
            f"--scenario must be of {', '.join(SCENARIOS)}, or all; got {unknown[0]!r}"
        )
    return [SCENARIOS[part] for part in dict.fromkeys(parts)]


def _run(
    methods: list[Method],
    scenarios: list[Scenario],
    protocol: Protocol,
    workers: int,
    console: Console,
) -> list[Comparison]:
    from sec_grpo.simulation import simulate as run_all

    # One thread each: the arrays are small, and workers share the processors.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("runs", total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        return run_all(methods, scenarios, protocol, processes=workers, progress=show)


def write_results(
    comparisons: list[Comparison], folder: Path, console: Console
) -> tuple[list[Path], str]:
    """Print the tables; write the plots and summary.json. Returns the files and the caveat."""
    import dataclasses

    from sec_grpo.report.atomic import write_atomically
    from sec_grpo.simulation import plots
    from sec_grpo.simulation.summary import CAVEAT, summarise, table

    summaries = [summarise(comparison) for comparison in comparisons]
    for summary in summaries:
        console.print(table(summary))
    figures: dict[str, Any] = {"accuracy.png": plots.accuracy_figure(summaries)}
    for comparison in comparisons:
        name = comparison.scenario.name
        figures[f"allocation_{name}.png"] = plots.allocation_figure(comparison)
        lines = [method for method in _LEVEL_LINES if method in comparison.outcomes]
        if name == "base" and lines:
            figures["mean_level.png"] = plots.mean_level_figure(comparison, lines)
    paths = [write_atomically(folder / name, plots.png(made)) for name, made in figures.items()]
    content = {
        "command": " ".join(["sec-grpo", *sys.argv[1:]]),
        "version": version("sec-grpo"),
        "caveat": CAVEAT,
        "protocol": dataclasses.asdict(comparisons[0].protocol),
        "scenarios": summaries,
    }
    text = json.dumps(content, indent=1) + "\n"
    paths.append(write_atomically(folder / "summary.json", text.encode()))
    return paths, CAVEAT
