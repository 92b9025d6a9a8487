"""Verify many answers in several processes, none of which can lose the batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from sec_grpo.tasks.base import NOT_VERIFIED, Task, Verdict, judge
from sec_grpo.tasks.isolated import CallFailed, Isolated, NotFinished

# Seconds after which a batch counts as long, and its progress is shown.
_LONG_SECONDS = 1.0


class VerifierPool:
    """A task's `verify` in `workers` processes, each call under limits of time and memory.

    An answer that makes `verify` hang, crash, raise or exhaust memory scores 0, with a reason that
    starts with "not verified: "; the process is replaced. The processes start at the first use and
    end with the pool, or with the program; threads may share a pool; forked and unpickled copies
    start processes of their own. See `Isolated`.

    Before its first answer each process judges an empty text without limits, so that what
    `verify` imports does not count; a task may have a method `warm_up()` for more.

    Args:
        task: picklable; its class belongs to a module.
        workers: how many processes.
        time_limit: seconds of one answer.
        memory_limit: bytes that one answer may take, where the system has such limits (Linux).

    Raises:
        ValueError: `workers` is below 1, or a limit is not a positive finite number.
        TypeError: the task cannot be pickled.
    """

    def __init__(
        self, task: Task, workers: int, *, time_limit: float = 1.0, memory_limit: int = 1 << 30
    ) -> None:
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
            raise ValueError(f"workers must be an integer of at least 1. Got {workers!r}.")
        self.task = task
        self._arguments = (task, workers, time_limit, memory_limit)
        self._workers: list[Isolated] = []
        self._isolated()

    def verify(
        self, texts: Sequence[str], truths: Sequence[Any], *, progress: bool = False
    ) -> list[Verdict]:
        """One verdict for each text, in order.

        Args:
            texts: completions.
            truths: one for each text.
            progress: show a bar on stderr when it takes more than a second.

        Raises:
            ValueError: another number of truths than texts; or a truth that the task cannot judge
                any answer against, the message naming its row.
            RuntimeError: a process does not start.
        """
        if len(texts) != len(truths):
            raise ValueError(
                f"truths must hold one per text. Got {len(truths)} truths for {len(texts)} texts."
            )
        verdicts = [Verdict(0.0, "", False)] * len(texts)
        rows = deque(range(len(texts)))

        def work(isolated: Isolated) -> None:
            while True:
                try:
                    row = rows.popleft()
                except IndexError:
                    return
                verdicts[row] = _verdict(isolated, row, texts[row], truths[row])

        if len(truths) and not self._workers:
            self._workers = [self._isolated(truths[0]) for _ in range(self._arguments[1])]
        busy = self._workers[: len(texts)]
        with ThreadPoolExecutor(len(busy) or 1, thread_name_prefix="verifier") as threads:
            running = [threads.submit(work, isolated) for isolated in busy]
            try:
                _wait(running, rows, len(texts), progress)
            finally:
                rows.clear()
        return verdicts

    def _isolated(self, *truth: Any) -> Isolated:
        task, _, time_limit, memory_limit = self._arguments
        return Isolated(
            partial(_judged, task),
            time_limit=time_limit,
            memory_limit=memory_limit,
            warm_up=partial(_warm_up, task, *truth),
        )

    def close(self) -> None:
        """End the processes; the next use starts others."""
        for isolated in self._workers:
            isolated.close()

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        return _rebuilt, self._arguments


def _rebuilt(task: Task, workers: int, time_limit: float, memory_limit: int) -> VerifierPool:
    return VerifierPool(task, workers, time_limit=time_limit, memory_limit=memory_limit)


def _judged(task: Task, text: str, truth: Any) -> list[Any]:
    """In a process of the pool: a verdict, or the message that the row is at fault."""
    try:
        return list(judge(task, text, truth))
    except MemoryError:
        raise
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]


def _warm_up(task: Task, *truths: Any) -> None:
    prepare = getattr(task, "warm_up", None)
    if prepare is not None:
        prepare()
    for truth in truths:
        # A row at fault is told with its number when its turn comes.
        with suppress(Exception):
            task.verify("", truth)


def _verdict(isolated: Isolated, row: int, text: str, truth: Any) -> Verdict:
    try:
        found = isolated(text, truth)
    except CallFailed as error:
        # Not the verifier, whose exceptions are caught there: the row itself did not arrive.
        raise ValueError(f"row {row} with the truth {truth!r:.80}: {error}") from error
    except NotFinished as error:
        return Verdict(0.0, f"{NOT_VERIFIED}{error}", False)
    if len(found) == 1:
        raise ValueError(f"row {row} with the truth {truth!r:.80}: {found[0]}")
    return Verdict(*found)


def _wait(running: list[Future[None]], rows: deque[int], total: int, progress: bool) -> None:
    """Wait for the threads, with a bar for a long batch; raise what one of them raised."""
    done, waiting = wait(running, timeout=_LONG_SECONDS, return_when="FIRST_EXCEPTION")
    with _bar(total, shown=progress and bool(waiting)) as advance:
        while waiting:
            finished, waiting = wait(waiting, timeout=0.1, return_when="FIRST_EXCEPTION")
            done |= finished
            advance(total - len(rows))
            if any(future.exception() for future in done):
                break
    for future in done:
        future.result()


@contextmanager
def _bar(total: int, *, shown: bool) -> Iterator[Any]:
    """A function that takes how many of `total` are begun."""
    if not shown:
        yield lambda begun: None
        return
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("verifying", total=total)
        yield lambda begun: progress.update(task, completed=begun)
