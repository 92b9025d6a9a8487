"""Where the time of an optimizer step goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sec_grpo.trainer.metrics import MetricStore

PARTS = ("rollout", "reward", "curriculum", "logprobs", "update")


class StepTimer(TrainerCallback):
    """Seconds of each optimizer step, as `step_time` and as `time/` of each of PARTS.

    rollout: sampling completions. reward: reward functions and gathering what they return.
    curriculum: drawing prompts and feeding rewards back. logprobs: those of the policy that sampled
    and of the reference, where the loss needs them. update: forward, backward and optimizer. What
    is left of `step_time` is tokenizing, packing and logging. A part that an optimizer step does
    not have counts as 0 in it, so that means over steps add up.
    """

    def __init__(self, metrics: MetricStore, device: torch.device) -> None:
        self._metrics = metrics
        self._device = device
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._step_started: float | None = None
        self._update_started: float | None = None

    def start_step(self) -> None:
        """Begin an optimizer step."""
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._step_started = time.perf_counter()
        self._update_started = None

    def start_update(self) -> None:
        """Begin its last part, forward to optimizer, which ends with the step."""
        self._update_started = time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time inside the `with` block to one of PARTS."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] += time.perf_counter() - started

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if self._step_started is None or self._update_started is None:
            return
        if self._device.type == "cuda":
            # Else the update's kernels would be counted to the next step's rollouts.
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self._seconds["update"] = now - self._update_started
        self._metrics.add("step_time", now - self._step_started)
        for name, seconds in self._seconds.items():
            self._metrics.add(f"time/{name}", seconds)
        self._step_started = None
