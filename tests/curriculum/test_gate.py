"""Dynamic sampling: what is kept, drawn again, filled up and counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sec_grpo.curriculum import SEC, Curriculum, DynamicSampling, ShortageError

DEAD, LIVE = [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]


def test_a_step_by_hand() -> None:
    """Four prompts wanted; five of eight groups are dead; two refills."""
    batch = DynamicSampling(max_refills=3).start(4)
    assert batch.num_missing == 4
    batch.add([10, 11, 12, 13], rewards=[DEAD, LIVE, DEAD, DEAD])
    assert batch.num_missing == 3
    batch.add([14, 15, 16], rewards=[LIVE, DEAD, LIVE])
    assert batch.num_missing == 1
    batch.add([17], rewards=[DEAD])
    assert batch.num_missing == 1
    batch.add([18], rewards=[LIVE])
    assert batch.num_missing == 0
    assert batch.selected().tolist() == [1, 4, 6, 8]
    assert batch.indices.tolist() == [10, 11, 12, 13, 14, 15, 16, 17, 18]
    assert batch.rewards.tolist() == [DEAD, LIVE, DEAD, DEAD, LIVE, DEAD, LIVE, DEAD, LIVE]
    assert batch.metrics() == {
        "dropped_groups": 5.0,
        "filled_groups": 0.0,
        "refills": 3.0,
        "refill_rollouts": 15.0,
        "share_kept": 4 / 9,
    }


@pytest.mark.parametrize(
    ("on_shortage", "selected", "dropped", "filled"),
    [("fill", [0, 1, 2, 5], 3, 2), ("fewer", [1, 5], 5, 0)],
)
def test_the_bound(on_shortage, selected, dropped, filled) -> None:
    batch = DynamicSampling(max_refills=1, on_shortage=on_shortage).start(4)
    batch.add([0, 1, 2, 3], rewards=[DEAD, LIVE, DEAD, DEAD])
    batch.add([4, 5, 6], rewards=[DEAD, LIVE, DEAD])
    assert batch.num_missing == 0
    assert batch.selected().tolist() == selected
    metrics = batch.metrics()
    assert metrics["dropped_groups"] == dropped
    assert metrics["filled_groups"] == filled
    assert metrics["refills"] == 1


def test_shortage_as_an_error() -> None:
    gate = DynamicSampling(max_refills=1, on_shortage="error")
    batch = gate.start(2)
    batch.add([0, 1], rewards=[DEAD, LIVE])
    batch.add([2], rewards=[DEAD])
    with pytest.raises(ShortageError, match="only 1 of 2 groups .* after 1 refills; raise max_ref"):
        batch.selected()
    batch = gate.start(2)
    batch.add([0, 1], rewards=[DEAD, LIVE])
    batch.add([2], rewards=[LIVE])
    assert batch.selected().tolist() == [1, 2]


def test_enough_is_fewer_than_all() -> None:
    batch = DynamicSampling(min_groups=2, on_shortage="error").start(4)
    batch.add(range(4), rewards=[LIVE, DEAD, DEAD, DEAD])
    assert batch.num_missing == 3
    batch.add(range(4, 7), rewards=[DEAD, LIVE, DEAD])
    assert batch.num_missing == 0
    assert batch.selected().tolist() == [0, 5]


def test_no_refill_keeps_the_batch_as_drawn() -> None:
    batch = DynamicSampling(max_refills=0).start(3)
    batch.add([5, 6, 7], rewards=[DEAD, LIVE, DEAD])
    assert batch.num_missing == 0
    assert batch.selected().tolist() == [0, 1, 2]


def test_more_groups_than_missing() -> None:
    """The first P that are kept make the batch; the others are dropped, and observed."""
    batch = DynamicSampling().start(2)
    batch.add([0, 1, 2], rewards=[LIVE, DEAD, DEAD])
    batch.add([3, 4], rewards=[LIVE, LIVE])
    assert batch.num_missing == 0
    assert batch.selected().tolist() == [0, 3]
    assert batch.indices.tolist() == [0, 1, 2, 3, 4]
    assert batch.metrics()["dropped_groups"] == 3


@pytest.mark.parametrize(
    ("rewards", "atol", "kept"),
    [
        # The deviation of three floats 0.1 is 1.7e-17, not 0.
        ([[0.1, 0.1, 0.1], [0.1, 0.1, 0.2]], 0.0, [False, True]),
        # The same mean 0.5 with and without a difference: the mean cannot tell.
        ([[0.5, 0.5, 0.5], [0.0, 0.5, 1.0]], 0.0, [False, True]),
        # std of (0, .1, .2) is exactly .1 over G - 1, and .0816 over G.
        ([[0.0, 0.1, 0.2], [0.0, 1.0, 0.0]], 0.09, [True, True]),
        ([[0.0, 0.1, 0.2], [0.0, 1.0, 0.0]], 0.11, [False, True]),
        ([[-1e30, 1e30, 0], [1e-30, 0, 0]], 0.0, [True, True]),
    ],
)
def test_what_differs(rewards, atol, kept) -> None:
    for given in (rewards, np.array(rewards), torch.tensor(rewards, dtype=torch.float64)):
        batch = DynamicSampling(max_refills=0, atol=atol, on_shortage="fewer").start(2)
        batch.add([0, 1], rewards=given)
        assert batch.selected().tolist() == np.flatnonzero(kept).tolist()


def test_beside_a_loop() -> None:
    """500 random batches beside DAPO's loop written out."""
    generator = np.random.default_rng(3)
    for _ in range(500):
        wanted, refills = int(generator.integers(1, 9)), int(generator.integers(0, 4))
        live_share = generator.random()
        batch = DynamicSampling(max_refills=refills).start(wanted)
        kept, dead, number = [], [], 0
        for _ in range(refills + 1):
            missing = wanted - len(kept)
            if missing == 0:
                break
            assert batch.num_missing == missing
            rewards = []
            for _ in range(missing):
                live = generator.random() < live_share
                (kept if live else dead).append(number)
                rewards.append(LIVE if live else DEAD)
                number += 1
            batch.add(np.arange(number - missing, number), rewards=rewards)
        assert batch.num_missing == 0
        assert batch.selected().tolist() == sorted(kept + dead[: wanted - len(kept)])
        assert batch.metrics()["share_kept"] == len(kept) / number


