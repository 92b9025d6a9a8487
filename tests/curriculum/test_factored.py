"""Independent features: the product of their strategies, beside loops in numpy."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from sec_grpo.curriculum import (
    DUMP,
    SEC,
    BetaThompson,
    Curriculum,
    CurriculumStateError,
    Factored,
    Floor,
    Learnability,
    Ordered,
    Random,
    StaticWeights,
    Strategy,
)

# Two features; (3, "a") has no prompt, and labels differ in how many prompts they have.
CELLS = ((1, "a"), (1, "b"), (2, "a"), (2, "b"), (3, "b"))
PROMPTS = [cell for size, cell in zip((9, 4, 7, 3, 5), CELLS, strict=True) for _ in range(size)]
B, G = 16, 4


def batch_of(curriculum: Curriculum, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw and observe; the strength of |A| depends on both features."""
    indices = curriculum.draw(B)
    rewards = np.random.default_rng(number).random((B, G))
    rewards *= [
        [level * (1.0 + 2.0 * (kind == "a"))] for level, kind in map(PROMPTS.__getitem__, indices)
    ]
    advantages = rewards - rewards.mean(axis=1, keepdims=True)
    curriculum.observe(indices, advantages=advantages, rewards=rewards)
    return indices, advantages, rewards


def product(by_feature: list[dict[Any, float]]) -> list[float]:
    weights = np.array([by_feature[0][level] * by_feature[1][kind] for level, kind in CELLS])
    return (weights / weights.sum()).tolist()


def softmax(values: dict[Any, float], temperature: float) -> dict[Any, float]:
    total = sum(np.exp(value / temperature) for value in values.values())
    return {label: np.exp(value / temperature) / total for label, value in values.items()}


def test_sec_for_each_feature_beside_a_loop() -> None:
    alpha, temperature = 0.3, 0.2
    curriculum = Curriculum(PROMPTS, Factored(SEC(alpha, temperature)), seed=5)
    assert curriculum.arms == CELLS
    scores: list[dict[Any, float]] = [{1: 0.0, 2: 0.0, 3: 0.0}, {"a": 0.0, "b": 0.0}]
    for number in range(25):
        indices, advantages, _ = batch_of(curriculum, number)
        for place, score in enumerate(scores):
            seen = defaultdict(list)
            for index, row in zip(indices, advantages, strict=True):
                seen[PROMPTS[index][place]] += np.abs(row).tolist()
            for label, values in seen.items():
                score[label] = alpha * np.mean(values) + (1 - alpha) * score[label]
        chances = [softmax(score, temperature) for score in scores]
        assert curriculum.probabilities() == pytest.approx(product(chances), abs=1e-7)
        sums = [scores[0][level] + scores[1][kind] for level, kind in CELLS]
        assert curriculum.values() == pytest.approx(sums, rel=1e-12)
        for table, score, chance in zip(
            curriculum.strategy.feature_tables(), scores, chances, strict=True
        ):
            assert table["labels"] == tuple(score)
            assert table["probability"] == pytest.approx([*chance.values()], abs=1e-7)
            assert table["value"] == pytest.approx([*score.values()], rel=1e-12)
    assert scores[0][2] > scores[0][1] + 0.1
    assert scores[1]["a"] > scores[1]["b"] + 0.1


def test_each_feature_sees_what_a_curriculum_of_its_own_would_see() -> None:
    """Whatever the strategies: their marginals are those of one-feature curricula, fed the same."""
    strategies = [DUMP(window=20), Learnability(success_threshold=1.0)]
    both = Curriculum(PROMPTS, Factored(strategies), seed=2)
    alone = [
        Curriculum([cell[place] for cell in PROMPTS], strategy)
        for place, strategy in enumerate(strategies)
    ]
    for number in range(12):
        indices, advantages, rewards = batch_of(both, number)
        for single in alone:
            single.draw(1)
            single.observe(indices, advantages=advantages, rewards=rewards)
        tables = both.strategy.feature_tables()
        for table, single in zip(tables, alone, strict=True):
            assert table["probability"].tolist() == single.probabilities().tolist()
            assert table["value"].tolist() == single.values().tolist()
        chances = [
            dict(zip(table["labels"], table["probability"], strict=True)) for table in tables
        ]
        assert both.probabilities() == pytest.approx(product(chances), abs=1e-7)


