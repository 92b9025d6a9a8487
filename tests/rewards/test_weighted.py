"""Weighted sums of reward functions, each part logged apart."""

import asyncio

import pytest

from sec_grpo.errors import RewardError
from sec_grpo.rewards import WeightedReward

CALL = {"prompts": ["p"] * 3, "completions": ["a", "bb", "cccc"]}


def length(completions, **columns):
    return [len(text) for text in completions]


def short_only(completions, **columns):
    return [10.0 if len(text) < 3 else None for text in completions]


async def half(completions, **columns):
    await asyncio.sleep(0.01)
    return [0.5] * len(completions)


def test_sum_over_the_parts_that_count():
    logged = {}
    reward = WeightedReward({length: 2.0, short_only: -0.1}, name="mine")
    assert reward(**CALL, log_metric=logged.__setitem__) == [1.0, 3.0, 8.0]
    assert reward.__name__ == "mine"
    assert logged == {
        "rewards/length/mean": 7 / 3,
        "rewards/length/std": pytest.approx((14 / 9) ** 0.5),
        "rewards/short_only/mean": 10.0,
        "rewards/short_only/std": 0.0,
    }
    assert WeightedReward({short_only: 1.0})(**CALL) == [10.0, 10.0, None]


def test_tasks_by_name():
    reward = WeightedReward({"sort": 1.0, length: 0.25})
    assert reward.names == ["sort_reward", "length"]
    assert reward(["ba>"] * 2, ["ab", "ba"], ground_truth=["ab"] * 2) == [1.5, 0.5]


def test_with_a_coroutine_function_the_sum_is_one():
    reward = WeightedReward({length: 1.0, half: 2.0})
    assert asyncio.iscoroutinefunction(type(reward).__call__)
    assert asyncio.run(reward(**CALL)) == [2.0, 3.0, 5.0]
    assert not asyncio.iscoroutinefunction(type(WeightedReward({length: 1.0})).__call__)


def test_names_are_unique():
    first, second = (lambda completions, k=k, **_: [k] * len(completions) for k in (1.0, 2.0))
    reward = WeightedReward({first: 1.0, second: 1.0, length: 1.0})
    assert reward.names == ["<lambda>", "<lambda>_2", "length"]
    assert reward(**CALL) == [4.0, 5.0, 7.0]


def test_errors_name_the_part():
    def broken(completions, **columns):
        raise KeyError("x")

    async def broken_later(completions, **columns):
        raise KeyError("x")

    with pytest.raises(RewardError, match="part 'broken' of a weighted reward raised KeyError"):
        WeightedReward({length: 1.0, broken: 1.0})(**CALL)
    with pytest.raises(RewardError, match="part 'broken_later' of .* raised KeyError"):
        asyncio.run(WeightedReward({length: 1.0, broken_later: 1.0})(**CALL))
    with pytest.raises(RewardError, match=r"'<lambda>' .* returned nan for completion 1"):
        WeightedReward({lambda **k: [0, float("nan"), 0]: 1.0})(**CALL)
    with pytest.raises(RewardError, match=r"a list of 3 numbers.* Got 1\."):
        WeightedReward({lambda **k: [0]: 1.0})(**CALL)
    with pytest.raises(RewardError, match=r"a list of 3 numbers.* Got NoneType\."):
        WeightedReward({lambda **k: None: 1.0})(**CALL)


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ({}, ValueError, "at least one"),
        ([length], ValueError, "at least one"),
        ({"nothing": 1.0}, ValueError, "unknown task 'nothing'"),
        ({3: 1.0}, TypeError, "a task's name or a reward function"),
        ({length: "1"}, ValueError, "must be a number"),
        ({length: True}, ValueError, "must be a number"),
        ({length: float("inf")}, ValueError, "must be finite"),
    ],
)
def test_bad_parts(parts, error, message):
    with pytest.raises(error, match=message):
        WeightedReward(parts)
