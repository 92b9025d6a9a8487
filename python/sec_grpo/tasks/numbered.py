"""Tasks whose problems take long to make: made apart from each other, in several processes."""

from __future__ import annotations

import os
import queue
import random
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial

from sec_grpo.tasks.base import Row, Task
from sec_grpo.tasks.isolated import Isolated, NotFinished

# With workers=None: seconds made here before looking at what is left, and how many seconds of it
# are worth starting processes for, each of which imports the generator.
_SECONDS_ALONE = 2.0
_SECONDS_WORTH_PROCESSES = 15.0
# Numbers in a row without a problem after which a level counts as impossible.
_FAILURES = 64
# Limits of a chunk of problems: against a generator that hangs or eats the machine.
_SECONDS_A_CHUNK = 3600.0
_MEMORY = 16 << 30
_CHUNK = 4


class NumberedTask(Task):
    """A task that makes each problem by itself, from its number.

    A subclass implements `make` instead of `draw`. `generate` then makes the problems 0, 1, 2, ...
    here or in several processes; the rows are the same.

    Attributes:
        needs_fixed_hashes: `make` depends on the order of sets, which differs between processes;
            problems are then always made in processes that agree on it.
    """

    needs_fixed_hashes: bool = False

    @abstractmethod
    def make(self, level: int, seed: int, number: int) -> Row | None:
        """Problem `number` of a level: a row with at least `prompt` and `ground_truth`.

        The same arguments give the same row in every process; rows hold what JSON can. None where
        no problem could be made of this number.
        """

    def impossible(self, level: int) -> str:
        """What to say where many numbers in a row gave no problem."""
        return f"task {self.name!r} makes no problems of level {level}"

    def draw(self, rng: random.Random, level: int) -> Row:
        """A problem of a random number."""
        for _ in range(_FAILURES):
            row = self.make(level, rng.getrandbits(32), 0)
            if row is not None:
                return row
        raise ValueError(self.impossible(level))

    def _problems(self, level: int, seed: int, n: int, workers: int | None) -> Iterator[Row]:
        failures = 0
        for row in self._made(level, seed, n, workers):
            if row is not None:
                failures = 0
                yield row
                continue
            failures += 1
            if failures == _FAILURES:
                raise ValueError(self.impossible(level))

    def _made(self, level: int, seed: int, n: int, workers: int | None) -> Iterator[Row | None]:
        number = 0
        if self.needs_fixed_hashes:
            yield from _made_by(self, level, seed, number, workers or 1)
            return
        if workers is None:
            started = time.monotonic()
            limit = started + _SECONDS_ALONE
            while time.monotonic() < limit:
                yield self.make(level, seed, number)
                number += 1
            left = (time.monotonic() - started) / number * (n - number)
            workers = processors() if left > _SECONDS_WORTH_PROCESSES and self._movable() else 1
        if workers > 1:
            yield from _made_by(self, level, seed, number, workers)
            return
        while True:
            yield self.make(level, seed, number)
            number += 1

    def _movable(self) -> bool:
        """Whether another process finds the task without running the program again."""
        if type(self).__module__ == "__main__":
            return False
        try:
            Isolated(partial(_made_in_worker, self))
        except TypeError:
            return False
        return True


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _made_in_worker(task: NumberedTask, level: int, seed: int, start: int) -> list[Row | None]:
    return [task.make(level, seed, number) for number in range(start, start + _CHUNK)]


def _made_by(
    task: NumberedTask, level: int, seed: int, number: int, workers: int
) -> Iterator[Row | None]:
    """The problems from `number` on, made in `workers` processes that end with the iteration."""
    free: queue.SimpleQueue[Isolated] = queue.SimpleQueue()
    processes = [
        Isolated(
            partial(_made_in_worker, task),
            time_limit=_SECONDS_A_CHUNK,
            memory_limit=_MEMORY,
        )
        for _ in range(workers)
    ]
    for process in processes:
        free.put(process)

    def chunk(start: int) -> list[Row | None]:
        process = free.get()
        try:
            rows: list[Row | None] = process(level, seed, start)
            return rows
        finally:
            free.put(process)

    waiting: deque[Future[list[Row | None]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="problems") as threads:
        try:
            while True:
                while len(waiting) < 2 * workers:
                    waiting.append(threads.submit(chunk, number))
                    number += _CHUNK
                yield from waiting.popleft().result()
        except NotFinished as error:
            raise ValueError(
                f"task {task.name!r} cannot make problems of level {level}: {error}"
            ) from error
        finally:
            running = [future for future in waiting if not future.cancel()]
            # Again and again: a thread may be about to start its process.
            while wait(running, timeout=0.05).not_done:
                for process in processes:
                    process.kill()
            for process in processes:
                process.close()
