"""Ctrl-C and SIGTERM: finish the optimizer step, save, stop."""

from __future__ import annotations

import signal
import threading
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

logger = logging.get_logger(__name__)


class StopOnSignal(TrainerCallback):
    """Turns the first SIGINT or SIGTERM into a checkpoint at the end of the current step.

    A second one raises KeyboardInterrupt at once. `signal_number` says what stopped the run, or
    None. Handlers are installed only while training runs, and only in the main thread, where
    Python allows it.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        self.signal_number = None
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: object) -> None:
        if self.signal_number is not None:
            raise KeyboardInterrupt
        self.signal_number = number
        logger.warning(
            "%s: saving a checkpoint after this step; once more stops at once without saving",
            signal.Signals(number).name,
        )

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if self.signal_number is not None:
            control.should_save = True
            control.should_training_stop = True
