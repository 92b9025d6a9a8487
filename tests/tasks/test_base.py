"""Rows, data sets and reward functions, with a task of the tests' own and the built-in ones."""

import random

import pytest

from sec_grpo import tasks
from sec_grpo.tasks import Task, TaskReward, Verdict
from sec_grpo.tasks.reward import completion_text


class HalfTask(Task):
    """`n of ten` problems; half a point for an answer that is off by one."""

    name = "half"
    levels = (1, 2)
    held_out_levels = (5,)

    def draw(self, rng, level):
        number = rng.randrange(10)
        return {"prompt": self.prompt(number), "ground_truth": str(number)}

    def prompt(self, problem):
        return f"{problem}?"

    def verify(self, text, truth):
        if not text.isdigit():
            return Verdict(0.0, "no number", False)
        off = abs(int(text) - int(truth))
        return Verdict({0: 1.0, 1: 0.5}.get(off, 0.0), f"off by {off}", True)


@pytest.mark.parametrize("name", ["countdown", "sort"])
def test_generate_is_deterministic_and_depends_on_seed_and_level(name):
    task = tasks.get(name)
    rows = task.generate(4, 50, seed=7)
    random.seed(0)
    assert task.generate(4, 50, seed=7) == rows
    assert task.generate(4, 20, seed=7) == rows[:20]
    assert type(task)().generate(4, 50, seed=7) == rows
    assert task.generate(4, 50, seed=8) != rows
    assert {row["difficulty"] for row in task.generate(5, 3, seed=7)} == {5}


@pytest.mark.parametrize("name", ["countdown", "sort"])
def test_generate_leaves_the_global_generator_alone(name):
    random.seed(3)
    expected = random.random()
    random.seed(3)
    tasks.get(name).generate(4, 10, seed=0)
    assert random.random() == expected


@pytest.mark.parametrize(("name", "level"), [("countdown", 3), ("countdown", 2), ("sort", 4)])
def test_rows_are_distinct(name, level):
    task = tasks.get(name)
    rows = task.generate(level, 3000, seed=1)
    assert len({task.key(row) for row in rows}) == 3000


def test_rows_repeat_only_when_the_level_is_used_up():
    sort = tasks.get("sort")
    prompts = [row["prompt"] for row in sort.generate(1, 60, seed=0)]
    assert len(set(prompts[:26])) == 26
    assert len(set(prompts[26:52])) == 26
    prompts = [row["prompt"] for row in sort.generate(2, 650, seed=0)]
    assert len(set(prompts)) == 650
    # A task that does not know the size of its level.
    prompts = [row["prompt"] for row in HalfTask().generate(1, 25, seed=0)]
    assert len(set(prompts[:10])) == len(set(prompts[10:20])) == 10


def test_dataset_goes_level_by_level():
    data = tasks.get("sort").dataset(3, seed=0)
    assert data["difficulty"] == [n for n in (2, 4, 6, 8, 10, 12, 14, 16) for _ in range(3)]
    assert data.column_names == ["prompt", "ground_truth", "difficulty", "task"]
    assert data[3] == tasks.get("sort").generate(4, 1, seed=0)[0]
    held_out = tasks.get("countdown").dataset(2, seed=0, levels=[6])
    assert held_out["difficulty"] == [6, 6]
    assert held_out.column_names == ["prompt", "ground_truth", "solution", "difficulty", "task"]
    assert held_out[1] == tasks.get("countdown").generate(6, 2, seed=0)[1]


@pytest.mark.parametrize(("level", "shown"), [(0, "0"), (27, "27"), (2.0, "2.0"), (True, "True")])
def test_a_level_outside_the_range_is_refused(level, shown):
    with pytest.raises(ValueError, match=rf"'sort' must be an integer from 1 to 26\. Got {shown}"):
        tasks.get("sort").generate(level, 1, seed=0)


def test_other_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"'half' must be one of 1, 2, 5\. Got 3"):
        HalfTask().generate(3, 1, seed=0)
    for n in (0, 2.5, "2", True):
        with pytest.raises(ValueError, match=rf"n must be an integer of at least 1\. Got {n!r}"):
            HalfTask().generate(1, n, seed=0)
    for levels in ([], 1, "15"):
        with pytest.raises(ValueError, match="levels must be a list of at least one level"):
            HalfTask().dataset(1, seed=0, levels=levels)


def test_reward_follows_the_verdict():
    completions = ["5", "6", "9", "none"]
    columns = {"ground_truth": ["5"] * 4, "difficulty": [1] * 4, "completion_ids": [[1]] * 4}
    task = HalfTask()
    assert task.reward(["?"] * 4, completions, **columns) == [1.0, 0.5, 0.1, 0.0]
    assert task.accuracy(["?"] * 4, completions, **columns) == [1.0, 0.0, 0.0, 0.0]
    custom = TaskReward(task, correct=2.0, well_formed=1.5, name="mine")
    assert custom(["?"] * 4, completions, **columns) == [2.0, 1.5, 1.5, 0.0]
    strict = TaskReward(task, well_formed=-0.5, malformed=-1.0, partial=False)
    assert strict(["?"] * 4, completions, **columns) == [1.0, -0.5, -0.5, -1.0]
    graded = TaskReward(task, well_formed=-0.5, malformed=-1.0)
    assert graded(["?"] * 4, completions, **columns) == [1.0, 0.5, -0.5, -1.0]
    assert task.reward(prompts=[], completions=[], ground_truth=[]) == []
    names = [task.reward.__name__, task.accuracy.__name__, custom.__name__]
    assert names == ["half_reward", "half_accuracy", "mine"]


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("5", "5"),
        ([{"role": "assistant", "content": "5"}], "5"),
        (
            [
                {"role": "assistant", "content": "first"},
                {"role": "tool", "content": "x"},
                {"role": "assistant", "content": "5"},
                {"role": "user", "content": "x"},
            ],
            "5",
        ),
        (
            [{"role": "assistant", "content": [{"type": "text", "text": "5"}, {"type": "image"}]}],
            "5",
        ),
        ([{"role": "assistant", "content": None}], ""),
        ([{"role": "assistant"}], ""),
        ([{"role": "user", "content": "5"}], ""),
        ([], ""),
    ],
)
def test_completion_formats_of_trl(completion, text):
    assert completion_text(completion) == text
    expected = 1.0 if text == "5" else 0.0
    assert HalfTask().reward(None, [completion], ground_truth=["5"]) == [expected]


def test_reward_refuses_what_it_cannot_judge():
    reward = HalfTask().reward
    with pytest.raises(ValueError, match=r"needs a column 'ground_truth'. Got: answer, difficulty"):
        reward(None, ["5"], difficulty=[1], answer=["5"])
    with pytest.raises(ValueError, match="Got 1 for 2 completions"):
        reward(None, ["5", "6"], ground_truth=["5"])
    for completion in (None, 5, ["5"], {"role": "assistant", "content": "5"}):
        with pytest.raises(TypeError, match="a completion must be a string or a list"):
            reward(None, [completion], ground_truth=["5"])
    for bad in (
        {"correct": float("nan")},
        {"correct": float("inf")},
        {"correct": 0.0, "well_formed": 0.0},
        {"well_formed": -0.1},
        {"well_formed": 1.1},
        {"malformed": 0.2},
        {"malformed": float("-inf")},
    ):
        with pytest.raises(ValueError, match="malformed <= well_formed <= correct"):
            TaskReward(HalfTask(), **bad)
