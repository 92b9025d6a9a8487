"""Callbacks of the command line: live progress, and the settings kept beside a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from sec_grpo.cli.settings import write_settings

LINES_PER_RUN = 10
SHOWN = {
    "loss": "loss",
    "reward": "reward",
    "frac_reward_zero_std": "dead groups",
    "curriculum/mean_arm": "mean arm",
    "eval_reward": "eval",
}


class ConsoleProgress(TrainerCallback):
    """One progress bar with the newest figures; one line in ten where there is no terminal."""

    def __init__(self, console: Console, label: str) -> None:
        self._console = console
        self._label = label
        self._figures: dict[str, float] = {}
        self._progress: Progress | None = None
        self._task: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[figures]}"),
                console=self._console,
            )
            self._progress.start()
            self._task = self._progress.add_task(
                self._label, total=state.max_steps, completed=state.global_step, figures=""
            )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        for name, value in (logs or {}).items():
            if name in SHOWN:
                self._figures[SHOWN[name]] = float(value)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        figures = "  ".join(f"{name} {value:.2f}" for name, value in self._figures.items())
        if self._progress is not None:
            self._progress.update(self._task, completed=state.global_step, figures=figures)
        elif state.is_world_process_zero:
            every = max(1, state.max_steps // LINES_PER_RUN)
            if state.global_step % every == 0 or state.global_step == state.max_steps:
                self._console.print(
                    f"{self._label}: step {state.global_step}/{state.max_steps}  {figures}",
                    highlight=False,
                    soft_wrap=True,
                )

    def close(self) -> None:
        """Take the bar down; safe to call when training raised."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()


class KeepSettings(TrainerCallback):
    """Writes the settings of `sec-grpo train` beside the run, once it really begins."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            write_settings(Path(args.output_dir) / "config.yaml", self._settings)


def quiet_libraries() -> None:
    """Leave the terminal to our own progress: no bars and notes of the libraries below."""
    import datasets
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()


def show_progress(trainer: Trainer, console: Console, label: str) -> ConsoleProgress:
    """Replace a trainer's own progress output by `ConsoleProgress`."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    progress = ConsoleProgress(console, label)
    trainer.add_callback(progress)
    return progress
