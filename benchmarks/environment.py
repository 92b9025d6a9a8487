"""What a result was measured with: commit, versions, hardware."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("sec-grpo", "torch", "triton", "transformers", "accelerate", "trl", "numpy")

# What a measurement depends on; its results are written in the middle of one.
CODE = ("--", ":(exclude)benchmarks/results", ":(exclude)docs", ":(exclude)*.md")


def environment() -> dict[str, Any]:
    """Commit (and whether the tree differed from it), versions, processor and GPU."""
    return {
        # A copy of the tree without its history is told what it is a copy of.
        "commit": _git("rev-parse", "HEAD") or os.environ.get("SEC_GRPO_COMMIT"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no", *CODE)),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _git(*words: str) -> str:
    root = Path(__file__).parents[1]
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
