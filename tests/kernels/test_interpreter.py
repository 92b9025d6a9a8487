"""Runs test_triton_*.py in Triton's interpreter, in a process of its own (see conftest.py)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1" or torch.cuda.is_available(),
    reason="test_triton_*.py run in this process: it has a GPU or is interpreted already",
)
def test_triton_kernels_in_the_interpreter():
    files = sorted(HERE.glob("test_triton_*.py"))
    assert len(files) == 4
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        cwd=HERE.parent.parent,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = done.stdout.strip().splitlines()[-1]
    assert re.search(r"[1-9]\d* passed", summary), summary
    assert "skipped" not in summary, summary
