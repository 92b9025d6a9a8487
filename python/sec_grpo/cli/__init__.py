"""The command `sec-grpo`."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer
from rich.console import Console

from sec_grpo.cli.evaluate import evaluate
from sec_grpo.cli.info import info
from sec_grpo.cli.quickstart import quickstart
from sec_grpo.cli.report import report
from sec_grpo.cli.simulate import simulate
from sec_grpo.cli.tasks import tasks
from sec_grpo.cli.train import train

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"sec-grpo {version('sec-grpo')}")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_show_version, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """GRPO with fused loss kernels and a self-evolving curriculum."""


app.command()(quickstart)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(train)
app.command(name="eval")(evaluate)
app.command()(report)
app.command()(simulate)
app.command()(tasks)
app.command()(info)


def main() -> None:
    """Run the command line; errors of the input are one message and exit status 2."""
    from sec_grpo.errors import is_user_error

    try:
        app()
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped at once; what was written is whole", style="yellow")
        sys.exit(130)
    except Exception as error:
        if os.environ.get("SEC_GRPO_TRACEBACK") or not is_user_error(error):
            raise
        console = Console(stderr=True, soft_wrap=True, highlight=False)
        console.print("error:", style="bold red", end=" ")
        console.print(str(error), markup=False)
        console.print("(SEC_GRPO_TRACEBACK=1 shows where)", style="dim")
        sys.exit(2)
