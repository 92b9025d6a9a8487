"""The rivals of SEC, each against a twin of its rule in plain numpy loops."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from sec_grpo.curriculum import (
    DUMP,
    TSCL,
    Curriculum,
    Learnability,
    StaticWeights,
    Strategy,
    get_strategy,
)

CATEGORIES = np.arange(400) % 4
K, B, G = 4, 24, 6


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def batches(curriculum: Curriculum, count: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Draws with random rewards, arm 3 never solved: (arms, advantages, rewards, indices)."""
    generator = np.random.default_rng(5)
    for _ in range(count):
        indices = curriculum.draw(B)
        arms = CATEGORIES[indices]
        rewards = (generator.random((B, G)) < np.array([0.9, 0.5, 0.2, 0.0])[arms, None]) * 1.0
        advantages = rewards - rewards.mean(1, keepdims=True)
        yield arms, advantages, rewards, indices


def twin_learnability(alpha: float, tau: float) -> Callable[..., np.ndarray]:
    s = np.full(K, 0.5)

    def step(arms: np.ndarray, advantages: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        for c in set(arms.tolist()):
            s[c] = alpha * rewards[arms == c].mean() + (1 - alpha) * s[c]
        return softmax(s * (1 - s) / tau)

    return step


def twin_tscl(alpha: float, tau: float) -> Callable[..., np.ndarray]:
    q, last = np.zeros(K), [None] * K

    def step(arms: np.ndarray, advantages: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        for c in set(arms.tolist()):
            x = rewards[arms == c].mean()
            if last[c] is not None:
                q[c] = alpha * (x - last[c]) + (1 - alpha) * q[c]
            last[c] = x
        return softmax(np.abs(q) / tau)

    return step


def twin_dump(window: int, tau: float) -> Callable[..., np.ndarray]:
    history: list[list[float]] = [[] for _ in range(K)]

    def step(arms: np.ndarray, advantages: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        for c, group in zip(arms, advantages, strict=True):
            history[c].append(np.abs(group).mean())
        total = sum(map(len, history))
        scores = [
            (np.mean(h[-window:]) if h else 0.0) + math.sqrt(2 * math.log(total + 1) / (len(h) + 1))
            for h in history
        ]
        return softmax(np.array(scores) / tau)

    return step


CASES = [
    pytest.param(Learnability(0.3, 0.05), twin_learnability(0.3, 0.05), id="learnability"),
    pytest.param(TSCL(0.4, 0.1), twin_tscl(0.4, 0.1), id="tscl"),
    pytest.param(DUMP(window=30, temperature=0.1), twin_dump(30, 0.1), id="dump"),
    pytest.param(DUMP(window=2, temperature=0.5), twin_dump(2, 0.5), id="dump, small window"),
]


@pytest.mark.parametrize(("strategy", "twin"), CASES)
def test_follows_its_rule(strategy: Strategy, twin: Callable[..., np.ndarray]) -> None:
    curriculum = Curriculum(CATEGORIES, strategy, seed=2)
    assert curriculum.probabilities() == pytest.approx(np.full(K, 0.25))
    for arms, advantages, rewards, indices in batches(curriculum, 60):
        curriculum.observe(indices, advantages=advantages, rewards=rewards)
        expected = twin(arms, advantages, rewards)
        # Integer weights round probabilities by far less than 1e-9, DUMP's float32 window by less
        # than 2^-24 of |A| over the temperature.
        tolerance = 1e-6 if isinstance(strategy, DUMP) else 1e-9
        assert curriculum.probabilities() == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("name", ["learnability", "tscl", "dump"])
def test_a_restored_curriculum_continues_identically(name: str) -> None:
    whole = Curriculum(CATEGORIES, get_strategy(name), seed=3)
    for _, advantages, rewards, indices in batches(whole, 7):
        whole.observe(indices, advantages=advantages, rewards=rewards)
    restored = Curriculum(CATEGORIES, get_strategy(name), seed=0)
    restored.load_state_dict(whole.state_dict())
    assert restored.values().tolist() == whole.values().tolist()
    for (_, advantages, rewards, indices), again in zip(
        batches(whole, 5), batches(restored, 5), strict=True
    ):
        assert indices.tolist() == again[3].tolist()
        whole.observe(indices, advantages=advantages, rewards=rewards)
        restored.observe(indices, advantages=advantages, rewards=rewards)
        assert restored.probabilities().tolist() == whole.probabilities().tolist()


def test_learnability_by_hand() -> None:
    curriculum = Curriculum([1, 2], Learnability(alpha=0.5, temperature=0.1))
    curriculum.observe([0], rewards=[[1.0, 1.0, 1.0, 0.0]])
    # s = 0.5 * 0.75 + 0.5 * 0.5 = 0.625; s (1 - s) = 0.234375; the other arm keeps 0.25.
    assert curriculum.values().tolist() == [0.234375, 0.25]


def test_format_rewards_are_no_success() -> None:
    curriculum = Curriculum([1, 2], Learnability(alpha=1.0))
    curriculum.observe([0, 1], rewards=[[0.1, 0.0, 0.1, 0.1], [1.0, 0.1, 1.0, 0.1]])
    assert curriculum.values().tolist() == [0.0, 0.25]
    strict = Curriculum([1, 2], Learnability(alpha=1.0, success_threshold=0.1))
    strict.observe([0, 1], rewards=[[0.1, 0.0, 0.1, 0.1], [1.0, 0.1, 1.0, 0.1]])
    assert strict.values().tolist() == [0.1875, 0.0]


def test_static_weights() -> None:
    curriculum = Curriculum([1, 2, 3], StaticWeights([1, 0, 3]))
    assert curriculum.probabilities() == pytest.approx([0.25, 0.0, 0.75], abs=1e-9)
    curriculum.observe([0], rewards=[[1.0, 0.0]])
    assert curriculum.probabilities() == pytest.approx([0.25, 0.0, 0.75], abs=1e-9)
    with pytest.raises(ValueError, match=r"one for each of the 3 arms \(1, 2, 3\), got 2"):
        Curriculum([1, 2, 3], StaticWeights([1, 2]))
    with pytest.raises(ValueError, match="above 0 for at least one arm that has prompts"):
        Curriculum([1, 2], StaticWeights([0, 0, 1]), arms=[1, 2, 3])


def test_static_weights_by_label() -> None:
    curriculum = Curriculum(["b", "a", "c"], StaticWeights({"c": 3, "a": 1, "b": 0}))
    assert curriculum.probabilities() == pytest.approx([0.25, 0.0, 0.75], abs=1e-9)
    again = Curriculum(["b", "a", "c"], StaticWeights({"a": 1, "b": 0, "c": 3.0}), seed=9)
    again.load_state_dict(curriculum.state_dict())  # the order of the mapping is no parameter
    with pytest.raises(ValueError, match=r"weights must name arms \('a', 'b'\), got 'd'"):
        Curriculum(["a", "b"], StaticWeights({"a": 1, "b": 1, "d": 1}))
    with pytest.raises(ValueError, match=r"weights must name every arm .*, 'b' is missing"):
        Curriculum(["a", "b"], StaticWeights({"a": 1}))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: StaticWeights([1, -1]), ValueError, "weights must be finite numbers of at least"),
        (lambda: StaticWeights([float("nan")]), ValueError, "weights"),
        (lambda: StaticWeights("12"), TypeError, "weights"),
        (lambda: StaticWeights(3), TypeError, "weights"),
        (lambda: StaticWeights({0: 1.0, 1: -3.0}), ValueError, "one for each arm, got {0: 1.0"),
        (lambda: Learnability(alpha=0), ValueError, r"alpha must be a number in \(0, 1\], got 0"),
        (lambda: TSCL(alpha=1.5), ValueError, "alpha"),
        (lambda: TSCL(temperature=-1), ValueError, "temperature must be a finite number above 0"),
        (lambda: Learnability(success_threshold="1"), TypeError, "success_threshold"),
        (lambda: DUMP(window=0), ValueError, "window must be an integer of at least 1"),
        (lambda: DUMP(temperature=0), ValueError, "temperature"),
    ],
)
def test_bad_parameters(make: Callable[[], Strategy], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_missing_feedback_changes_nothing() -> None:
    for strategy, given in (
        (Learnability(), {"advantages": [[1.0, -1.0]]}),
        (TSCL(), {"advantages": [[1.0, -1.0]]}),
        (DUMP(), {"rewards": [[1.0, 0.0]]}),
    ):
        curriculum = Curriculum([1, 2], strategy)
        before = curriculum.to_bytes()
        with pytest.raises(ValueError, match=r"give observe\("):
            curriculum.observe([0], **given)
        assert curriculum.to_bytes() == before
