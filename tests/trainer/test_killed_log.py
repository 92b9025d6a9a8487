"""Killed at any moment and resumed, a run's log and completions are those of an unbroken run."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from sec_grpo.report import read_run, report

WORKER = Path(__file__).with_name("killed_log_worker.py")
KILLS = int(os.environ.get("SEC_GRPO_KILLS", "4"))

pytestmark = pytest.mark.slow


def run(folder: Path, seconds: float | None) -> bool:
    """Let the worker go on, for some seconds of training; whether it came to the end."""
    process = subprocess.Popen(
        [sys.executable, str(WORKER), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
        if seconds is not None:
            time.sleep(seconds)
            process.kill()
        _, errors = process.communicate(timeout=200)
    finally:
        process.kill()
    assert process.returncode in (0, -9), errors
    return process.returncode == 0


def completions(folder: Path) -> dict[str, list]:
    return {
        path.name: pyarrow.parquet.read_table(path).to_pylist()
        for path in sorted((folder / "completions").iterdir())
    }


def test_log_and_completions_after_kills(tmp_path):
    started = time.perf_counter()
    assert run(tmp_path / "straight", None)
    whole = time.perf_counter() - started
    moments = random.Random(0)
    killed = tmp_path / "killed"
    for _ in range(KILLS):
        if run(killed, moments.uniform(0, 0.4 * whole)):
            break
        if any(killed.glob("checkpoint-*")):
            report(killed)  # readable at every moment
    run(killed, None)
    expected, found = read_run(tmp_path / "straight"), read_run(killed)
    assert found.damaged == ()
    # A checkpoint is logged at once, so steps of saves are among those of both.
    assert found.steps.tolist() == expected.steps.tolist()
    for name, values in expected.scalars.items():
        if name.startswith("time/") or name == "step_time":
            continue
        np.testing.assert_array_equal(found.scalar(name), values, err_msg=name)
    for column in ("probability", "draws", "rollouts", "successes", "abs_advantage_with_std"):
        np.testing.assert_array_equal(getattr(found, column), getattr(expected, column))
    assert all(np.diff(found.time) > 0)
    assert completions(killed) == completions(tmp_path / "straight")
