"""Fixtures of the command line's tests."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from sec_grpo.cli import app


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test runs in an empty folder, on one thread: the models are tiny."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


@pytest.fixture
def run() -> Callable[..., Result]:
    """Run `sec-grpo` in this process; exceptions come through."""

    def call(*words: object) -> Result:
        os.environ.setdefault("COLUMNS", "100")
        return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)

    return call


@pytest.fixture
def events() -> Callable[..., list[dict[str, Any]]]:
    """The events of one kind in a run's log."""

    def read(folder: str | Path, kind: str) -> list[dict[str, Any]]:
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    return read
