"""`sec-grpo simulate`: files, tables and refusals."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sec_grpo.cli import app
from sec_grpo.cli.simulate import methods_of, scenarios_of
from sec_grpo.simulation import default_methods

module = sys.modules["sec_grpo.cli.simulate"]  # the package has the function under its name

SMALL = ["--seeds", "2", "--steps", "4", "--batch_size", "8", "--processes", "1"]


def test_it_writes_plots_and_numbers(tmp_path: Path) -> None:
    arguments = ["--strategies", "sec,dump", "--scenario", "base,noise", *SMALL]
    result = CliRunner().invoke(app, ["simulate", *arguments, "--output_dir", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "best static weights" in result.output
    assert "not what a language model will gain" in " ".join(result.output.split())
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "accuracy.png",
        "allocation_base.png",
        "allocation_noise.png",
        "mean_level.png",
        "summary.json",
    }
    for path in tmp_path.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["protocol"]["steps"] == 4
    assert [one["scenario"] for one in summary["scenarios"]] == ["base", "noise"]
    # Random is always there, since the others are compared with it.
    assert list(summary["scenarios"][0]["methods"]) == ["random", "sec", "dump"]


def test_every_default_can_be_chosen_by_the_name_in_the_table() -> None:
    names = [method.name for method in default_methods()]
    assert [method.name for method in methods_of(",".join(names))] == names


def test_a_folder_that_cannot_be_made_is_said_before_the_runs(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "_run", lambda *_: pytest.fail("it ran first"))
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(app, ["simulate", "--output_dir", str(tmp_path / "file" / "out")])
    assert isinstance(result.exception, NotADirectoryError)


def test_own_strategies_by_path() -> None:
    methods = methods_of("random,sec_grpo.curriculum.dump:DUMP")
    assert [method.name for method in methods] == ["random", "DUMP"]
    methods[1].make(10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: methods_of("sac"), "--strategies must be of adarft, .*; got 'sac'"),
        (lambda: scenarios_of("easy"), "--scenario must be of base, strong, .*; got 'easy'"),
    ],
)
def test_unknown_names(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
