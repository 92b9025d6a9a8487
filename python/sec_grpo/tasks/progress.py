"""A progress bar that only long work shows, and only on a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# Seconds after which work counts as long.
LONG_SECONDS = 1.0


@contextmanager
def progress_bar(label: str, total: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """A function to call with how many of `total` are done; it draws on stderr."""
    started = time.monotonic()
    running: Any = None
    task: Any = None

    def advance(done: int) -> None:
        nonlocal running, task
        if running is None and shown and time.monotonic() - started > LONG_SECONDS:
            from rich.console import Console
            from rich.progress import Progress

            console = Console(stderr=True)
            running = Progress(console=console, transient=True, disable=not console.is_terminal)
            task = running.add_task(label, total=total)
            running.start()
        if running is not None:
            running.update(task, completed=done)

    try:
        yield advance
    finally:
        if running is not None:
            running.stop()
