"""Everything that needs a GPU: its tests, then the benchmarks, each writing its results at its end.

    make gpu-check                       # all of it
    make gpu-check ARGS="tests heads"    # some

Results go to `benchmarks/results/`; on a machine without a GPU it says so and exits 0. Benchmarks
are not run when a test fails: a wrong kernel's speed is worth nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from environment import environment

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def run(*words: object) -> int:
    return subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=False).returncode


def tests() -> int:
    return run("-m", "pytest", "-m", "gpu", "tests")


def _benchmark(file: str, result: str) -> int:
    target = RESULTS / result
    code = run("-m", "pytest", "-m", "gpu", f"benchmarks/{file}", f"--benchmark-json={target}")
    if code == 0:
        measured = json.loads(target.read_text())
        for benchmark in measured["benchmarks"]:
            benchmark["stats"].pop("data", None)
        measured["environment"] = environment()
        target.write_text(json.dumps(measured, indent=1) + "\n")
    return code


def heads() -> int:
    return _benchmark("bench_heads.py", "heads_gpu.json")


def kernels() -> int:
    return _benchmark("bench_kernels.py", "kernels_gpu.json")


def tuning() -> int:
    return run("benchmarks/tune_linear.py", "--out", RESULTS / "tune_linear_gpu.json")


def trainer() -> int:
    code = run("benchmarks/bench_trainer.py", "--device", "cuda")
    return code or run("benchmarks/bench_trainer.py", "--tables")


STAGES = {stage.__name__: stage for stage in (tests, heads, kernels, tuning, trainer)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", help=f"of {', '.join(STAGES)}; default: all")
    stages = parser.parse_args().stages or list(STAGES)
    if unknown := sorted(set(stages) - set(STAGES)):
        parser.error(f"no such stage: {', '.join(unknown)}; there are {', '.join(STAGES)}")
    if not torch.cuda.is_available():
        print("gpu-check: no CUDA or ROCm device here, so nothing was run")
        return 0
    RESULTS.mkdir(exist_ok=True)
    failed = []
    for name in stages:
        if STAGES[name]():
            failed.append(name)
            if name == "tests":
                break
    if failed:
        print(f"gpu-check: {', '.join(failed)} failed")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
