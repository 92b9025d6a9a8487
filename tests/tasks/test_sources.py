"""Rows from the words of a command line or a YAML file."""

from pathlib import Path

import datasets
import pytest

from sec_grpo import tasks
from sec_grpo.rewards import rewards_for
from sec_grpo.tasks import load_rows
from sec_grpo.tasks.sources import tasks_of


@pytest.fixture
def few(monkeypatch):
    """A registered task that makes few rows unless it is told otherwise."""
    monkeypatch.setattr(tasks, "_registry", dict(tasks._registry))
    monkeypatch.setattr(tasks, "_instances", {})
    task = type(tasks.get("sort"))
    monkeypatch.setattr(task, "prompts_per_level", 3)
    monkeypatch.setattr(task, "eval_prompts_per_level", 2)
    return task


def test_a_task_by_name(few):
    rows = load_rows("sort", seed=4)
    assert rows.to_list() == tasks.get("sort").dataset(3, seed=4).to_list()
    held_out = load_rows("sort", seed=4, evaluation=True)
    assert sorted(set(held_out["difficulty"])) == [*few.levels, *few.held_out_levels]
    assert len(held_out) == 2 * 10
    assert not set(held_out["prompt"]) & set(rows["prompt"])


def test_evaluation_has_no_problem_of_training(few, monkeypatch):
    monkeypatch.setattr(few, "prompts_per_level", 630)
    monkeypatch.setattr(few, "eval_prompts_per_level", 20)
    # 650 problems of 2 letters: all that training leaves.
    rows = load_rows({"name": "sort", "levels": [2, 4]}, seed=4)
    others = load_rows({"name": "sort", "levels": [2, 4]}, seed=4, evaluation=True)
    assert len(set(others["prompt"])) == 40
    assert not set(others["prompt"]) & set(rows["prompt"])
    # Too few for both: they share some.
    monkeypatch.setattr(few, "prompts_per_level", 650)
    assert len(load_rows({"name": "sort", "levels": [2]}, seed=4, evaluation=True)) == 20


@pytest.mark.parametrize(
    "source",
    [
        {"name": "sort", "n_per_level": 5, "levels": [4, 18]},
        "{name: sort, n_per_level: 5, levels: [4, 18]}",
        "[{name: sort, n_per_level: 5, levels: [4]}, {name: sort, n_per_level: 5, levels: [18]}]",
    ],
)
def test_a_task_with_arguments(source):
    rows = load_rows(source, seed=1)
    expected = tasks.get("sort").dataset(5, seed=1, levels=[4, 18])
    assert rows["prompt"] == expected["prompt"]
    assert rows["difficulty"] == [4] * 5 + [18] * 5


def test_files_and_several(tmp_path, monkeypatch, few):
    monkeypatch.chdir(tmp_path)
    line = '{"prompt": "ba>", "ground_truth": "ab", "difficulty": 2, "task": "sort"}\n'
    (tmp_path / "rows.jsonl").write_text(line)
    assert load_rows("rows.jsonl")["prompt"] == ["ba>"]
    both = load_rows("rows.jsonl, sort")
    assert both["prompt"] == ["ba>", *load_rows("sort")["prompt"]]
    assert tasks_of(both) == ["sort"]
    # An existing path wins: a file named like a task, or like a list.
    (tmp_path / "a,b.jsonl").write_text(line)
    assert len(load_rows("a,b.jsonl")) == 1
    rows = datasets.Dataset.from_list([{"prompt": "cb>"}])
    datasets.DatasetDict({"train": rows, "test": rows.select([0, 0])}).save_to_disk("sort")
    assert load_rows("sort")["prompt"] == ["cb>"]
    assert load_rows({"name": "sort", "split": "test"})["prompt"] == ["cb>"] * 2


def test_tasks_of_rows_that_name_none():
    rows = datasets.Dataset.from_list([{"prompt": "x"}])
    with pytest.raises(ValueError, match="needs a column 'task' or 'data_source'"):
        tasks_of(rows)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (3, "data must be a file"),
        ({"levels": [3]}, "a mapping with a 'name'"),
        ("{name: sort", "is not valid YAML"),
        ({"name": "sort", "size": 3}, "'sort' with the options"),
        ({"name": "sort", "levels": [99]}, "level of task 'sort' must be"),
        ({"name": "rows.jsonl", "n_per_level": 3}, "'rows.jsonl' is no task and takes split"),
        ("no_such_module:Task", "there is no module 'no_such_module'"),
    ],
)
def test_bad_sources(source, message):
    with pytest.raises(ValueError, match=message):
        load_rows(source)


OWN = """
from sec_grpo.tasks import Task, Verdict

class One(Task):
    name = "one"
    levels = (1,)

    def __init__(self, answer="1"):
        self.answer = answer

    def draw(self, rng, level):
        return {"prompt": self.prompt(rng.random()), "ground_truth": "?"}

    def prompt(self, problem):
        return f"what is {problem}?"

    def verify(self, text, truth):
        return Verdict(float(text == self.answer), "compared", True)
"""


def test_rows_are_judged_by_the_task_as_it_was_named(few, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def paid(source: str, *texts: str) -> list[float]:
        rows = load_rows(source)
        reward, _ = rewards_for(rows)
        truth = rows[0]["ground_truth"]
        return reward(None, list(texts), ground_truth=[truth] * len(texts))

    Path("one.py").write_text(OWN)
    assert paid("{name: 'one.py:One', n_per_level: 1}", "1", "2") == [1.0, 0.1]
    assert paid("{name: 'one.py:One', n_per_level: 1, answer: '2'}", "1", "2") == [0.1, 1.0]
    assert paid("{name: 'one.py:One', n_per_level: 1}", "1", "2") == [0.1, 1.0]
    tagged = "{name: countdown, n_per_level: 1, answer_format: tagged}"
    assert paid(tagged, "\\boxed{1}", "<answer>1</answer>") == [0.0, 0.1]
    assert paid("{name: countdown, n_per_level: 1, answer_format: either}", "\\boxed{1}") == [0.1]


def test_another_task_of_the_same_name_is_refused(few, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("one.py").write_text(OWN)
    Path("other.py").write_text(OWN)
    Path("sorting.py").write_text(OWN.replace('"one"', '"sort"'))
    load_rows("{name: 'one.py:One', n_per_level: 1}")
    for source, known in (("other.py:One", r"\.One"), ("sorting.py:One", r"\.SortTask")):
        with pytest.raises(ValueError, match=f"{source}.* is that of .*{known}, which would judge"):
            load_rows({"name": source, "n_per_level": 1})
