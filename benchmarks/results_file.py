"""Result files of parts that are measured one by one, so that an interruption loses one at most.

{"parts": {name: {"environment": {...}, ...what was measured}}}
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from environment import environment

RESULTS = Path(__file__).parent / "results"


def read_parts(file: str | Path) -> dict[str, dict[str, Any]]:
    """name -> what was measured; empty where nothing was. A relative path is one in results/."""
    path = RESULTS / file
    return json.loads(path.read_text())["parts"] if path.exists() else {}


def write_part(file: str | Path, name: str, measured: dict[str, Any]) -> None:
    """Add a part, or replace it, together with what it was measured with."""
    path = RESULTS / file
    path.parent.mkdir(exist_ok=True)
    parts = {**read_parts(path), name: {"environment": environment(), **measured}}
    half = path.with_suffix(".tmp")
    half.write_text(json.dumps({"parts": parts}, indent=1) + "\n")
    os.replace(half, path)
