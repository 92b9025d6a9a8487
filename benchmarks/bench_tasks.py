"""Verdicts a second: `pytest benchmarks/bench_tasks.py` (pytest-benchmark).

Every case checks its verdicts before it is timed. `python benchmarks/bench_tasks.py` writes
results/tasks.json: verdicts a second of processor time in one process (what a core gives), and, for
answers that worker processes judge, a second by the clock. The rows of MATH are those of the
authors, if they are beside the checkout; others are generated.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sec_grpo.tasks import get, load_dataset_file
from sec_grpo.tasks.pool import VerifierPool, default_workers

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("SEC_GRPO_DATA", ROOT.parent / "shared" / "data" / "sec"))
RESULT = ROOT / "benchmarks" / "results" / "tasks.json"
# The issue of a trainer's step: thousands of completions, most of them a page long.
THOUGHT = "First try the largest numbers: 96 - 73 = 23, and 23 + 8 = 31, which is too small. "
LONG = THOUGHT * 40
REPEATS = 7


class Case(NamedTuple):
    """Texts, their truths, and the score that they have to get."""

    task: Any
    texts: list[str]
    truths: list[Any]
    score: float

    def judge(self) -> list[float]:
        verify = self.task.verify
        return [verify(*pair).score for pair in zip(self.texts, self.truths, strict=True)]


def boxed(answer: str, before: str = THOUGHT) -> str:
    return f"{before}\\boxed{{{answer}}}"


@cache
def cases() -> dict[str, Case]:
    """What one process judges."""
    countdown, zebra, arc, math = map(get, ("countdown", "zebra", "arc_1d", "math"))
    rows = [row for level in (3, 4, 5, 6) for row in countdown.generate(level, 500, seed=0)]
    truths = [row["ground_truth"] for row in rows]
    solutions = [row["solution"] for row in rows]
    shifted = [*solutions[1:], solutions[0]]
    cells = [" ".join(str((7 * i + j) % 10) for j in range(20)) for i in range(500)]
    numbers = [str(i) for i in range(2000)]
    return {
        "countdown, right": Case(countdown, [boxed(s) for s in solutions], truths, 1.0),
        "countdown, right, 3,000 characters": Case(
            countdown, [boxed(s, LONG) for s in solutions], truths, 1.0
        ),
        "countdown, other numbers": Case(countdown, [boxed(s) for s in shifted], truths, 0.0),
        "countdown, no box": Case(countdown, [LONG] * 2000, truths, 0.0),
        "countdown, powers": Case(countdown, [boxed("96**73**8")] * 2000, truths, 0.0),
        "zebra": Case(zebra, [boxed("Alice")] * 2000, [{"target": "alice"}] * 2000, 1.0),
        "arc_1d, 20 cells": Case(
            arc, [boxed(c) for c in cells], [{"target": c} for c in cells], 1.0
        ),
        "math, numbers": Case(math, [boxed(f"{n}.0") for n in numbers], numbers, 1.0),
    }


@pytest.mark.parametrize("name", cases())
def test_verdicts(benchmark, name: str) -> None:
    case = cases()[name]
    assert set(case.judge()) == {case.score}
    benchmark(case.judge)
    benchmark.extra_info["verdicts"] = len(case.texts)


def test_rewards_of_a_batch(benchmark) -> None:
    case = cases()["countdown, right"]
    completions = [[{"role": "assistant", "content": text}] for text in case.texts]
    reward = case.task.reward
    assert set(reward(None, completions, ground_truth=case.truths)) == {1.0}
    benchmark(reward, None, completions, ground_truth=case.truths)


@pytest.fixture(scope="module")
def math_pool():
    pytest.importorskip("math_verify")
    with VerifierPool(get("math"), default_workers()) as pool:
        yield pool


def algebra(count: int) -> tuple[list[str], list[str]]:
    """Answers that only SymPy finds equal, and their truths."""
    truths = [f"x^2+{2 * i}x+{i * i}" for i in range(1, count + 1)]
    return [boxed(f"(x+{i})^2") for i in range(1, count + 1)], truths


def test_algebra_in_worker_processes(benchmark, math_pool) -> None:
    texts, truths = algebra(100)
    assert {v.score for v in math_pool.verify(texts, truths)} == {1.0}
    benchmark.pedantic(math_pool.verify, (texts, truths), rounds=3)


def test_a_pools_own_cost(benchmark) -> None:
    case = cases()["countdown, right"]
    with VerifierPool(case.task, default_workers()) as pool:
        assert {v.score for v in pool.verify(case.texts, case.truths)} == {1.0}
        benchmark.pedantic(pool.verify, (case.texts, case.truths), rounds=3)


def rate(call: Callable[[], Any], count: int, clock: Callable[[], float]) -> float:
    """`count` by the median time of a call."""
    times = []
    for _ in range(REPEATS):
        started = clock()
        call()
        times.append(clock() - started)
    return round(count / statistics.median(times), 1)


def measure() -> dict[str, Any]:
    """All rates."""
    a_core = {}
    for name, case in cases().items():
        assert set(case.judge()) == {case.score}
        a_core[name] = rate(case.judge, len(case.texts), time.process_time)
    texts, truths = algebra(200)
    in_workers = {}
    with VerifierPool(get("math"), default_workers()) as pool:
        pool.verify(texts, truths)
        in_workers["math, algebra"] = rate(
            lambda: pool.verify(texts, truths), len(texts), time.perf_counter
        )
        if (DATA / "math_train.parquet").is_file():
            in_workers |= rows_of_math(pool)
    case = cases()["countdown, right"]
    with VerifierPool(case.task, default_workers()) as pool:
        pool.verify(case.texts, case.truths)
        in_workers["countdown, right"] = rate(
            lambda: pool.verify(case.texts, case.truths), len(case.texts), time.perf_counter
        )
    return {
        "verdicts a second of one core": a_core,
        "verdicts a second of the pool": in_workers,
        "milliseconds a problem": {name: generated(*task) for name, task in GENERATED.items()},
    }


# Name and level; the number of problems to make.
GENERATED = {
    "countdown, 3 numbers": ("countdown", 3, 2000),
    "countdown, 6 numbers": ("countdown", 6, 2000),
    "arc_1d, 10 cells": ("arc_1d", 10, 200),
    "arc_1d, 40 cells": ("arc_1d", 40, 200),
    "zebra, 3 houses": ("zebra", 3, 20),
    "zebra, 4 houses": ("zebra", 4, 20),
    "zebra, 5 houses": ("zebra", 5, 20),
    "zebra, 6 houses": ("zebra", 6, 10),
}


def generated(name: str, level: int, count: int) -> float:
    """Milliseconds of one core to make a problem."""
    task = get(name)
    task.generate(level, 1, seed=1, workers=1)
    started = time.process_time()
    rows = task.generate(level, count, seed=0, workers=1)
    assert len({str(row["prompt"]) for row in rows}) == count
    return round(1000 * (time.process_time() - started) / count, 3)


def rows_of_math(pool: VerifierPool) -> dict[str, Any]:
    """Every row of training with the answer of the next."""
    truths = load_dataset_file(DATA / "math_train.parquet")["ground_truth"]
    others = [*truths[1:], truths[0]]
    started = time.perf_counter()
    verdicts = pool.verify([boxed(other) for other in others], truths, progress=True)
    seconds = time.perf_counter() - started
    right = [i for i, verdict in enumerate(verdicts) if verdict.score == 1.0]
    return {
        "math, answers of other rows": round(len(truths) / seconds, 1),
        "math, answers of other rows that are right": len(right),
        "math, of them written differently": [
            [truths[i], others[i]] for i in right if truths[i].strip() != others[i].strip()
        ],
    }


def table(result: dict[str, Any]) -> str:
    """What docs/tasks.md shows, to two digits."""
    core = result["verdicts a second of one core"]
    pool = result["verdicts a second of the pool"]
    lines = ["| answers | verdicts a second |", "|---|---|"]
    lines += [f"| {name} | {_two_digits(value)} a core |" for name, value in core.items()]
    lines += [
        f"| {name} | {_two_digits(value)} in {result['workers']} processes |"
        for name, value in pool.items()
        if isinstance(value, float)
    ]
    return "\n".join(lines)


def _two_digits(value: float) -> str:
    return f"{int(float(f'{value:.1e}')):,}"


def main() -> None:
    from environment import environment

    result = {
        "command": "python benchmarks/bench_tasks.py",
        "environment": environment(),
        "workers": default_workers(),
        **measure(),
    }
    text = json.dumps(result, indent=1) + "\n"
    RESULT.write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
