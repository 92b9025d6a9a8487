"""Runs test_triton_grpo_loss.py in Triton's interpreter, in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("liger_kernel", reason="needs liger-kernel")


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="this process is the interpreted one"
)
def test_against_liger_s_kernels_in_the_interpreter() -> None:
    file = Path(__file__).with_name("test_triton_grpo_loss.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)],
        cwd=file.parents[3],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = done.stdout.strip().splitlines()[-1]
    assert re.search(r"[4-9]\d passed", summary), summary
    assert "skipped" not in summary, summary
