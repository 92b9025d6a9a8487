"""The run's `metrics.jsonl`: what the report reads."""

from __future__ import annotations

import time
from enum import Enum
from pathlib import Path
from typing import Any

from sec_grpo.curriculum import Curriculum
from sec_grpo.report.log import LOG_NAME, SCHEMA, MetricsWriter


class RunRecorder:
    """Writes one JSON line per run, step and evaluation; silent on all processes but the first.

    `elapsed` counts seconds of training over all resumed parts of the run.
    """

    def __init__(self, output_dir: str, curriculum: Curriculum, *, enabled: bool) -> None:
        self._path = Path(output_dir) / LOG_NAME
        self._curriculum = curriculum
        self._enabled = enabled
        self._writer: MetricsWriter | None = None
        self._before = 0.0
        self._started: float | None = None

    @property
    def elapsed(self) -> float:
        """Seconds of training so far."""
        running = 0.0 if self._started is None else time.perf_counter() - self._started
        return self._before + running

    def restore(self, elapsed: float) -> None:
        """Continue the clock of a resumed run."""
        self._before = elapsed

    def start(self, config: dict[str, Any], *, step: int, resumed: bool) -> None:
        """Open the log and write the run event; an earlier run's log is put aside, not mixed."""
        self._started = time.perf_counter()
        if not self._enabled:
            return
        if self._writer is not None:
            self._writer.close()
        if not resumed and self._path.exists():
            self._put_aside()
        self._writer = MetricsWriter(self._path)
        strategy = self._curriculum.strategy
        from sec_grpo import __version__

        self._writer.write(
            "run",
            schema=SCHEMA,
            version=__version__,
            name=config.get("run_name") or self._path.parent.name,
            step=step,
            arms=[str(arm) for arm in self._curriculum.arms],
            strategy={"name": strategy.name, **strategy.parameters()},
            max_steps=config["max_steps"],
            config={name: _plain(value) for name, value in config.items()},
            time=self.elapsed,
        )

    def stop(self) -> None:
        """Stop the clock."""
        self._before = self.elapsed
        self._started = None

    def step(
        self, step: int, scalars: dict[str, float], arms: dict[str, list[float | None]]
    ) -> None:
        """Record an optimizer step (or the mean of those since the last).

        `arms` holds columns beside those of `Curriculum.arm_table`.
        """
        if self._writer is not None:
            table = {name: column.tolist() for name, column in self._curriculum.arm_table().items()}
            arms = {**table, **arms}
            self._writer.write("step", **{**scalars, "step": step, "time": self.elapsed}, arms=arms)

    def evaluation(
        self, step: int, accuracy: dict[str, float], counts: dict[str, int], held_out: list[str]
    ) -> None:
        """Record mean evaluation rewards by category label."""
        if self._writer is not None:
            self._writer.write(
                "eval",
                step=step,
                time=self.elapsed,
                accuracy=accuracy,
                num_prompts=counts,
                held_out=held_out,
            )

    def _put_aside(self) -> None:
        number = 1
        while (target := self._path.with_name(f"metrics.{number}.jsonl")).exists():
            number += 1
        self._path.rename(target)


def _plain(value: Any) -> Any:
    """A config value as JSON holds it."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (str, int, float, bool, type(None), list, dict)):
        return value
    return str(value)
