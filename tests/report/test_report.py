import json
import os

import pytest

import sec_grpo.report
from sec_grpo.report import EmptyLogError, MetricsWriter, read_run, report, summary
from sec_grpo.report.atomic import write_atomically


def test_report_of_one_run_lands_in_its_folder(synthetic_run):
    run = synthetic_run(steps=10)
    made = report(run.path.parent)
    folder = run.path.parent / "report"
    assert made.summary_path == folder / "summary.json"
    assert made.page == folder / "report.html"
    plots = [path.name for path in made.plots]
    assert plots == [
        "accuracy.png",
        "allocation.png",
        "training.png",
        "groups.png",
        "success.png",
        "arms.png",
        "time.png",
    ]
    assert sorted(os.listdir(folder)) == sorted([*plots, "report.html", "summary.json"])
    assert made.alarms == {"sec": []}
    assert made.table.row_count > 10
    assert [found.name for found in made.runs] == ["sec"]


def test_summary_json_holds_the_summary_and_the_alarms(synthetic_run, tmp_path):
    stuck = synthetic_run("stuck", steps=60, arms=3, temperature=0.01, speed=0.0, eval_every=0)
    fine = synthetic_run("fine", steps=10, arms=2)
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
    with pytest.raises(ValueError, match=r"out_dir must be a folder\. Got the file .*jsonl"):
        report(run.path, run.path)


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


def test_runs_without_a_step_are_left_out_of_a_comparison(synthetic_run, tmp_path):
    fine = synthetic_run("fine", steps=3, arms=1)
    with MetricsWriter(tmp_path / "begun") as writer:
        writer.write("run", schema=1, arms=["2"], name="begun")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "metrics.jsonl").touch()
    folders = [tmp_path / "begun", fine.path.parent, tmp_path / "nothing"]
    made = report(folders, tmp_path / "out")
    assert [run.name for run in made.runs] == ["fine"]
    assert list(made.skipped) == [str(folders[0]), str(folders[2])]
    assert "holds no step lines" in made.skipped[str(folders[0])]
    with pytest.raises(EmptyLogError, match="holds no step lines"):
        report(folders[0])
    with pytest.raises(ValueError, match=r"holds no step lines.*\n.*is empty"):
        report([folders[0], folders[2]], tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="no metrics log"):
        report([fine.path, tmp_path / "gone"], tmp_path / "out")


def test_a_run_that_has_only_evaluated(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write("run", schema=1, arms=["2"], name="begun", max_steps=9)
        writer.write("eval", step=0, time=1.0, accuracy={"2": 0.5}, num_prompts={"2": 8})
    made = report(tmp_path)
    assert [path.name for path in made.plots] == ["accuracy.png"]
    assert "0 of 9" in made.page.read_text()
