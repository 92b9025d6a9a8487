"""Rows of several tasks together."""

from __future__ import annotations

import json
from decimal import Decimal

import datasets
import pytest

from sec_grpo import tasks
from sec_grpo.rewards import rewards_for
from sec_grpo.tasks import OneOfSeveral, get, mix


def rows_of(name: str, levels: list[int]) -> datasets.Dataset:
    return get(name).dataset(2, seed=0, levels=levels)


def test_mixed_rows_keep_their_truth_and_their_task() -> None:
    countdown, arc = rows_of("countdown", [3]), rows_of("arc_1d", [10, 20])
    mixed = mix([countdown, arc])
    assert mixed["task"] == ["countdown"] * 2 + ["arc_1d"] * 4
    assert mixed["type"] == mixed["task"]
    assert mixed["difficulty"] == [3, 3, 10, 10, 20, 20]
    truths = [json.loads(text) for text in mixed["ground_truth_json"]]
    assert truths == [*countdown["ground_truth"], *arc["ground_truth"]]


def test_mixed_rows_mix_again() -> None:
    countdown, arc = rows_of("countdown", [3]), rows_of("arc_1d", [10, 20])
    zebra = rows_of("zebra", [3])
    assert mix([mix([countdown, arc]), zebra]).to_list() == mix([countdown, arc, zebra]).to_list()


def test_one_task_alone_keeps_plain_truths() -> None:
    mixed = mix([rows_of("sort", [4]), rows_of("sort", [6])])
    assert "ground_truth" in mixed.column_names
    assert set(mixed["task"]) == {"sort"}


def test_every_row_is_judged_by_its_own_task() -> None:
    mixed = mix([rows_of("countdown", [3]), rows_of("arc_1d", [10])])
    arc = json.loads(mixed[2]["ground_truth_json"])["target"]
    solution = get("countdown").generate(3, 1, seed=0)[0]["solution"]
    texts = [f"\\boxed{{{solution}}}", "no", f"\\boxed{{{arc}}}", "\\boxed{1 2}"]
    columns = {name: mixed[name] for name in mixed.column_names if name != "prompt"}
    rewards = {
        name: OneOfSeveral(get(name).reward)(mixed["prompt"], texts, **columns)
        for name in ("countdown", "arc_1d")
    }
    assert rewards["countdown"] == [1.0, 0.0, None, None]
    assert rewards["arc_1d"] == [None, None, 1.0, 0.1]
    assert OneOfSeveral(get("arc_1d").reward).__name__ == "arc_1d_reward"


def test_what_was_not_verified_is_logged_for_the_tasks_own_rows() -> None:
    logged = {}
    columns = {"task": ["math", "sort", "math"], "ground_truth": ["x+1", "ab", "2"]}
    rewards = OneOfSeveral(get("math").reward)(
        None, ["\\boxed{1+x}", "ab", "\\boxed{3}"], **columns, log_metric=logged.__setitem__
    )
    assert rewards == [1.0, None, 0.1]
    assert logged == {"rewards/math_reward/not_verified": 0.0}


def test_rows_of_one_file_with_several_sources() -> None:
    reward = OneOfSeveral(get("countdown").reward)
    columns = {
        "data_source": ["countdown-easy-train", "arc-easy-train"],
        "ground_truth": [
            {"numbers": "1,2", "target": 3},
            {"numbers": None, "target": "0 1"},
        ],
    }
    assert reward(None, ["\\boxed{1 + 2}", "\\boxed{0 1}"], **columns) == [1.0, None]


def test_a_task_that_is_registered_by_another_name(monkeypatch) -> None:
    monkeypatch.setattr(tasks, "_registry", dict(tasks._registry))
    monkeypatch.setattr(tasks, "_instances", {})
    tasks.register("letters", get("sort"))
    rows = [
        {"prompt": "x", "data_source": source, "ground_truth": "ab"}
        for source in ("letters-easy", "math")
    ]
    found, _ = rewards_for(datasets.Dataset.from_list(rows))
    columns = {name: [row[name] for row in rows] for name in ("data_source", "ground_truth")}
    rewards = [reward(None, ["ab", "ab"], **columns) for reward in found]
    assert rewards == [[1.0, None], [None, 0.0]]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"ground_truth": ["a"]}, "need a column 'task' or 'data_source'"),
        ({"task": ["sort"]}, "needs a column 'ground_truth' or 'ground_truth_json'"),
        ({"task": ["chess"], "ground_truth": ["a"]}, "no registered task verifies 'chess'"),
    ],
)
def test_missing_columns_are_named(columns, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OneOfSeveral(get("sort").reward)(None, ["ab"], **columns)


def test_sources_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="at least one data set"):
        mix([])
    with pytest.raises(ValueError, match="text in some and chat messages in others"):
        mix([rows_of("sort", [4]), rows_of("countdown", [3])])
    texts = rows_of("arc_1d", [10]).map(lambda row: {"difficulty": "short"})
    with pytest.raises(ValueError, match="agree on the column 'difficulty', which is text in some"):
        mix([rows_of("countdown", [3]), texts])
    exact = rows_of("arc_1d", [10]).remove_columns("ground_truth")
    exact = exact.add_column("ground_truth", [Decimal("1.5")] * 2)
    with pytest.raises(ValueError, match=r"must be what JSON can hold. Got Decimal\('1.5'\)"):
        mix([rows_of("countdown", [3]), exact])
    bare = rows_of("arc_1d", [10]).remove_columns("difficulty")
    with pytest.raises(ValueError, match="all have a column 'difficulty', or none"):
        mix([rows_of("countdown", [3]), bare])
    with pytest.raises(ValueError, match="source 0 has no column 'ground_truth'"):
        mix([rows_of("sort", [4]).remove_columns("ground_truth")])
