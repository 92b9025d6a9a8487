"""Ctrl-C and SIGTERM: finish the optimizer step, save, stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

logger = logging.get_logger(__name__)


class StopOnSignal(TrainerCallback):
    """Turns the first SIGINT or SIGTERM into a checkpoint at the end of the current step.

    An evaluation that is due at that step is left out. A second signal raises KeyboardInterrupt at
    once. Handlers are installed only while training runs, and only in the main thread, where Python
    allows it.

    Args:
        any_process: whether its argument is true on any process; called once a step, so that all
            processes stop after the same one.
    """

    def __init__(self, any_process: Callable[[bool], bool]) -> None:
        self._any_process = any_process
        self._signalled = False
        self._previous: dict[int, Any] = {}
        self.stopped = False
        """whether a signal to any process stopped the last run"""

    def __enter__(self) -> StopOnSignal:
        self._signalled = self.stopped = False
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: object) -> None:
        if self._signalled:
            raise KeyboardInterrupt
        self._signalled = True
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
        if self._any_process(self._signalled):
            self.stopped = True
            control.should_save = True
            control.should_evaluate = False
            control.should_training_stop = True
        if control.should_save:
            # Logged means start anew at a checkpoint, so that a resumed run logs the same numbers.
            control.should_log = True
