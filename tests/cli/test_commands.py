"""The other commands, and the errors of the program itself."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from sec_grpo.report import MetricsWriter


def test_info_names_versions_and_backends(run) -> None:
    output = run("info").output
    assert torch.__version__ in output
    assert "backend=auto" in output
    for package in ("transformers", "math-verify", "tensorboard"):
        assert f"{package} " in output


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


COMMANDS = ("quickstart", "train", "eval", "report", "simulate", "info")


def call(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own, as a user starts it."""
    return subprocess.run(
        [sys.executable, "-m", "sec_grpo", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


def test_the_installed_command_is_the_module() -> None:
    command = shutil.which("sec-grpo", path=Path(sys.executable).parent)
    assert command is not None
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == call("--version").stdout == f"sec-grpo {version('sec-grpo')}\n"


def test_help_names_every_command_and_each_has_help(run) -> None:
    output = run("--help").output
    for name in COMMANDS:
        assert f" {name} " in output
        command = run(name, "--help")
        assert command.exit_code == 0
        assert "Usage: " in command.output
    assert run().exit_code == 2
    assert run("nonsense").exit_code == 2


def test_help_and_version_wait_for_no_library() -> None:
    code = (
        "import sys; sys.argv = ['sec-grpo', '--help']\n"
        "from sec_grpo.cli import app\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'matplotlib', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_of_the_shell(shell: str) -> None:
    environment = {**os.environ, "_SEC_GRPO_COMPLETE": f"source_{shell}"}
    code = "from sec_grpo.cli import app; app(prog_name='sec-grpo')"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert "_SEC_GRPO_COMPLETE=complete_" in done.stdout
    words = {**os.environ, "_SEC_GRPO_COMPLETE": f"complete_{shell}"}
    words |= {"COMP_WORDS": "sec-grpo re", "COMP_CWORD": "1", "_TYPER_COMPLETE_ARGS": "sec-grpo re"}
    words["_TYPER_COMPLETE_FISH_ACTION"] = "get-args"
    done = subprocess.run(
        [sys.executable, "-c", code], env=words, capture_output=True, text=True, check=False
    )
    assert "report" in done.stdout
    assert "train" not in done.stdout


def make_log(folder: Path) -> None:
    with MetricsWriter(folder) as writer:
        writer.write("run", schema=1, arms=["a", "b"], name=folder.name, max_steps=9)
        for step in (1, 2):
            arms = {"probability": [0.25, 0.75], "draws": [step, 3 * step]}
            writer.write("step", step=step, time=1.0, reward=0.5, arms=arms)


def test_report_writes_page_plots_and_summary(run) -> None:
    make_log(Path("one"))
    output = run("report", "one").output
    for name in ("report.html", "allocation.png", "training.png", "summary.json"):
        assert (Path("one") / "report" / name).is_file()
        assert f"one/report/{name}" in output.replace("\n", "")
    assert "2 of 9" in output
    make_log(Path("two"))
    Path("empty").mkdir()
    (Path("empty") / "metrics.jsonl").touch()
    output = run("report", "one", "two", "empty", "--out", "both").output
    assert "left out: " in output
    assert "empty/metrics.jsonl is empty" in output.replace("\n", "")
    rows = json.loads(Path("both/summary.json").read_text())["runs"]
    assert [row["label"] for row in rows] == ["one", "two"]


def test_report_sees_a_running_job_whose_last_line_is_cut(run) -> None:
    make_log(Path("one"))
    log = Path("one/metrics.jsonl")
    log.write_bytes(log.read_bytes()[:-30])
    run("report", "one")
    (row,) = json.loads(Path("one/report/summary.json").read_text())["runs"]
    assert (row["steps"], row["alarms"]) == (1, [])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["report", "nowhere"], "no metrics log at nowhere"),
        (["report", "one", "--out", "one/metrics.jsonl"], "out_dir must be a folder"),
        (["report", "empty"], "empty/metrics.jsonl is empty"),
    ],
)
def test_errors_of_a_report_are_one_message(tmp_path: Path, words: list[str], message: str) -> None:
    make_log(tmp_path / "one")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "metrics.jsonl").touch()
    done = call(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    shown = call(*words, cwd=tmp_path, env={**os.environ, "SEC_GRPO_TRACEBACK": "1"})
    assert shown.returncode == 1
    assert "Traceback" in shown.stderr


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m sec_grpo info | head -1; echo ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert done.stdout.startswith("python ")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_quickstart_trains_both_ways_and_reports(run, events) -> None:
    output = run("quickstart", "--steps", 4, "--output-dir", "out").output
    report = Path("out") / "report"
    for name in ("report.html", "accuracy.png", "allocation.png", "summary.json"):
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
