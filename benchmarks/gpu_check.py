"""Everything that needs a GPU: its tests, then the benchmarks, part by part.

    make gpu-check                                     # all of it: about half an hour
    make gpu-check ARGS="tests heads"                  # some stages
    make gpu-check ARGS="--missing --minutes 9"        # what has no result yet, for so long at most

Each part is written to `benchmarks/results/` as soon as it is measured, so that what is cut short
can go on later; what time has run out for is left out whole. Benchmarks are run even when a test
has failed, because each checks its own results first; any failure is written beside the results,
named at the end, and makes the exit status 1. At last the tables of the documentation are made
anew. On a machine without a GPU it says so and exits 0.

Nothing is installed: where packages cannot be, `python benchmarks/gpu_check.py` does with those
that are there. Peers and pytest-xdist are optional. Outside a git checkout SEC_GRPO_COMMIT says
which commit is measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import bench_heads
import bench_trainer
import torch
import tune_linear
from results_file import read_parts, write_part

ROOT = Path(__file__).parents[1]
# Where tests marked gpu are; others may import packages that a GPU machine lacks.
GPU_TESTS = ("tests/kernels", "tests/trainer/test_gpu.py")


@dataclass(frozen=True)
class Part:
    stage: str
    name: str
    file: str
    """the result file, which has a part of this name"""
    run: Callable[[float | None], list[str]]
    """within so many seconds, if given: measure, write, and return what failed"""


def pytest_part(stage: str, name: str, file: str, *words: str) -> Part:
    """Tests or benchmarks of one call of pytest."""

    def run(seconds: float | None) -> list[str]:
        with tempfile.TemporaryDirectory() as folder:
            junit, times = Path(folder, "junit.xml"), Path(folder, "times.json")
            command = ["-m", "pytest", *words, f"--junit-xml={junit}"]
            if stage != "tests":
                command.append(f"--benchmark-json={times}")
            code = call(command, seconds)
            outcome = read_junit(junit)
            if times.exists() and times.stat().st_size:
                outcome["benchmarks"] = read_benchmarks(times)
        write_part(file, name, outcome)
        failed = list(outcome["failed"])
        return failed or ([f"pytest exited with {code}"] if code else [])

    return Part(stage, name, file, run)


def script_part(stage: str, name: str, file: str, *words: str) -> Part:
    """A script of this folder, which writes its part itself."""

    def run(seconds: float | None) -> list[str]:
        code = call([f"benchmarks/{words[0]}", *words[1:]], seconds)
        return [f"{' '.join(words)} exited with {code}"] if code else []

    return Part(stage, name, file, run)


def call(words: list[str], seconds: float | None) -> int:
    """Run Python; raises subprocess.TimeoutExpired."""
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, check=False, timeout=seconds
    ).returncode


def read_junit(path: Path) -> dict[str, Any]:
    """Counts, and the failed tests with the first line of their message."""
    suites = ElementTree.parse(path).getroot()
    counts = {key: sum(int(s.get(key, 0)) for s in suites) for key in ("tests", "skipped")}
    failed = {}
    for case in suites.iter("testcase"):
        for problem in (*case.findall("failure"), *case.findall("error")):
            message = (problem.get("message") or "").splitlines()
            failed[f"{case.get('classname')}.{case.get('name')}"] = message[0] if message else ""
    return {**counts, "failed": failed}


def read_benchmarks(path: Path) -> list[dict[str, Any]]:
    """What the tables need of pytest-benchmark's record, in milliseconds."""
    return [
        {
            "test": entry["name"],
            **entry["extra_info"],
            **{f"{key}_ms": 1e3 * entry["stats"][key] for key in ("median", "min", "max")},
            "rounds": entry["stats"]["rounds"],
        }
        for entry in json.loads(path.read_text())["benchmarks"]
    ]


def all_parts() -> list[Part]:
    # Hundreds of kernels are compiled there, each by one processor.
    workers = ("-n", "8") if find_spec("xdist") else ()
    triton = [str(p.relative_to(ROOT)) for p in sorted(ROOT.glob("tests/kernels/test_triton_*"))]
    others = (*GPU_TESTS, "--ignore-glob=*/test_triton_*")
    return [
        pytest_part("tests", "triton", "tests_gpu.json", "-m", "gpu", *workers, *triton),
        pytest_part("tests", "others", "tests_gpu.json", "-m", "gpu", *others),
        *(
            pytest_part(
                "heads", shape.name, "heads_gpu.json", "benchmarks/bench_heads.py", "-k", shape.name
            )
            for shape in bench_heads.GPU_SHAPES
        ),
        pytest_part(
            "kernels", "all", "kernels_gpu.json", "-m", "gpu", "benchmarks/bench_kernels.py"
        ),
        *(
            script_part(
                "tuning",
                tune_linear.part_name(*shape),
                tune_linear.RESULT,
                "tune_linear.py",
                "--shape",
                *map(str, shape),
            )
            for shape in tune_linear.SHAPES
        ),
        *(
            script_part(
                "trainer",
                part,
                bench_trainer.RESULTS["cuda"],
                "bench_trainer.py",
                *("--device", "cuda", "--rounds", "2", "--part", part),
            )
            for part in bench_trainer.parts("cuda")
        ),
    ]


def is_measured(part: Part) -> bool:
    found = read_parts(part.file).get(part.name)
    return found is not None and not found.get("failed")


def run_parts(parts: list[Part], deadline: float | None) -> list[str]:
    """Run them in turn until the deadline of the monotonic clock; returns what went wrong."""
    problems = []
    for part in parts:
        label = f"{part.stage}: {part.name}"
        seconds = None if deadline is None else deadline - time.monotonic()
        if seconds is not None and seconds <= 0:
            problems.append(f"{label}: no time left")
            continue
        print(f"gpu-check: {label}", flush=True)
        try:
            problems += [f"{label}: {problem}" for problem in part.run(seconds)]
        except subprocess.TimeoutExpired:
            problems.append(f"{label}: no time left")
    return problems


def main() -> int:
    parts = all_parts()
    stages = list(dict.fromkeys(part.stage for part in parts))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", help=f"of {', '.join(stages)}; default: all")
    parser.add_argument("--missing", action="store_true", help="only what has no result yet")
    parser.add_argument("--minutes", type=float, help="stop after so many")
    arguments = parser.parse_args()
    chosen = arguments.stages or stages
    if unknown := sorted(set(chosen) - set(stages)):
        parser.error(f"no such stage: {', '.join(unknown)}; there are {', '.join(stages)}")
    if not torch.cuda.is_available():
        print("gpu-check: no CUDA or ROCm device here, so nothing was run")
        return 0
    deadline = None if arguments.minutes is None else time.monotonic() + 60 * arguments.minutes
    todo = [part for stage in chosen for part in parts if part.stage == stage]
    if arguments.missing:
        todo = [part for part in todo if not is_measured(part)]
    problems = run_parts(todo, deadline)
    if call(["benchmarks/tables.py"], None):
        problems.append("tables.py failed: the documentation has the figures from before")
    for problem in problems:
        print(f"gpu-check: {problem}")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
