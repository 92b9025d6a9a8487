"""DynamicSampling: which groups make a batch, and what is drawn again."""

from __future__ import annotations

import numpy as np
import pytest

from sec_grpo.curriculum import SEC, Curriculum, DynamicSampling, ShortageError

LIVE, DEAD = [1.0, 0.0], [1.0, 1.0]


def test_a_full_first_round_is_the_batch() -> None:
    batch = DynamicSampling().start(2)
    assert batch.num_missing == 2
    batch.add([7, 9], rewards=[LIVE, LIVE])
    assert batch.num_missing == 0
    assert batch.selected().tolist() == [0, 1]
    assert batch.metrics() == {
        "generated_groups": 2,
        "dropped_groups": 0,
        "refill_groups": 0,
        "refills": 0,
        "kept": 1,
    }


def test_missing_groups_are_drawn_again() -> None:
    batch = DynamicSampling(max_refills=3).start(3)
    batch.add([1, 2, 3], rewards=[DEAD, LIVE, DEAD])
    assert batch.num_missing == 2
    batch.add([4, 5], rewards=[LIVE, DEAD])
    assert batch.num_missing == 1
    batch.add([6], rewards=[LIVE])
    assert batch.num_missing == 0
    # Everything that was generated is there to be observed; the live ones make the batch.
    assert batch.indices.tolist() == [1, 2, 3, 4, 5, 6]
    assert batch.rewards.shape == (6, 2)
    assert batch.selected().tolist() == [1, 3, 5]
    assert batch.indices[batch.selected()].tolist() == [2, 4, 6]
    metrics = batch.metrics()
    assert metrics["dropped_groups"] == 3
    assert metrics["refill_groups"] == 3
    assert metrics["refills"] == 2
    assert metrics["kept"] == 0.5


def test_overdraw_asks_for_more_and_takes_no_more_than_the_batch() -> None:
    batch = DynamicSampling(overdraw=1.5).start(3)
    batch.add([1, 2, 3], rewards=[DEAD, DEAD, LIVE])
    assert batch.num_missing == 3
    batch.add([4, 5, 6], rewards=[LIVE, LIVE, LIVE])
    assert batch.selected().tolist() == [2, 3, 4]
    assert batch.metrics()["dropped_groups"] == 2


@pytest.mark.parametrize(
    ("on_shortage", "selected"), [("fill", [0, 1, 3]), ("short", [1, 3]), ("error", None)]
)
def test_the_bound(on_shortage: str, selected: list[int] | None) -> None:
    batch = DynamicSampling(max_refills=1, on_shortage=on_shortage).start(3)
    batch.add([1, 2, 3], rewards=[DEAD, LIVE, DEAD])
    batch.add([4, 5], rewards=[LIVE, DEAD])
    assert batch.num_missing == 0
    if selected is None:
        with pytest.raises(ShortageError, match="only 2 of 3 groups .* after 1 refills"):
            batch.selected()
    else:
        assert batch.selected().tolist() == selected


def test_no_refills_at_all() -> None:
    batch = DynamicSampling(max_refills=0).start(2)
    batch.add([1, 2], rewards=[DEAD, LIVE])
    assert batch.num_missing == 0
    assert batch.selected().tolist() == [0, 1]


def test_equal_rewards_are_equal_not_of_mean_zero_or_one() -> None:
    batch = DynamicSampling().start(4)
    # A mean in the middle with no spread is dead; a spread however small is not.
    batch.add([1, 2, 3, 4], rewards=[[0.5, 0.5], [0.5, 0.5 + 1e-9], [0.0, 0.0], [-1.0, 3.0]])
    assert batch.num_missing == 2
    tolerant = DynamicSampling(tolerance=1e-6).start(2)
    tolerant.add([1, 2], rewards=[[0.5, 0.5 + 1e-9], [0.0, 1.0]])
    assert tolerant.num_missing == 1


def test_with_a_curriculum_dropped_groups_are_observed() -> None:
    curriculum = Curriculum(["easy"] * 50 + ["hard"] * 50, SEC(temperature=0.2), seed=1)
    generator = np.random.default_rng(0)
    refills = 0.0
    for _ in range(20):
        batch = DynamicSampling(max_refills=5).start(8)
        while batch.num_missing:
            indices = curriculum.draw(batch.num_missing)
            p = np.where(indices < 50, 1.0, 0.4)
            batch.add(indices, rewards=generator.random((len(indices), 8)) < p[:, None])
        rewards = batch.rewards.astype(float)
        curriculum.observe(
            batch.indices, advantages=rewards - rewards.mean(1, keepdims=True), rewards=rewards
        )
        selected = batch.selected()
        assert len(selected) == 8
        assert (np.ptp(rewards[selected], axis=1) > 0).all()
        refills += batch.metrics()["refill_groups"]
    # The curriculum has seen that easy prompts teach nothing, though no batch held one.
    assert curriculum.values()[0] < 0.05
    assert curriculum.probabilities()[1] > 0.8
    assert refills > 0
    assert curriculum.metrics()["prompts_drawn"] == 160 + refills


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_refills": -1}, "max_refills must be an integer of at least 1"),
        ({"overdraw": 0.5}, "overdraw must be a finite number of at least 1"),
        ({"tolerance": -1}, "tolerance must be a finite number of at least 0"),
        ({"on_shortage": "wait"}, "on_shortage must be one of fill, short, error, got 'wait'"),
    ],
)
def test_bad_parameters(arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DynamicSampling(**arguments)


@pytest.mark.parametrize(
    ("indices", "rewards", "message"),
    [
        ([1], [LIVE, LIVE], r"rewards must have shape \(1, G\), got \(2, 2\)"),
        ([1], [[float("nan"), 1.0]], "rewards must be finite"),
        ([1], [[1.0, 0.0, 0.0]], "rewards must have G = 2 as before, got 3"),
        ([1], None, r"rewards must have shape \(1, G\), got None"),
    ],
)
def test_bad_groups_change_nothing(indices, rewards, message: str) -> None:
    batch = DynamicSampling().start(2)
    batch.add([5, 6], rewards=[LIVE, DEAD])
    with pytest.raises(ValueError, match=message):
        batch.add(indices, rewards=rewards)
    assert batch.indices.tolist() == [5, 6]
    assert batch.num_missing == 1
