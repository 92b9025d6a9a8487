"""Problems made apart: here or in processes the same, kept on disk, never those excluded."""

import logging
import os
import sys
import threading
import time

import datasets
import pytest

from sec_grpo import tasks
from sec_grpo.tasks import NumberedTask, Verdict, numbered

SQUARES = """
import os, random, time
from sec_grpo.tasks import NumberedTask, Verdict

class Squares(NumberedTask):
    name = "squares"
    levels = (1, 2, 3)

    def __init__(self, seconds=0.0):
        self.seconds = seconds

    def version(self):
        return "1"

    def make(self, level, seed, number):
        time.sleep(self.seconds)
        if level == 3 or number % 5 == 4:
            return None
        if level == 2 and number == 20:
            raise ArithmeticError("no root")
        x = random.Random(f"{level}/{seed}/{number}").randrange(40)
        return {"prompt": self.prompt(x), "ground_truth": str(x * x)}

    def prompt(self, problem):
        return f"{problem} squared?"

    def verify(self, text, truth):
        return Verdict(float(text == truth), "compared", text.isdigit())

class Pids(Squares):
    def make(self, level, seed, number):
        time.sleep(0.02)
        return {"prompt": f"{number}", "ground_truth": f"{os.getpid()} {hash('a')}"}

class Fixed(Pids):
    needs_fixed_hashes = True
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modules")
    (folder / "squares_task.py").write_text(SQUARES)
    sys.path.insert(0, str(folder))
    yield "squares_task"
    sys.path.remove(str(folder))


def test_processes_make_the_same_rows(module):
    task = tasks.get(f"{module}:Squares")
    rows = task.generate(1, 30, seed=4, workers=1)
    assert len({row["prompt"] for row in rows}) == 30
    assert task.generate(1, 30, seed=4, workers=2) == rows
    assert task.generate(1, 30, seed=4) == rows
    assert task.generate(1, 7, seed=4, workers=2) == rows[:7]
    assert task.generate(1, 30, seed=5) != rows
    # 40 problems: after them they repeat.
    assert len({row["prompt"] for row in task.generate(1, 41, seed=4)}) == 40


def test_processes_share_the_work_and_end(module):
    rows = tasks.get(f"{module}:Pids").generate(1, 40, seed=0, workers=2)
    pids = {int(row["ground_truth"].split()[0]) for row in rows}
    assert os.getpid() not in pids
    assert len(pids) == 2
    deadline = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{pid}") for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)
    assert not [t for t in threading.enumerate() if t.name.startswith("problems")]


def test_a_task_that_needs_it_is_made_where_hashes_are_fixed(module):
    for _ in range(2):
        rows = tasks.get(f"{module}:Fixed").generate(1, 3, seed=0)
        assert {row["ground_truth"].split()[1] for row in rows} == {str(_hash_with_seed_0())}


def _hash_with_seed_0() -> int:
    import subprocess

    code = [sys.executable, "-c", "print(hash('a'))"]
    env = {**os.environ, "PYTHONHASHSEED": "0"}
    return int(subprocess.run(code, env=env, capture_output=True, check=True).stdout)


def test_long_work_goes_to_processes_by_itself(module, monkeypatch):
    monkeypatch.setattr(numbered, "_SECONDS_ALONE", 0.1)
    monkeypatch.setattr(numbered, "_SECONDS_WORTH_PROCESSES", 0.5)
    monkeypatch.setattr(numbered, "processors", lambda: 2)
    task = tasks.get(f"{module}:Pids")
    here = [row["ground_truth"].startswith(f"{os.getpid()} ") for row in task.generate(1, 60, 0)]
    assert 1 < here.index(False) < 20
    assert not any(here[here.index(False) :])
    assert all(row["ground_truth"].startswith(f"{os.getpid()} ") for row in task.generate(1, 9, 0))


def test_errors_are_named(module):
    task = tasks.get(f"{module}:Squares")
    with pytest.raises(ValueError, match="task 'squares' makes no problems of level 3"):
        task.generate(3, 1, seed=0)
    with pytest.raises(ValueError, match="of level 2: ArithmeticError: no root"):
        task.generate(2, 30, seed=0, workers=2)
    with pytest.raises(ValueError, match="workers must be an integer of at least 1. Got 0"):
        task.generate(1, 1, seed=0, workers=0)


def test_excluded_problems_do_not_come(module):
    task = tasks.get(f"{module}:Squares")
    some = task.generate(1, 30, seed=1)
    others = task.generate(1, 10, seed=2, exclude=some)
    assert not {row["prompt"] for row in others} & {row["prompt"] for row in some}
    with pytest.raises(
        ValueError, match="exclude holds every problem of level 1 of task 'squares'"
    ):
        task.generate(1, 1, seed=2, exclude=task.generate(1, 40, seed=1))
    sort = tasks.get("sort")
    everything = sort.dataset(26, seed=0, levels=[1])
    with pytest.raises(ValueError, match="exclude holds every problem"):
        sort.generate(1, 1, seed=1, exclude=everything)
    # Those of other levels do not count.
    assert sort.generate(2, 1, seed=1, exclude=everything)
    rows = sort.dataset(200, seed=1, levels=[2], exclude=sort.dataset(400, seed=0, levels=[2]))
    assert len(set(rows["prompt"])) == 200


@pytest.fixture
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    return tmp_path / "sec_grpo"


def test_rows_are_kept_on_disk(module, cache_folder, monkeypatch, caplog):
    task = tasks.get(f"{module}:Squares")
    rows = task.dataset(5, seed=0, levels=[1, 2], cache=True)
    files = sorted(cache_folder.glob("*.parquet"))
    assert len(files) == 2
    assert rows.to_list() == task.dataset(5, seed=0, levels=[1, 2]).to_list()
    made = []
    monkeypatch.setattr(type(task), "make", lambda *arguments: made.append(arguments))
    assert task.dataset(5, seed=0, levels=[2, 1], cache=True)["difficulty"] == [2] * 5 + [1] * 5
    assert not made
    monkeypatch.undo()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache_folder.parent))
    # Another seed, number or version is another file; a damaged file is made anew.
    assert task.dataset(5, seed=1, levels=[1], cache=True)["prompt"] != rows["prompt"][:5]
    assert len(task.dataset(6, seed=0, levels=[1], cache=True)) == 6
    monkeypatch.setattr(type(task), "version", lambda self: "2")
    task.dataset(5, seed=0, levels=[1], cache=True)
    assert len(list(cache_folder.glob("*.parquet"))) == 5
    monkeypatch.undo()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache_folder.parent))
    files[0].write_bytes(files[0].read_bytes()[:50])
    with caplog.at_level(logging.WARNING):
        assert task.dataset(5, seed=0, levels=[1, 2], cache=True).to_list() == rows.to_list()
    assert "is damaged and made anew" in caplog.text
    # A task without a version is not kept.
    tasks.get("sort").dataset(2, seed=0, cache=True)
    assert len(list(cache_folder.glob("*.parquet"))) == 5


def test_a_folder_that_cannot_be_written_is_no_error(module, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        rows = tasks.get(f"{module}:Squares").dataset(3, seed=0, levels=[1], cache=True)
    assert len(rows) == 3
    assert "generated rows are not kept" in caplog.text


def test_threads_that_ask_for_the_same_rows_make_them_once(module, cache_folder):
    task = tasks.get(f"{module}:Squares", seconds=0.02)
    calls = []
    original = task.generate
    task.generate = lambda *arguments, **options: calls.append(1) or original(*arguments, **options)
    threads = [
        threading.Thread(target=task.dataset, args=(4, 0, [1]), kwargs={"cache": True})
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


def test_a_task_of_the_main_module_stays_here():
    class Local(NumberedTask):
        name = "local"
        levels = (1,)

        def make(self, level, seed, number):
            return {"prompt": str(number), "ground_truth": "1"}

        def prompt(self, problem):
            return problem

        def verify(self, text, truth):
            return Verdict(0.0, "", False)

    assert not Local()._movable()
    Local.__module__ = "__main__"
    assert not Local()._movable()
