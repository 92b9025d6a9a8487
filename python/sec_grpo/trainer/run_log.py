"""The run's `metrics.jsonl`: what the report reads."""

from __future__ import annotations

import time
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sec_grpo.curriculum import Curriculum
from sec_grpo.report.writer import LOG_NAME, SCHEMA, MetricsWriter

MAX_ARMS = 1000  # logged one by one; a line of so many has about 100 kB
DIGITS = 7  # of the arms' numbers, a float32's
_COUNTS = ("draws", "prompts", "rollouts", "successes", "probability")


class ArmBins:
    """Arms in order, neighbours joined where they are more than `MAX_ARMS`.

    Args:
        labels: of the K arms.
    """

    def __init__(self, labels: list[str]) -> None:
        edges = np.linspace(0, len(labels), min(MAX_ARMS, len(labels)) + 1).round().astype(int)
        self._starts = edges[:-1]
        ends = edges[1:] - 1
        self.labels = [
            labels[a] if a == b else f"{labels[a]} to {labels[b]}"
            for a, b in zip(edges[:-1].tolist(), ends.tolist(), strict=True)
        ]
        self._joined = len(self.labels) < len(labels)

    def column(self, name: str, values: NDArray[Any]) -> list[float | None]:
        """A column of K values as one of the bins: counts are added, the rest is averaged."""
        array = np.asarray(values, dtype=np.float64)
        if self._joined:
            known = np.isfinite(array)
            total = np.add.reduceat(np.where(known, array, 0.0), self._starts)
            count = np.add.reduceat(known.astype(np.float64), self._starts)
            divisor = (count > 0).astype(np.float64) if name in _COUNTS else count
            array = np.divide(total, divisor, out=np.full_like(total, np.nan), where=divisor > 0)
        if name == "probability":  # sums to 1 in the log too
            return array.tolist()
        return [float(f"{x:.{DIGITS}g}") if x == x else None for x in array.tolist()]


class RunRecorder:
    """Writes one JSON line per run, step and evaluation; silent on all processes but the first.

    `elapsed` counts seconds of training over all resumed parts of the run.
    """

    def __init__(self, output_dir: str, curriculum: Curriculum, *, enabled: bool) -> None:
        self._path = Path(output_dir) / LOG_NAME
        self._curriculum = curriculum
        self._enabled = enabled
        self._writer: MetricsWriter | None = None
        self._bins = ArmBins([])
        self._num_arms = 0
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

    def start(self, config: dict[str, Any], *, step: int, max_steps: int, resumed: bool) -> None:
        """Open the log and write the run event; an earlier run's log is put aside, not mixed."""
        self._started = time.perf_counter()
        if not self._enabled:
            return
        if self._writer is not None:
            self._writer.close()
        if not resumed and self._path.exists():
            self._put_aside()
        self._writer = MetricsWriter(self._path)
        self._bin_arms()
        strategy = self._curriculum.strategy
        from sec_grpo import __version__

        self._writer.write(
            "run",
            schema=SCHEMA,
            version=__version__,
            name=config.get("run_name") or self._path.parent.name,
            step=step,
            arms=self._bins.labels,
            strategy={"name": strategy.name, **strategy.parameters()},
            max_steps=max_steps,
            config={name: _plain(value) for name, value in config.items()},
            time=self.elapsed,
        )

    def stop(self) -> None:
        """Stop the clock."""
        self._before = self.elapsed
        self._started = None

    def _bin_arms(self) -> None:
        labels = [str(arm) for arm in self._curriculum.arms]
        self._bins, self._num_arms = ArmBins(labels), len(labels)

    def step(self, step: int, scalars: dict[str, float], arms: dict[str, NDArray[Any]]) -> None:
        """Record an optimizer step (or the mean of those since the last).

        `arms` holds columns beside those of `Curriculum.arm_table`.
        """
        if self._writer is None:
            return
        if self._curriculum.num_arms != self._num_arms:  # some were added while training runs
            self._bin_arms()
            self._writer.write("arms", arms=self._bins.labels)
        columns = {**self._curriculum.arm_table(), **arms}
        table = {name: self._bins.column(name, values) for name, values in columns.items()}
        self._writer.write("step", **{**scalars, "step": step, "time": self.elapsed}, arms=table)

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