def test_dropped_groups_are_observed() -> None:
    """An arm that is never solved costs its Q in one update, however many refills there were."""
    curriculum = Curriculum(
        ["solved"] * 20 + ["never"] * 20, SEC(alpha=0.5, undrawn="keep"), seed=2
    )
    batch = DynamicSampling(max_refills=5).start(6)
    while batch.num_missing:
        indices = curriculum.draw(batch.num_missing)
        batch.add(indices, rewards=[LIVE if i < 20 else DEAD for i in indices])
    assert set(curriculum.arm_indices(batch.indices[batch.selected()]).tolist()) == {1}
    advantages = batch.rewards - batch.rewards.mean(axis=1, keepdims=True)
    curriculum.observe(batch.indices, advantages=advantages, rewards=batch.rewards)
    table = dict(zip(curriculum.arms, curriculum.arm_table()["dead_groups"], strict=True))
    assert table == {"never": 1.0, "solved": 0.0}
    # |A| of (0, 1, 0) is (1/3 + 2/3 + 1/3) / 3 = 4/9.
    values = dict(zip(curriculum.arms, curriculum.values(), strict=True))
    assert values == {"never": 0.0, "solved": pytest.approx(0.5 * 4 / 9)}


@pytest.mark.parametrize(
    ("indices", "rewards", "error", "message"),
    [
        ([0, 1], [LIVE], ValueError, r"rewards must have shape \(2, G\), .* got \(1, 3\)"),
        ([0, 1], [[1.0], [0.0]], ValueError, r"G at least 2, got \(2, 1\)"),
        ([0, 1], [1.0, 0.0], ValueError, r"rewards must have shape \(2, G\)"),
        ([0, 1], None, ValueError, r"rewards must have shape \(2, G\), .* got None"),
        ([0, 1], [LIVE, [0, np.nan, 1]], ValueError, "rewards must be finite, got .* in row 1"),
        ([0, 1], [LIVE, ["a", "b", "c"]], TypeError, "rewards must be numbers"),
        ([], np.zeros((0, 3)), ValueError, "at least one prompt"),
        ([0.5, 1], [LIVE, LIVE], TypeError, "indices must be integers"),
    ],
)
def test_refused_groups_change_nothing(indices, rewards, error, message: str) -> None:
    batch = DynamicSampling().start(2)
    with pytest.raises(error, match=message):
        batch.add(indices, rewards=rewards)
    assert batch.num_missing == 2
    batch.add([0, 1], rewards=[LIVE, DEAD])
    with pytest.raises(ValueError, match=r"rewards must have shape \(1, 3\), .* got \(1, 2\)"):
        batch.add([2], rewards=[[0.0, 1.0]])
    assert batch.indices.tolist() == [0, 1]


def test_order_of_calls() -> None:
    batch = DynamicSampling().start(1)
    for ask in (batch.selected, batch.metrics, lambda: batch.indices, lambda: batch.rewards):
        with pytest.raises(ValueError, match="add those of num_missing prompts first"):
            ask()
    batch.add([0], rewards=[LIVE])
    with pytest.raises(ValueError, match="must miss prompts to add some; start another batch"):
        batch.add([1], rewards=[LIVE])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_refills": -1}, ValueError, "max_refills must be an integer"),
        ({"max_refills": 1.5}, TypeError, "max_refills must be an integer"),
        ({"max_refills": False}, TypeError, "max_refills must be an integer"),
        ({"min_groups": 0}, ValueError, "min_groups must be an integer of at least 1"),
        ({"atol": -0.1}, ValueError, "atol must be a finite number of at least 0, got -0.1"),
        ({"atol": float("nan")}, ValueError, "atol must be"),
        ({"on_shortage": "wait"}, ValueError, "on_shortage must be one of fill, fewer, error; got"),
    ],
)
def test_refused_parameters(options, error, message: str) -> None:
    with pytest.raises(error, match=message):
        DynamicSampling(**options)


def test_refused_sizes() -> None:
    with pytest.raises(ValueError, match="num_prompts must be an integer of at least 1, got 0"):
        DynamicSampling().start(0)
    with pytest.raises(ValueError, match="min_groups must be at most the 2 prompts .* got 3"):
        DynamicSampling(min_groups=3).start(2)
