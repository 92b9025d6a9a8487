"""Rewards from the words of a command line."""

import datasets
import pytest

from sec_grpo import tasks
from sec_grpo.rewards import WeightedReward, reward_from, rewards_for
from sec_grpo.tasks import TaskReward

ROW = {"ground_truth": ["ab"] * 3}
ANSWERS = ["ab", "ba", "1"]


def paid(spec, **options):
    return reward_from(spec, **options)(prompts=None, completions=ANSWERS, **ROW)


def test_a_task_by_name_or_path():
    assert paid("sort") == [1.0, 0.0, 0.0]
    assert reward_from("countdown").well_formed == 0.1
    assert reward_from("countdown", evaluation=True).well_formed == 0.0
    assert isinstance(reward_from("sec_grpo.tasks.sort:SortTask"), TaskReward)


def test_a_task_with_parameters():
    text = "{name: sort, correct: 2, well_formed: 0.25}"
    for spec in (text, {"name": "sort", "correct": 2, "well_formed": 0.25}):
        assert paid(spec) == [2.0, 0.25, 0.0]
        assert paid(spec, evaluation=True) == [1.0, 0.0, 0.0]
        assert reward_from(spec).__name__ == "sort_reward"
        assert reward_from(spec, evaluation=True).__name__ == "sort_accuracy"
    spec = {"name": "sort", "well_formed": 0.5, "evaluation": {"well_formed": 0.2}}
    assert paid(spec) == [1.0, 0.5, 0.0]
    assert paid(spec, evaluation=True) == [1.0, 0.2, 0.0]
    assert paid("{name: sort, workers: 1, time_limit: 0.5}") == [1.0, 0.0, 0.0]


def test_functions_and_sums(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def length(completions, **columns):\n    return [len(text) for text in completions]\n"
    )
    path = f"{tmp_path}/mine.py:length"
    assert paid(path) == [2, 2, 1]
    assert paid({"name": path}) == [2, 2, 1]
    reward = reward_from(f"[{{name: sort}}, {{name: '{path}', weight: 0.5}}]")
    assert isinstance(reward, WeightedReward)
    assert reward(prompts=None, completions=ANSWERS, **ROW) == [2.0, 1.0, 0.5]
    assert reward_from("statistics:fmean")([1.0, 2.0]) == 1.5


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{name: sort", "is not valid YAML"),
        ("sorte", "unknown task 'sorte'"),
        ("{name: sort, corect: 1}", "takes correct, .*Got 'corect'; did you mean 'correct'"),
        ("{name: sort, well_formed: 2}", "malformed <= well_formed <= correct"),
        ("{name: sort, correct: one}", "reward 'sort' with"),
        ("{name: sort, workers: -1}", "workers must be an integer of at least 1"),
        ("{name: sort, evaluation: 1}", "'evaluation' of a reward must be a mapping"),
        ("{name: sort, evaluation: {right: 1}}", "sort: evaluation.*Got 'right'"),
        ("{correct: 1}", "a mapping with a 'name'"),
        (3, "a mapping with a 'name'"),
        ("no_such_module:f", "cannot be imported"),
        ("no_such_file.py:f", "there is no file no_such_file.py"),
        ("statistics:nothing", "has no function 'nothing'"),
        ({"name": "statistics:fmean", "correct": 1}, "takes 'name' only. Got 'correct'"),
        ("[]", "at least one"),
    ],
)
def test_bad_specifications(spec, message):
    with pytest.raises(ValueError, match=message):
        reward_from(spec)


def test_the_rewards_of_rows_and_of_words():
    rows = datasets.Dataset.from_list([{"prompt": "ba>", "ground_truth": "ab", "task": "sort"}])
    training, evaluation = rewards_for(rows)
    assert (training.__name__, evaluation.__name__) == ("sort_reward", "sort_accuracy")
    training, evaluation = rewards_for(rows, "{name: sort, correct: 2, well_formed: 0.25}")
    assert training(None, ANSWERS, **ROW) == [2.0, 0.25, 0.0]
    assert evaluation(None, ANSWERS, **ROW) == [1.0, 0.0, 0.0]
    several = datasets.concatenate_datasets(
        [rows, datasets.Dataset.from_list([{"prompt": "1", "ground_truth": "1", "task": "zebra"}])]
    )
    training, evaluation = rewards_for(several)
    assert [reward.__name__ for reward in training] == ["sort_reward", "zebra_reward"]
    assert [reward.__name__ for reward in evaluation] == ["sort_accuracy", "zebra_accuracy"]
    columns = {"task": ["sort", "zebra"], "ground_truth": ["ab", "ann"]}
    answers = ["ab", "\\boxed{bob}"]
    assert training[0](None, answers, **columns) == [1.0, None]
    assert training[1](None, answers, **columns) == [None, 0.1]
    assert evaluation[1](None, answers, **columns) == [None, 0.0]
    # What is left of a mixed data set, whose truths are JSON.
    mixed = tasks.mix([several.select([0]), several.select([1])])
    (only,), _ = rewards_for(mixed.select([1]))
    assert only(None, ["\\boxed{1}"], task=["zebra"], ground_truth_json=['"1"']) == [0.0]
    assert only(None, ["\\boxed{Al}"], task=["zebra"], ground_truth_json=['"al"']) == [1.0]
    with pytest.raises(ValueError, match="--reward is missing and the data names no task"):
        rewards_for(rows.remove_columns("task"))


def test_a_limit_holds_for_a_task_that_is_not_slow(tmp_path):
    (tmp_path / "eternal.py").write_text(
        "import time\nfrom sec_grpo.tasks.sort import SortTask\nclass Eternal(SortTask):\n"
        "    name = 'eternal'\n    def verify(self, text, truth):\n"
        "        if text == 'wait': time.sleep(60)\n        return super().verify(text, truth)\n"
    )
    reward = reward_from({"name": f"{tmp_path}/eternal.py:Eternal", "time_limit": 0.5})
    assert reward(None, ["wait", "ab", "ba"], ground_truth=["ab"] * 3) == [0.0, 1.0, 0.0]
    reward.close()
    for limit in ({"time_limit": 1.0}, {"memory_limit": 1 << 20}):
        with pytest.raises(ValueError, match="hold in worker processes only.*Got workers=0"):
            reward_from({"name": "sort", "workers": 0, **limit})
    with pytest.raises(ValueError, match="reward 'sort' with .*'time_limit': 'short'"):
        reward_from({"name": "sort", "time_limit": "short"})


def test_a_task_of_a_file(tmp_path):
    (tmp_path / "my_sort.py").write_text(
        "from sec_grpo.tasks.sort import SortTask\nclass MySort(SortTask):\n"
        "    name = 'my_sort'\n    well_formed_reward = 0.3\nanswer = 3\n"
    )
    assert paid(f"{tmp_path}/my_sort.py:MySort") == [1.0, 0.3, 0.0]
    with pytest.raises(ValueError, match="must be a function or a task. Got 3"):
        reward_from(f"{tmp_path}/my_sort.py:answer")
