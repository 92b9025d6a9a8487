"""Verify many answers in several processes, none of which can lose the batch."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from typing import Any, ClassVar

from sec_grpo.tasks.base import NOT_VERIFIED, Task, Verdict, judge
from sec_grpo.tasks.isolated import CallFailed, Isolated, NotFinished
from sec_grpo.tasks.numbered import processors
from sec_grpo.tasks.progress import progress_bar

# Limits of one answer: seconds, and bytes.
TIME_LIMIT = 1.0
MEMORY_LIMIT = 1 << 30
_MOST_WORKERS = 8


def default_workers() -> int:
    """How many processes verify by default: the processors of this rank, at most 8."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    return max(1, min(_MOST_WORKERS, processors() // ranks))


class VerifierPool:
    """The `verify` of a task, or of several, in `workers` processes, each call under limits.

    An answer that makes `verify` hang, crash, raise or exhaust memory scores 0, with a reason that
    starts with "not verified: "; the process is replaced. The processes start at the first use and
    end with the pool, or with the program; threads may share a pool; forked and unpickled copies
    start processes of their own. See `Isolated`.

    Before its first answer each process calls `Task.warm_up` and judges an empty text without
    limits, so that what `verify` imports does not count.

    Args:
        task: picklable; its class belongs to a module. Or several such.
        workers: how many processes.
        time_limit: seconds of one answer.
        memory_limit: bytes that one answer may take, where the system has such limits (Linux).

    Raises:
        ValueError: `workers` is below 1, or a limit is not a positive finite number.
        TypeError: a task cannot be pickled.
    """

    def __init__(
        self,
        task: Task | Sequence[Task],
        workers: int,
        *,
        time_limit: float = TIME_LIMIT,
        memory_limit: int = MEMORY_LIMIT,
    ) -> None:
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
            raise ValueError(f"workers must be an integer of at least 1. Got {workers!r}.")
        self.tasks = [task] if isinstance(task, Task) else list(task)
        self._arguments = (self.tasks, workers, time_limit, memory_limit)
        self._workers: list[Isolated] = []
        self._isolated()

    def verify(
        self,
        texts: Sequence[str],
        truths: Sequence[Any],
        *,
        task: int = 0,
        progress: bool = False,
    ) -> list[Verdict]:
        """One verdict for each text, in order.

        Args:
            texts: completions.
            truths: one for each text.
            task: which of several tasks judges, counted from 0.
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
        rows: deque[int] = deque()
        for row, pair in enumerate(zip(texts, truths, strict=True)):
            known = _at_once(self.tasks[task], *pair)
            if known is None:
                rows.append(row)
            else:
                verdicts[row] = known
        count = len(rows)

        def work(isolated: Isolated) -> None:
            while True:
                try:
                    row = rows.popleft()
                except IndexError:
                    return
                verdicts[row] = _verdict(isolated, task, row, texts[row], truths[row])

        if count and not self._workers:
            first = [truths[0]] if len(self.tasks) == 1 else []
            self._workers = [self._isolated(*first) for _ in range(self._arguments[1])]
        busy = self._workers[:count]
        with ThreadPoolExecutor(len(busy) or 1, thread_name_prefix="verifier") as threads:
            running = [threads.submit(work, isolated) for isolated in busy]
            try:
                _wait(running, rows, count, progress)
            finally:
                rows.clear()
        return verdicts

    def _isolated(self, *truth: Any) -> Isolated:
        tasks, _, time_limit, memory_limit = self._arguments
        return Isolated(
            partial(_judged, tasks),
            time_limit=time_limit,
            memory_limit=memory_limit,
            warm_up=partial(_warm_up, tasks, *truth),
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


def _rebuilt(tasks: list[Task], workers: int, time_limit: float, memory_limit: int) -> VerifierPool:
    return VerifierPool(tasks, workers, time_limit=time_limit, memory_limit=memory_limit)


class SharedPool:
    """A task's share in one pool for all slow tasks of the program.

    Several tasks with several processes each would be too many. Those known when the processes
    start are warmed up in each; a task that comes later starts them anew.

    Args:
        task: one that prepares itself in `Task.warm_up`.
    """

    _tasks: ClassVar[list[Task]] = []
    _pool: ClassVar[VerifierPool | None] = None

    def __init__(self, task: Task) -> None:
        self._task = task
        self._number()

    def verify(
        self, texts: Sequence[str], truths: Sequence[Any], *, progress: bool = False
    ) -> list[Verdict]:
        """As `VerifierPool.verify`."""
        number = self._number()
        pool = SharedPool._pool
        if pool is None or len(pool.tasks) <= number:
            if pool is not None:
                pool.close()
            pool = SharedPool._pool = VerifierPool(list(self._tasks), default_workers())
        return pool.verify(texts, truths, task=number, progress=progress)

    def close(self) -> None:
        """Nothing: others may be using the processes, which end with the program."""

    def _number(self) -> int:
        for number, known in enumerate(self._tasks):
            if known is self._task:
                return number
        self._tasks.append(self._task)
        return len(self._tasks) - 1


def pool_for(task: Task, *, time_limit: float, memory_limit: int) -> VerifierPool | SharedPool:
    """The pool of a slow task: the shared one for our own with the usual limits.

    A task from elsewhere might need what the processes of the shared pool refuse, or disturb them.
    """
    usual = (time_limit, memory_limit) == (TIME_LIMIT, MEMORY_LIMIT)
    if task.slow and usual and type(task).__module__.startswith("sec_grpo."):
        return SharedPool(task)
    return VerifierPool(task, default_workers(), time_limit=time_limit, memory_limit=memory_limit)


def _at_once(task: Task, text: str, truth: Any) -> Verdict | None:
    try:
        return task.at_once(text, truth)
    except Exception:
        # A row at fault, or the task: told with the row's number by the process that judges it.
        return None


def _judged(tasks: list[Task], number: int, text: str, truth: Any) -> list[Any]:
    """In a process of the pool: a verdict, or the message that the row is at fault."""
    try:
        return list(judge(tasks[number], text, truth))
    except MemoryError:
        raise
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]


def _warm_up(tasks: list[Task], *truths: Any) -> None:
    for task in tasks:
        task.warm_up()
        for truth in truths:
            # A row at fault is told with its number when its turn comes.
            with suppress(Exception):
                task.verify("", truth)


def _verdict(isolated: Isolated, task: int, row: int, text: str, truth: Any) -> Verdict:
    try:
        found = isolated(task, text, truth)
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
    done: set[Future[None]] = set()
    waiting = set(running)
    with progress_bar("verifying", total, shown=progress) as advance:
        while waiting:
            finished, waiting = wait(waiting, timeout=0.1, return_when="FIRST_EXCEPTION")
            done |= finished
            advance(total - len(rows))
            if any(future.exception() for future in done):
                break
    for future in done:
        future.result()