@dataclass(frozen=True)
class Spy(Strategy):
    """Notes what the hooks are given."""

    def on_bind(self, arms: tuple, sizes: np.ndarray) -> None:
        self.memory.update(arms=arms, sizes=sizes.tolist(), calls=[])

    def before_draw(self, step: int) -> None:
        self.memory["calls"].append(f"before {step}")

    def after_draw(self, step: int) -> None:
        self.memory["calls"].append(f"after {step}")

    def observe(self, feedback: Any) -> None:
        labels = [self.arms[arm] for arm in feedback.arm_indices()]
        self.memory["calls"].append(
            (
                feedback.step,
                labels,
                dict(
                    zip(
                        [self.arms[arm] for arm in feedback.arms],
                        feedback.groups.tolist(),
                        strict=True,
                    )
                ),
            )
        )


def test_hooks_and_sizes_of_each_feature() -> None:
    curriculum = Curriculum(PROMPTS, Factored(Spy()), seed=1)
    indices, _, _ = batch_of(curriculum, 0)
    state = curriculum.strategy.state_dict()["factors"]
    for place, (arms, sizes) in enumerate([((1, 2, 3), [13, 10, 5]), (("a", "b"), [16, 12])]):
        memory = state[place]["strategy"]
        labels = [PROMPTS[i][place] for i in indices]
        counts = {label: labels.count(label) for label in dict.fromkeys(labels)}
        assert memory["arms"] == arms
        assert memory["sizes"] == sizes
        assert memory["calls"] == ["before 0", "after 1", (1, labels, counts)]


def test_schedules_multiply() -> None:
    curriculum = Curriculum(PROMPTS, Factored([Ordered(6), StaticWeights((1, 3))]))
    seen = []
    for _ in range(8):
        seen.append(curriculum.probabilities().tolist())
        curriculum.draw(3)
    assert seen == [
        pytest.approx(row)
        for row in [[0.25, 0.75, 0, 0, 0]] * 2 + [[0, 0, 0.25, 0.75, 0]] * 2 + [[0, 0, 0, 0, 1]] * 4
    ]
    assert np.isnan(curriculum.values()).all()  # StaticWeights holds nothing


def test_no_arm_left_is_said() -> None:
    """Level 3 comes when the kind is still "a", and no prompt is (3, "a")."""
    with pytest.raises(ValueError, match="leave no arm that has prompts a probability: each gives"):
        Curriculum(PROMPTS, Factored([StaticWeights((0, 0, 1)), StaticWeights((1, 0))]))
    curriculum = Curriculum(PROMPTS, Factored([Ordered(3), StaticWeights((1, 0))]))
    curriculum.draw(2)
    with pytest.raises(ValueError, match="leave no arm that has prompts a probability"):
        curriculum.draw(2)


@pytest.mark.parametrize(
    "strategies",
    [
        SEC(temperature=0.1),
        [SEC(temperature=0.3, undrawn="decay"), Ordered(60)],
        [DUMP(window=9), Floor(SEC(temperature=0.05), 0.1)],
        [BetaThompson(), Random()],
        [Factored(SEC()), Random()],
    ],
    ids=str,
)
def test_continues_bit_for_bit(strategies) -> None:
    prompts: list[Any] = list(PROMPTS)
    if isinstance(strategies, list) and isinstance(strategies[0], Factored):
        prompts = [((level, kind), kind) for level, kind in PROMPTS]  # a feature of two features
    whole = Curriculum(prompts, Factored(strategies), seed=1)
    for number in range(9):
        batch_of(whole, number)
    restored = Curriculum(prompts, Factored(strategies), seed=2)
    restored.load_state_dict(whole.state_dict())
    for number in range(9, 30):
        first, second = batch_of(whole, number), batch_of(restored, number)
        assert first[0].tolist() == second[0].tolist()
        assert whole.probabilities().tolist() == restored.probabilities().tolist()
    assert whole.to_bytes() == restored.to_bytes()


