"""`gpu_check.py` keeps each part that was measured, whatever fails or is cut short after it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import gpu_check
import pytest
import results_file
import torch


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(results_file, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture
def suite(tmp_path):
    """A file of tests and a benchmark, as a part runs them."""
    path = tmp_path / "test_suite.py"
    path.write_text(
        "import time, pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2\n"
        "def test_slow(): time.sleep(60)\n"
        "@pytest.mark.skip\n"
        "def test_skipped(): pass\n"
        "def test_timed(benchmark):\n"
        "    benchmark.extra_info['name'] = 'nap'\n"
        "    benchmark.pedantic(lambda: time.sleep(0.01), rounds=2)\n"
    )
    return str(path)


def part(stage, name, suite, chosen):
    return gpu_check.pytest_part(
        stage, name, "found.json", suite, "-k", chosen, "-p", "no:cacheprovider"
    )


def test_results_of_a_part(suite):
    problems = gpu_check.run_parts([part("kernels", "all", suite, "good or timed")], None)
    assert problems == []
    found = results_file.read_parts("found.json")["all"]
    assert (found["tests"], found["skipped"], found["failed"]) == (2, 0, {})
    (timed,) = found["benchmarks"]
    assert timed["name"] == "nap"
    assert timed["rounds"] == 2
    assert 10 <= timed["min_ms"] <= timed["median_ms"] <= timed["max_ms"] < 1000
    assert found["environment"]["packages"]["torch"] == version("torch")


def test_what_passed_is_kept_beside_what_failed(suite):
    parts = [
        part("kernels", "both", suite, "bad or timed or skipped"),
        part("tests", "good", suite, "good"),
    ]
    (problem,) = gpu_check.run_parts(parts, None)
    assert problem.startswith("kernels: both: ")
    assert problem.endswith("test_suite.test_bad")
    found = results_file.read_parts("found.json")
    ((name, message),) = found["both"]["failed"].items()
    assert name.endswith("test_suite.test_bad")
    assert "assert 1 == 2" in message
    assert [entry["name"] for entry in found["both"]["benchmarks"]] == ["nap"]
    assert found["both"]["skipped"] == 1
    assert found["good"]["failed"] == {}
    assert gpu_check.is_measured(parts[1])
    assert not gpu_check.is_measured(parts[0])


def test_a_part_that_runs_nothing_is_a_failure(suite):
    (problem,) = gpu_check.run_parts([part("tests", "none", suite, "no_such_test")], None)
    assert problem == "tests: none: pytest exited with 5"


def test_time_that_runs_out_loses_one_part(suite):
    parts = [
        part("tests", name, suite, chosen)
        for name, chosen in (("first", "good"), ("second", "slow"), ("third", "good"))
    ]
    before = results_file.read_parts("found.json")
    assert before == {}
    assert gpu_check.run_parts(parts[:1], None) == []
    problems = gpu_check.run_parts(parts[1:], time.monotonic() + 5)
    assert problems == ["tests: second: no time left", "tests: third: no time left"]
    assert list(results_file.read_parts("found.json")) == ["first"]


def test_a_script_that_fails_is_named():
    script = gpu_check.script_part("tuning", "x", "found.json", "tune_linear.py", "--no-such-flag")
    assert gpu_check.run_parts([script], None) == [
        "tuning: x: tune_linear.py --no-such-flag exited with 2"
    ]


def test_every_part_has_a_place_of_its_own():
    parts = gpu_check.all_parts()
    assert len({(p.file, p.name) for p in parts}) == len(parts)
    assert [p.stage for p in parts[:2]] == ["tests", "tests"]


def test_every_gpu_test_is_where_it_is_looked_for():
    words = ["-m", "pytest", "-m", "gpu", "--collect-only", "-q", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(
        [sys.executable, *words], cwd=gpu_check.ROOT, capture_output=True, text=True
    )
    files = {line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line}
    assert "tests/trainer/test_gpu.py" in files, done.stdout
    allowed = [Path(path) for path in gpu_check.GPU_TESTS]
    assert [f for f in files if not any(Path(f).is_relative_to(path) for path in allowed)] == []


def test_parts_are_replaced_and_written_whole(results):
    results_file.write_part("a.json", "x", {"value": 1})
    results_file.write_part("a.json", "y", {"value": 2})
    results_file.write_part("a.json", "x", {"value": 3})
    parts = json.loads((results / "a.json").read_text())["parts"]
    assert {name: found["value"] for name, found in parts.items()} == {"x": 3, "y": 2}
    assert [path.name for path in results.iterdir()] == ["a.json"]


def test_commit_of_a_tree_without_history(monkeypatch):
    import environment

    monkeypatch.setattr(environment, "_git", lambda *words: "")
    monkeypatch.setenv("SEC_GRPO_COMMIT", "abc")
    assert environment.environment()["commit"] == "abc"


@pytest.mark.skipif(torch.cuda.is_available(), reason="says so where there is no GPU")
def test_without_a_gpu_nothing_is_run(results):
    for words, code in (((), 0), (("heads", "--minutes", "1"), 0), (("no-such-stage",), 2)):
        done = subprocess.run(
            [sys.executable, gpu_check.__file__, *words], capture_output=True, text=True
        )
        assert done.returncode == code
        expected = "no such stage: no-such-stage" if code else "so nothing was run"
        assert expected in done.stdout + done.stderr
    assert not results.exists()
