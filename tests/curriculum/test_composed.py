"""Composed strategies, the floor, and the registry."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from sec_grpo.curriculum import (
    DUMP,
    EMA,
    SEC,
    TSCL,
    UCB,
    Composed,
    Curriculum,
    CurriculumStateError,
    DiscountedBeta,
    Floor,
    Gaussian,
    Greedy,
    Learnability,
    Random,
    Softmax,
    Strategy,
    Thompson,
    Window,
    get_strategy,
    register_strategy,
    strategy_names,
)
from sec_grpo.curriculum import registry as registry_module
from sec_grpo.curriculum.thompson import gaussian_wins

CATEGORIES = np.arange(400) % 4
NEEDED = {
    "ordered": {"steps": 9},
    "reverse": {"steps": 9},
    "e2h_gaussian": {"steps": 9},
    "staged": {"stages": 2},
    "static_weights": {"weights": [1, 2, 3, 4]},
}


@pytest.mark.parametrize(
    ("composed", "named"),
    [
        (Composed("abs_advantage", EMA(0.5), Softmax(1.0)), SEC()),
        (Composed("abs_advantage", EMA(0.3, "decay"), Softmax(0.4)), SEC(0.3, 0.4, "decay")),
        (Composed("abs_advantage", Window(30), UCB(1.0, 0.1)), DUMP(window=30)),
        (Composed("success_variance", EMA(0.5), Softmax(0.05)), Learnability()),
        (Composed("learning_progress", EMA(0.4), Softmax(0.1)), TSCL(0.4, 0.1)),
    ],
)
def test_named_strategies_are_compositions(composed: Strategy, named: Strategy, play) -> None:
    one, other = Curriculum(CATEGORIES, composed, seed=4), Curriculum(CATEGORIES, named, seed=4)
    for batch, again in zip(play(one, 40), play(other, 40), strict=True):
        assert batch["indices"].tolist() == again["indices"].tolist()
        assert one.probabilities() == pytest.approx(other.probabilities(), abs=1e-9)


def test_signals_by_hand() -> None:
    rewards = np.array([[1.0, 0.0, 0.0, 0.2], [0.6, 0.6, 0.6, 0.6]])
    for signal, expected in (("abs_deviation", [0.35, 0.0]), ("regret", [0.7, 0.0])):
        curriculum = Curriculum([1, 2], Composed(signal, EMA(1.0)))
        curriculum.observe([0, 1], rewards=rewards)
        assert curriculum.values() == pytest.approx(expected)
    curriculum = Curriculum([1, 2], Composed("success_variance", EMA(1.0), success_threshold=0.2))
    curriculum.observe([0, 1], rewards=rewards)
    assert curriculum.values() == pytest.approx([0.25, 0.0])


def test_gaussian_and_thompson_beside_a_loop(play) -> None:
    strategy = Composed("regret", Gaussian(drift=0.1, noise=0.3, spread=0.8), Thompson())
    curriculum = Curriculum(CATEGORIES, strategy, seed=4)
    mean, variance = np.zeros(4), np.full(4, 0.64)
    for batch in play(curriculum, 20):
        variance += 0.01
        for arm in set(batch["arms"].tolist()):
            rewards = batch["rewards"][batch["arms"] == arm]
            value = np.mean([r.max() - r.mean() for r in rewards])
            gain = variance[arm] / (variance[arm] + 0.09 / len(rewards))
            mean[arm] += gain * (value - mean[arm])
            variance[arm] *= 1 - gain
        assert curriculum.values() == pytest.approx(mean)
        expected = gaussian_wins(mean, np.sqrt(variance))
        assert curriculum.probabilities() == pytest.approx(expected, abs=1e-6)


def test_discounted_beta_needs_a_rate() -> None:
    curriculum = Curriculum([1, 2], Composed("abs_advantage", DiscountedBeta()))
    with pytest.raises(ValueError, match=r"needs a signal in \[0, 1\], .*\[1.5, 1.5\]"):
        curriculum.observe([0], advantages=[[1.5, -1.5]])

    assert curriculum.to_bytes() == Curriculum([1, 2], curriculum.strategy).to_bytes()


def test_a_change_is_no_rate() -> None:
    with pytest.raises(ValueError, match=r"discounted_beta .* not learning_progress, .* negative"):
        Composed("learning_progress", DiscountedBeta())


def test_greedy_by_hand() -> None:
    curriculum = Curriculum([1, 2, 4], Composed("regret", EMA(1.0), Greedy(0.3)), arms=[1, 2, 3, 4])
    assert curriculum.probabilities() == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3])
    curriculum.observe([0, 1, 2], rewards=[[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    assert curriculum.probabilities() == pytest.approx([0.45, 0.45, 0, 0.1])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"signal": "loss"}, "signal must be one of abs_advantage, .*, got 'loss'"),
        ({"estimator": "mean"}, "estimator must be one of ema, window, discounted_beta, gaussian"),
        ({"estimator": {"alpha": 0.3}}, "estimator must be one of"),
        ({"estimator": {"name": "ema", "a": 1}}, "of estimator ema: a; it has: alpha, undrawn"),
        ({"allocator": {"name": "ucb", "c": -1}}, "c must be a finite number of at least 0"),
        ({"allocator": {"name": "greedy", "epsilon": 2}}, "epsilon must be a probability"),
        ({"estimator": {"name": "window", "size": 0}}, "size must be an integer of at least 1"),
        ({"estimator": EMA}, "estimator must be one of"),
    ],
)
def test_bad_parts(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Composed(**parameters)


def test_parts_by_name_and_by_mapping() -> None:
    made = get_strategy(
        "composed",
        signal="regret",
        estimator={"name": "gaussian", "drift": 0.1},
        allocator="thompson",
        floor=0.05,
    )
    assert made == Floor(Composed("regret", Gaussian(drift=0.1), Thompson()), 0.05)


def test_floor_by_hand(play) -> None:
    plain = Curriculum(CATEGORIES, SEC(temperature=0.05), seed=4)
    floored = Curriculum(CATEGORIES, Floor(SEC(temperature=0.05), 0.04), seed=4)
    for _ in play(floored, 30):
        pass
    # The same feedback for the plain one, so that both hold the same Q.
    again = Curriculum(CATEGORIES, Floor(SEC(temperature=0.05), 0.04), seed=4)
    for batch in play(again, 30):
        plain.observe(batch["indices"], advantages=batch["advantages"], rewards=batch["rewards"])
    assert floored.values().tolist() == plain.values().tolist()
    expected = 0.84 * plain.probabilities() + 0.04
    assert floored.probabilities() == pytest.approx(expected, abs=1e-9)
    assert floored.probabilities().min() > 0.0399


def test_floor_of_schedules_and_empty_arms() -> None:
    curriculum = Curriculum([0, 2] * 9, get_strategy("ordered", steps=2, floor=0.1), arms=[0, 1, 2])
    assert curriculum.probabilities() == pytest.approx([0.9, 0.0, 0.1])
    curriculum.draw(4)
    assert curriculum.probabilities() == pytest.approx([0.1, 0.0, 0.9])


def test_a_floor_costs_a_draw_nothing_when_the_strategy_waits_for_feedback() -> None:
    floored = Curriculum(CATEGORIES, Floor(SEC(), 0.04)).strategy
    assert floored.before_draw(0) is None
    assert floored.after_draw(1) is None
    scheduled = Curriculum(CATEGORIES, get_strategy("ordered", steps=8, floor=0.04)).strategy
    assert scheduled.after_draw(1) is None
    assert np.exp(scheduled.after_draw(2)) == pytest.approx([0.04, 0.88, 0.04, 0.04])


def test_floor_limits() -> None:
    assert Curriculum([0, 1, 2], Floor(SEC(), 1 / 3)).probabilities() == pytest.approx([1 / 3] * 3)
    with pytest.raises(ValueError, match="floor must be at most 1 / 3 with 3 arms .*, got 0.4"):
        Curriculum([0, 1, 2], Floor(SEC(), 0.4))
    with pytest.raises(ValueError, match=r"floor must be a probability in \[0, 1\], got -0.1"):
        Floor(SEC(), -0.1)
    with pytest.raises(TypeError, match="strategy must be a Strategy"):
        Floor("sec", 0.1)  # type: ignore[arg-type]


@pytest.mark.parametrize("floor", [None, 0.02])
@pytest.mark.parametrize("name", sorted(set(strategy_names())))
def test_every_strategy_continues_identically(name: str, floor: float | None, play) -> None:
    parameters = NEEDED.get(name, {})
    strategy = get_strategy(name, floor=floor, **parameters)
    assert pickle.loads(pickle.dumps(strategy)) == copy.copy(strategy) == strategy
    hash(strategy)
    whole = Curriculum(CATEGORIES, strategy, seed=3)
    for _ in play(whole, 7):
        pass
    restored = Curriculum(CATEGORIES, get_strategy(name, floor=floor, **parameters), seed=0)
    restored.load_bytes(whole.to_bytes())
    assert restored.to_bytes() == whole.to_bytes()
    for one, other in zip(play(whole, 6, 7), play(restored, 6, 7), strict=True):
        assert one["indices"].tolist() == other["indices"].tolist()
        assert restored.probabilities().tolist() == whole.probabilities().tolist()
    assert np.isclose(whole.probabilities().sum(), 1.0)
    if floor:
        assert whole.probabilities().min() >= floor * (1 - 1e-6)


@pytest.mark.parametrize("name", sorted(set(strategy_names())))
def test_every_strategy_with_one_arm_and_with_empty_arms(name: str, play) -> None:
    parameters = dict(NEEDED.get(name, {}))
    if name == "static_weights":
        parameters = {"weights": [1, 1, 1]}
    curriculum = Curriculum([1] * 5 + [3] * 5, get_strategy(name, **parameters), arms=[1, 2, 3])
    for _ in range(12):
        indices = curriculum.draw(4)
        assert 1 not in curriculum.arm_indices(indices)
        rewards = np.eye(4)[:, :3]
        curriculum.observe(indices, advantages=rewards - rewards.mean(1)[:, None], rewards=rewards)
        assert curriculum.probabilities()[1] == 0.0
    if name != "static_weights":
        alone = Curriculum([7, 7], get_strategy(name, **parameters))
        alone.observe(alone.draw(2), advantages=[[1.0, -1.0]] * 2, rewards=[[1.0, 0.0]] * 2)
        assert alone.probabilities().tolist() == [1.0]


@pytest.mark.parametrize("name", sorted(set(strategy_names())))
def test_every_strategy_takes_the_largest_values_and_refuses_larger_ones(name: str, play) -> None:
    parameters = {"warmup": 1} if name == "pac" else NEEDED.get(name, {})
    curriculum = Curriculum(CATEGORIES, get_strategy(name, **parameters), seed=3)
    huge = np.array([[1e30, -1e30], [-1e30, -1e30], [1e-300, 1e30], [0.0, 5e-324]])
    curriculum.draw(4)
    curriculum.observe(range(4), advantages=huge, rewards=huge)
    for _ in play(curriculum, 3):
        assert curriculum.probabilities().sum() == pytest.approx(1.0)
    before = curriculum.to_bytes()
    for given in ("advantages", "rewards"):
        arrays = {"advantages": huge, "rewards": huge, given: huge * 1.1}
        with pytest.raises(ValueError, match=rf"{given}\[0, 0\] must be finite and at most 1e30"):
            curriculum.observe(range(4), **arrays)
    assert curriculum.to_bytes() == before


def test_states_of_other_parameters_are_refused() -> None:
    state = Curriculum(CATEGORIES, Floor(SEC(), 0.1)).to_bytes()
    for other in (Floor(SEC(), 0.2), SEC(), Floor(Random(), 0.1), Floor(SEC(0.4), 0.1)):
        with pytest.raises(CurriculumStateError, match="strategy"):
            Curriculum(CATEGORIES, other).load_bytes(state)


@dataclass(frozen=True)
class Own(Strategy):
    """A strategy of one's own."""

    weight: float = 2.0

    def on_bind(self, arms: Any, sizes: Any) -> Any:
        return np.log([self.weight] + [1.0] * (len(arms) - 1))