def test_state_of_other_strategies_is_refused() -> None:
    state = Curriculum(PROMPTS, Factored(SEC())).state_dict()
    for other in (SEC(), Factored(SEC(alpha=0.1)), Factored([SEC(), SEC()]), Factored(Random())):
        curriculum = Curriculum(PROMPTS, other)
        with pytest.raises(CurriculumStateError, match="strategy"):
            curriculum.load_state_dict(state)


@dataclass(frozen=True)
class Fussy(Strategy):
    """Refuses every third batch."""

    def observe(self, feedback: Any) -> None:
        self.memory["batches"] = self.memory.get("batches", 0) + 1
        if self.memory["batches"] % 3 == 0:
            raise ValueError("not this one")


def test_a_batch_that_one_strategy_refuses_is_seen_by_none() -> None:
    curriculum = Curriculum(PROMPTS, Factored([SEC(), Fussy()]), seed=4)
    batch_of(curriculum, 0)
    batch_of(curriculum, 1)
    before = curriculum.strategy.feature_tables()[0]["value"].tolist()
    assert max(before) > 0.1
    indices = curriculum.draw(B)
    state = curriculum.to_bytes()
    for _ in range(2):
        with pytest.raises(ValueError, match="not this one"):
            curriculum.observe(indices, advantages=np.ones((B, G)))
        assert curriculum.strategy.feature_tables()[0]["value"].tolist() == before
        assert curriculum.to_bytes() == state


def test_a_refused_batch_is_taken_back_from_windows_too() -> None:
    # Two arms in the first feature: as many as DUMP's windows have rows once both are seen.
    curriculum = Curriculum([(1, "a"), (2, "b")], Factored([DUMP(), Fussy()]))
    curriculum.observe([0], advantages=[[0.5]])
    curriculum.observe([0], advantages=[[0.5]])
    before = curriculum.to_bytes()
    with pytest.raises(ValueError, match="not this one"):
        curriculum.observe([0, 1], advantages=[[0.5], [0.1]])
    assert curriculum.to_bytes() == before


def test_labels_in_an_order_of_ones_own() -> None:
    strategy = Factored(Ordered(20), labels=((2, 1, 3), ("b", "a")))
    curriculum = Curriculum(PROMPTS, strategy)
    assert curriculum.strategy.feature_tables()[0]["labels"] == (2, 1, 3)
    assert curriculum.probabilities().tolist() == [0, 0, 0, 1, 0]  # (2, "b")


@pytest.mark.parametrize(
    ("categories", "strategy", "message"),
    [
        ([1, 2], Factored(SEC()), "must be tuples with one label for each feature, .* got 1"),
        ([(1, 2), (1,)], Factored(SEC()), "must be tuples with one label for each feature"),
        ([(1, 2)], Factored([SEC()]), "strategies must be one for each of the 2 features .* got 1"),
        ([(1, 2)], Factored(SEC(), [(1,)]), "labels must be one for each of the 2 features"),
        ([(1, 2)], Factored(SEC(), [(1,), (5,)]), "is 2, which is not among the 1 arms"),
    ],
)
def test_refused_arms(categories, strategy, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Curriculum(categories, strategy)


@pytest.mark.parametrize("strategies", ["sec", [], None, [SEC(), "sec"], [SEC]])
def test_refused_strategies(strategies) -> None:
    with pytest.raises(TypeError, match=r"strategies must (be a Strategy|hold strategies) such as"):
        Factored(strategies)
