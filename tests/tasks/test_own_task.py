"""The task of ten lines in docs/tasks.md: in Python, trained on and evaluated by its file."""

import json
import re
from pathlib import Path

import bench_tasks
import pytest
from typer.testing import CliRunner

from sec_grpo import tasks
from sec_grpo.cli import app

PAGE = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SMALL = {
    "train": "--per_device_train_batch_size 4 --num_generations 2",
    "eval": "--limit 2",
}


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    (source,) = [block for block in BLOCKS if block.startswith("# reverse_task.py")]
    (tmp_path / "reverse_task.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tasks, "_registry", dict(tasks._registry))
    monkeypatch.setattr(tasks, "_instances", {})


def test_in_python(in_folder):
    task = tasks.get("reverse_task.py:Reverse")
    rows = task.dataset(5, seed=0)
    assert rows["difficulty"] == [2] * 5 + [4] * 5 + [6] * 5
    columns = {"ground_truth": [rows[7]["ground_truth"]] * 3}
    word = rows[7]["prompt"].removeprefix("Reverse ").removesuffix(": ")
    assert task.reward(None, [word[::-1], "abcdefgh", word[0] * 4], **columns) == [1.0, 0.0, 0.1]


def test_on_the_command_line(in_folder):
    joined = PAGE.replace("\\\n", "")
    commands = re.findall(r"^sec-grpo ((train|eval) .*reverse_task\.py.*)$", joined, re.MULTILINE)
    assert [kind for _, kind in commands] == ["train", "eval"]
    for command, kind in commands:
        words = [*command.split(), *SMALL[kind].split()]
        done = CliRunner().invoke(app, words, catch_exceptions=False)
        assert done.exit_code == 0, done.output
    assert "8 (held out)" in done.output


def test_the_rates_are_the_measured_ones():
    result = json.loads(bench_tasks.RESULT.read_text())
    assert bench_tasks.table(result) in PAGE
    # What the project promises of one core.
    assert result["verdicts a second of one core"]["countdown, right"] > 50_000
    milliseconds = result["milliseconds a problem"]
    shown = [f"{milliseconds[f'zebra, {n} houses'] / 1000:.1g}" for n in (3, 4, 5, 6)]
    assert f"`zebra` needs {', '.join(shown[:3])} and {shown[3]} seconds a problem" in PAGE


def test_what_comments_promise_is_printed(capsys):
    first = BLOCKS[0]
    exec(compile(first, "tasks.md", "exec"), {})
    printed = capsys.readouterr().out
    promised = re.findall(r"print\(.*\)  # (.+)", first)
    assert promised
    for text in promised:
        assert text in printed
