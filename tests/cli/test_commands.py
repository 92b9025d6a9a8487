"""The other commands, and the errors of the program itself."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch


def test_info_names_versions_and_backends(run) -> None:
    output = run("info").output
    assert torch.__version__ in output
    assert "backend=auto" in output


def test_errors_are_one_message_and_status_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sec_grpo", "report", "nowhere"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_quickstart_trains_both_ways_and_reports(run, events) -> None:
    output = run("quickstart", "--steps", 4, "--output-dir", "out").output
    report = Path("out") / "report"
    for name in ("accuracy.png", "allocation.png", "summary.json"):
        assert (report / name).is_file()
        assert f"out/report/{name}" in output.replace("\n", "")
    summary = json.loads((report / "summary.json").read_text())
    random, sec = summary["runs"]
    assert (random["label"], sec["label"]) == ("random", "sec")
    assert random["before"]["accuracy"] == sec["before"]["accuracy"]
    assert sec["before"]["accuracy"]["2"] > 0.5, "the warm start reaches two letters"
    assert set(sec["after"]["accuracy"]) == {str(n) for n in range(2, 22, 2)}
    first, *_, last = events("out/sec", "step")
    assert last["arms"]["probability"] != first["arms"]["probability"]
    uniform = events("out/random", "step")
    assert uniform[0]["arms"]["probability"] == uniform[-1]["arms"]["probability"]
