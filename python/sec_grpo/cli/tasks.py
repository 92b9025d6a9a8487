"""`sec-grpo tasks`: what there is to train on, and what a level of it looks like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from sec_grpo.tasks import Task


def tasks(
    name: Annotated[
        str | None,
        typer.Argument(help="A task's name or path; default: list them all."),
    ] = None,
    level: Annotated[
        int | None, typer.Option(help="Level of the example; default: the first.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the example.")] = 0,
) -> None:
    """List the tasks, or show the levels of one and an example.

    Example: sec-grpo tasks reasoning_gym/chain_sum --level 3
    """
    console = Console()
    if name is None:
        _list(console)
        return
    from sec_grpo import tasks

    task = tasks.get(name)
    console.print(_levels(task))
    _example(task, task.levels[0] if level is None else level, seed, console)


def _list(console: Console) -> None:
    from sec_grpo import tasks

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("task", "levels", "held out"):
        table.add_column(column)
    for name in tasks.names():
        try:
            task = tasks.get(name)
        except ImportError as error:
            table.add_row(name, str(error), "")
            continue
        table.add_row(name, _numbers(task.levels), _numbers(task.held_out_levels))
    console.print(table)
    try:
        from sec_grpo.tasks import gym

        groups = gym.groups()
    except ImportError as error:
        console.print(f"reasoning_gym/...: {error}")
        return
    console.print("reasoning_gym/... (sec-grpo tasks reasoning_gym/NAME shows the knobs)")
    for group, names in groups.items():
        console.print(f"  [bold]{group}[/]: {', '.join(names)}", highlight=False)


def _levels(task: Task) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=task.name, title_justify="left", padding=(0, 1, 0, 0))
    table.add_column("level", justify="right")
    knobs = getattr(task, "knobs", None)
    if knobs is not None:
        table.add_column("knobs")
    for level in (*task.levels, *task.held_out_levels):
        shown = f"{level} (held out)" if level in task.held_out_levels else str(level)
        table.add_row(shown, *([_words(knobs(level))] if knobs is not None else []))
    return table


def _example(task: Task, level: int, seed: int, console: Console) -> None:
    row = task.generate(level, 1, seed)[0]
    prompt: Any = row["prompt"]
    text = prompt if isinstance(prompt, str) else "\n".join(m["content"] for m in prompt)
    console.print(f"[bold]level {level}:[/]")
    console.print(text, markup=False, highlight=False)
    for column in ("answer", "solution"):
        if row.get(column) is not None:
            console.print(f"[bold]{column}:[/] ", end="")
            console.print(row[column], markup=False, highlight=False)
            return
    console.print("[bold]truth:[/] ", end="")
    console.print(str(row["ground_truth"]), markup=False, highlight=False)


def _words(knobs: Any) -> str:
    return ", ".join(f"{name}={value}" for name, value in knobs.items()) or "defaults"


def _numbers(levels: tuple[int, ...]) -> str:
    return ", ".join(map(str, levels))
