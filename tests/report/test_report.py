import json
import os

import pytest

import sec_grpo.report
from sec_grpo.report import read_run, report, summary
from sec_grpo.report.atomic import write_atomically


def test_report_of_one_run_lands_in_its_folder(synthetic_run):
    run = synthetic_run(steps=10)
    made = report(run.path.parent)
    folder = run.path.parent / "report"
    assert made.summary_path == folder / "summary.json"
    assert sorted(os.listdir(folder)) == sorted([*(p.name for p in made.plots), "summary.json"])
    assert [path.name for path in made.plots] == [
        "accuracy.png",
        "allocation.png",
        "training.png",
        "values.png",
    ]
    assert made.alarms == {"sec": []}
    assert made.table.row_count > 10
    assert [found.name for found in made.runs] == ["sec"]


def test_summary_json_holds_the_summary_and_the_alarms(synthetic_run, tmp_path):
    stuck = synthetic_run("stuck", steps=60, arms=4, temperature=0.01, speed=0.0, eval_every=0)
    fine = synthetic_run("fine", steps=10)
    made = report([stuck.path, fine.path.parent], tmp_path / "out")
    on_disk = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert on_disk == made.summary
    assert [row["label"] for row in on_disk["runs"]] == ["stuck", "fine"]
    assert on_disk["runs"][0]["alarms"] == made.alarms["stuck"] != []
    without = [{k: v for k, v in row.items() if k != "alarms"} for row in on_disk["runs"]]
    expected = summary([read_run(stuck.path), read_run(fine.path)])
    assert without == json.loads(json.dumps(expected["runs"]))


def test_several_runs_need_a_folder(synthetic_run):
    run = synthetic_run(steps=2)
    with pytest.raises(ValueError, match="out_dir must be given for a report on 2 runs"):
        report([run.path, run.path])
    with pytest.raises(ValueError, match="at least one run"):
        report([])


def test_write_atomically_keeps_the_old_file_when_it_fails(tmp_path, monkeypatch):
    target = tmp_path / "deep" / "file"
    write_atomically(target, b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(target, b"new")
    assert target.read_bytes() == b"old"
    assert os.listdir(target.parent) == ["file"]


def test_every_exported_name_exists():
    for name in sec_grpo.report.__all__:
        assert getattr(sec_grpo.report, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sec_grpo.report.nothing