def test_own_strategies_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "_STRATEGIES", dict(registry_module._STRATEGIES))
    register_strategy("own", Own)
    register_strategy("own", Own)
    made = get_strategy("own", weight=3.0, floor=0.1)
    assert Curriculum([1, 2], made).probabilities() == pytest.approx([0.7, 0.3])
    with pytest.raises(ValueError, match="strategy 'sec' is registered already"):
        register_strategy("sec", Own)
    with pytest.raises(TypeError, match="must be a subclass of sec_grpo.Strategy"):
        register_strategy("no", dict)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="lower-case name"):
        register_strategy("A:b", Own)


def test_own_strategies_by_path() -> None:
    assert get_strategy("sec_grpo.curriculum.dump:DUMP", window=5) == DUMP(window=5)
    for path in ("sec_grpo.curriculum.dump:Dump", "no.such.module:Class", ":x"):
        with pytest.raises(ValueError, match="is not the path of a strategy"):
            get_strategy(path)
    with pytest.raises(TypeError, match="must be a subclass"):
        get_strategy("math:pi")


def test_windows_of_many_arms_stay_small() -> None:
    num_arms = 100_000
    curriculum = Curriculum(np.arange(num_arms), DUMP())
    empty = len(curriculum.to_bytes())
    indices = curriculum.draw(256)
    curriculum.observe(indices, advantages=np.ones((256, 2)))
    # 300 float32 in base64 for an arm seen; the scores, all 0 before, take 7 bytes more each.
    assert len(curriculum.to_bytes()) - empty < 256 * 300 * 4 * 4 / 3 + 8 * num_arms
