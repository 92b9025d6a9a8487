"""Everything that needs a GPU, in one call: its tests, then the kernel benchmarks.

    make gpu-check

Results go to `benchmarks/results/`; on a machine without a GPU it says so and exits 0. Benchmarks
are not run when a test fails: a wrong kernel's speed is worth nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from environment import environment

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def main() -> int:
    if not torch.cuda.is_available():
        print("gpu-check: no CUDA or ROCm device here, so nothing was run")
        return 0
    RESULTS.mkdir(exist_ok=True)
    pytest = [sys.executable, "-m", "pytest", "-m", "gpu"]
    tests = subprocess.run([*pytest, "tests"], cwd=ROOT, check=False)
    if tests.returncode:
        print("gpu-check: GPU tests failed; no benchmark was run")
        return tests.returncode
    target = RESULTS / "kernels.json"
    benchmarks = subprocess.run(
        [*pytest, "benchmarks", f"--benchmark-json={target}"], cwd=ROOT, check=False
    )
    if benchmarks.returncode == 0:
        measured = json.loads(target.read_text())
        measured["environment"] = environment()
        target.write_text(json.dumps(measured, indent=1) + "\n")
    return benchmarks.returncode


if __name__ == "__main__":
    sys.exit(main())
