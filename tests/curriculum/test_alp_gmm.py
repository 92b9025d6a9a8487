"""The teacher over continuous knobs."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from sec_grpo.curriculum import ALPGMM

pytest.importorskip("sklearn")


def learner(knobs: np.ndarray, tasks_seen: int) -> np.ndarray:
    """Success on a knob in [0, 10]: learned in (3, 5) as time goes, else always or never."""
    skill = 3.0 + 2.0 * min(tasks_seen / 2000, 1.0)
    return (knobs[:, 0] < skill).astype(float)


def test_it_concentrates_where_something_is_learned() -> None:
    teacher = ALPGMM(0.0, 10.0, seed=1)
    asked = []
    for step in range(100):
        knobs = teacher.sample(20)
        asked.append(knobs[:, 0])
        teacher.observe(knobs, learner(knobs, 20 * step))
    before, after = np.concatenate(asked[:12]), np.concatenate(asked[50:])
    # Uniform at first: 3 units of 10. The frontier moves from 4 to 5 in the second half.
    assert np.mean((before > 3) & (before < 6)) == pytest.approx(0.3, abs=0.15)
    assert np.mean((after > 3) & (after < 6)) > 0.5
    assert teacher.metrics()["components"] >= 2
    assert teacher.metrics()["tasks"] == 2000


def test_learning_progress_is_that_of_the_nearest_task() -> None:
    teacher = ALPGMM([0, 0], [1, 10])
    teacher.observe([[0.0, 0.0], [1.0, 10.0], [0.9, 9.0], [0.1, 0.5]], [0.2, 0.9, 0.4, 1.0])
    # 0 for the first, then |.9 - .2|, |.4 - .9| and |1 - .2|.
    assert teacher.metrics()["alp"] == pytest.approx((0 + 0.7 + 0.5 + 0.8) / 4)


def test_samples_stay_in_the_box_and_depend_on_the_seed_alone() -> None:
    one, other = ALPGMM([-1, 5], [1, 50], seed=3), ALPGMM([-1, 5], [1, 50], seed=3)
    for teacher in (one, other):
        for _ in range(15):
            knobs = teacher.sample(20)
            assert (knobs >= [-1, 5]).all()
            assert (knobs <= [1, 50]).all()
            teacher.observe(knobs, np.abs(np.sin(knobs[:, 0] * 3)))
    assert one.sample(50).tolist() == other.sample(50).tolist()
    assert one.sample(5).tolist() != ALPGMM([-1, 5], [1, 50], seed=4).sample(5).tolist()


def test_a_restored_teacher_continues_identically() -> None:
    whole = ALPGMM(0, 1, seed=2, fit_every=40, max_components=4, capacity=100)
    for _ in range(7):
        knobs = whole.sample(20)
        whole.observe(knobs, knobs[:, 0] ** 2)
    restored = ALPGMM(0, 1, seed=2, fit_every=40, max_components=4, capacity=100)
    restored.load_state_dict(whole.state_dict())
    for _ in range(5):
        knobs, again = whole.sample(20), restored.sample(20)
        assert knobs.tolist() == again.tolist()
        whole.observe(knobs, np.cos(knobs[:, 0]))
        restored.observe(again, np.cos(again[:, 0]))
    assert restored.metrics() == whole.metrics()
    with pytest.raises(ValueError, match="state is of another teacher"):
        ALPGMM(0, 2, seed=2).load_state_dict(whole.state_dict())
    with pytest.raises(ValueError, match="must be what ALPGMM.state_dict"):
        restored.load_state_dict({})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "the state has version 2"),
        ({"rewards": None}, "rewards must be finite numbers of shape"),
        ({"tasks": np.zeros((3, 1))}, r"rewards must be finite numbers of shape \(3,\)"),
        ({"means": np.full((2, 1), np.nan)}, "means must be finite"),
        ({"observed": 39}, "40 tasks of 39 observed"),
        ({"generator": {"bit_generator": "Philox"}}, "'state' is missing"),
    ],
)
def test_a_damaged_state_changes_nothing(change: dict, message: str) -> None:
    teacher = ALPGMM(0, 1, seed=2, fit_every=40, max_components=2, capacity=100)
    knobs = teacher.sample(40)
    teacher.observe(knobs, knobs[:, 0])
    state = teacher.state_dict()
    with pytest.raises(ValueError, match=message):
        teacher.load_state_dict({**state, **change})
    assert len(state["weights"]) == 2
    cut = {key: value for key, value in state.items() if key != "factors"}
    with pytest.raises(ValueError, match="the state is damaged: 'factors' is missing"):
        teacher.load_state_dict(cut)
    restored = ALPGMM(0, 1, seed=2, fit_every=40, max_components=2, capacity=100)
    restored.load_state_dict(state)
    assert teacher.sample(9).tolist() == restored.sample(9).tolist()


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((1, 0), {}, "low must be below high"),
        (([0, 0], [1]), {}, "low must be below high"),
        ((0, float("nan")), {}, "high must be"),
        ((0, 1), {"fit_every": 5}, "fit_every must be at least 2"),
        ((0, 1), {"max_components": 1}, "max_components must be at least 2"),
        ((0, 1), {"random_share": 2}, "random_share must be a number in"),
        ((0, 1), {"capacity": 10}, "capacity must be at least fit_every"),
        ((0, 1), {"seed": -1}, "seed must be an integer of at least 0"),
    ],
)
def test_bad_arguments(args, kwargs, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ALPGMM(*args, **kwargs)


def test_bad_observations_change_nothing() -> None:
    teacher = ALPGMM(0, 1)
    for knobs, rewards, message in (
        ([[0.5], [float("nan")]], [1, 1], "knobs must be finite"),
        ([[0.5]], [1, 1], r"rewards must have shape \(1,\)"),
        ([0.5], [1], r"knobs must have shape \(n, 1\)"),
        ([[0.5]], [float("inf")], "rewards must be finite"),
        ([[0.5]], [-1e31], r"rewards must be at most 1e30 in size, got 1e\+31"),
    ):
        with pytest.raises(ValueError, match=message):
            teacher.observe(knobs, rewards)
    assert teacher.metrics()["tasks"] == 0


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    # At once, not at the first fit, hours later.
    with pytest.raises(ImportError, match=r"pip install 'sec-grpo\[teachers\]'"):
        ALPGMM(0, 1)


def test_a_fit_that_fails_leaves_the_teacher_as_it_was() -> None:
    teacher, twin = (ALPGMM(0, 1, fit_every=20, max_components=3) for _ in range(2))
    for one in (teacher, twin):
        one.observe(np.linspace(0, 1, 15)[:, None], np.arange(15.0))
    far = np.linspace(0, 1e200, 30)[:, None]
    with pytest.raises(ValueError, match="infinity|infs|ill-defined"), np.errstate(all="ignore"):
        teacher.observe(far, np.arange(30.0))
    assert teacher.state_dict() == twin.state_dict()
    for one in (teacher, twin):
        one.observe(np.linspace(0, 1, 25)[:, None], np.arange(25.0))
    assert teacher.sample(9).tolist() == twin.sample(9).tolist()


@pytest.mark.parametrize("size", [1.0, 1e9, 1e30])
def test_rewards_of_any_size_and_repeated_tasks_are_fitted(size: float, recwarn) -> None:
    teacher = ALPGMM(0, 1, seed=1, fit_every=50, max_components=5)
    rng = np.random.default_rng(0)
    for _ in range(4):
        knobs = rng.integers(0, 3, (50, 1)) / 2
        # Coin flips at 1, the same reward elsewhere.
        teacher.observe(knobs, size * np.where(knobs[:, 0] == 1, rng.integers(0, 2, 50), 1.0))
    assert np.mean(teacher.sample(500) > 0.9) > 0.6
    assert not recwarn.list


def test_the_state_is_of_plain_objects() -> None:
    fresh, taught = ALPGMM([0, 0], [1, 2], seed=5), ALPGMM([0, 0], [1, 2], seed=5, fit_every=20)
    knobs = taught.sample(30)
    taught.observe(knobs, knobs[:, 0])
    for teacher, fit_every in ((fresh, 250), (taught, 20)):
        restored = ALPGMM([0, 0], [1, 2], seed=5, fit_every=fit_every)
        restored.load_state_dict(json.loads(json.dumps(teacher.state_dict())))
        assert restored.sample(20).tolist() == teacher.sample(20).tolist()
        restored.observe(knobs, knobs[:, 1])
        teacher.observe(knobs, knobs[:, 1])
        assert restored.state_dict() == teacher.state_dict()
