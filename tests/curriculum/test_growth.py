"""Prompts and arms added while training."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from sec_grpo.curriculum import (
    SEC,
    Curriculum,
    CurriculumStateError,
    Factored,
    Floor,
    Random,
    Reverse,
    Strategy,
    get_strategy,
    strategy_names,
)

FIRST = ["b"] * 12 + ["d"] * 9
MORE = ["d", "a", "b", "d", "c", "a", "b"]
NEEDED = {
    "ordered": {"steps": 40},
    "reverse": {"steps": 40},
    "e2h_gaussian": {"steps": 40},
    "staged": {"stages": 9},
    "static_weights": {"weights": {"a": 1, "b": 2, "c": 3, "d": 4}},
}


def advance(curriculum: Curriculum, steps: int) -> list[int]:
    drawn = []
    for _ in range(steps):
        indices = curriculum.draw(8)
        rewards = (indices[:, None] * 7 + np.arange(4) + curriculum.step) % 5 / 4.0
        curriculum.observe(indices, advantages=rewards - rewards.mean(), rewards=rewards)
        drawn += indices.tolist()
    return drawn


def test_new_arms_come_last_and_join() -> None:
    curriculum = Curriculum(FIRST, SEC(temperature=0.3), seed=1)
    advance(curriculum, 5)
    q = curriculum.values().tolist()
    assert curriculum.add(MORE).tolist() == list(range(21, 28))
    assert curriculum.arms == ("b", "d", "a", "c")
    assert curriculum.num_prompts == 28
    assert curriculum.values().tolist() == [*q, 0.0, 0.0]
    assert curriculum.arm_table()["prompts"].tolist() == [14, 11, 2, 1]
    assert curriculum.arm_indices([21, 22, 23, 25]).tolist() == [1, 2, 0, 3]
    # Every prompt is drawn, and inside an arm as often as the others from now on.
    curriculum = Curriculum(FIRST, Random(), seed=1)
    curriculum.add(MORE)
    counts = np.bincount(advance(curriculum, 100), minlength=28)
    for arm, label in enumerate(curriculum.arms):
        mine = counts[[label == other for other in FIRST + MORE]]
        assert np.ptp(mine) <= 1, arm


def test_the_epoch_goes_on_over_old_and_new() -> None:
    curriculum = Curriculum(["x"] * 10)
    drawn = curriculum.draw(4).tolist()
    curriculum.add(["x"] * 3)
    drawn += curriculum.draw(9).tolist()
    assert sorted(drawn) == list(range(13))
    assert sorted(curriculum.draw(13).tolist()) == list(range(13))


def test_other_arms_are_not_disturbed() -> None:
    def order_of_b(grow: bool) -> list[int]:
        curriculum = Curriculum(FIRST, get_strategy("random"), seed=4)
        drawn: list[int] = []
        for step in range(30):
            drawn += curriculum.draw(5).tolist()
            if grow and step % 4 == 1:
                curriculum.add(["d", "new"])
        return [index for index in drawn if index < 12]

    # The shares change, so one run sees more of the arm than the other: the order is the same.
    grown, plain = order_of_b(True), order_of_b(False)
    count = min(len(grown), len(plain))
    assert count > 30
    assert grown[:count] == plain[:count]


@pytest.mark.parametrize("floor", [None, 0.01])
@pytest.mark.parametrize("name", sorted(strategy_names()))
def test_every_strategy_grows_and_resumes(name: str, floor: float | None) -> None:
    parameters = NEEDED.get(name, {})

    def make(categories: list[str], seed: int = 1) -> Curriculum:
        strategy = get_strategy(name, floor=floor, **parameters)
        arms = None if len(categories) > len(FIRST) else ["b", "d"]
        if name == "static_weights" and len(categories) == len(FIRST):
            arms = ["b", "d", "a", "c"]
        if arms is None:
            arms = ["b", "d", "a", "c"]
        return Curriculum(categories, strategy, seed, arms=arms)

    whole = make(FIRST)
    advance(whole, 7)
    before = dict(zip(whole.arms, whole.probabilities(), strict=True))
    whole.add(MORE)
    after = dict(zip(whole.arms, whole.probabilities(), strict=True))
    assert sum(after.values()) == pytest.approx(1.0)
    if before["d"] > 0 and name in ("sec", "dump", "learnability", "tscl"):
        # What was learned of the old arms stays.
        assert after["b"] / after["d"] == pytest.approx(before["b"] / before["d"], rel=0.3)
    advance(whole, 5)
    whole.add(["c"] * 4)
    advance(whole, 3)
    restored = make([*FIRST, *MORE, *["c"] * 4], seed=9)
    restored.load_bytes(whole.to_bytes())
    assert restored.to_bytes() == whole.to_bytes()
    assert advance(restored, 25) == advance(whole, 25)
    assert restored.to_bytes() == whole.to_bytes()
    assert restored.arm_table()["draws"].tolist() == whole.arm_table()["draws"].tolist()
    # Or on one that grows again before it loads.
    again = make(FIRST, seed=3)
    again.add(MORE)
    again.add(["c"] * 4)
    again.load_bytes(whole.to_bytes())
    assert advance(again, 5) == advance(whole, 5)
    with pytest.raises(CurriculumStateError, match="another data set"):
        make(FIRST).load_bytes(whole.to_bytes())


def test_added_one_by_one_as_a_generator_would() -> None:
    curriculum = Curriculum([0], SEC(temperature=0.2), seed=2)
    labels = [0]
    for step in range(300):
        labels.append(step % 5)
        curriculum.add([step % 5])
        indices = curriculum.draw(4)
        curriculum.observe(indices, advantages=np.ones((4, 2)) * (indices[:, None] % 3))
        assert (indices < len(labels)).all()
    assert curriculum.arm_indices(np.arange(301)).tolist() == labels
    state = curriculum.to_bytes()
    rebuilt = Curriculum(labels, SEC(temperature=0.2))
    rebuilt.load_bytes(state)
    assert rebuilt.draw(500).tolist() == curriculum.draw(500).tolist()


@pytest.mark.parametrize("labels", [[], [None], [float("nan")], "ab", [["x"]], [{}]])
def test_bad_labels_change_nothing(labels: object) -> None:
    curriculum = Curriculum(FIRST)
    before = curriculum.to_bytes()
    with pytest.raises((TypeError, ValueError)):
        curriculum.add(labels)
    assert curriculum.to_bytes() == before
    assert curriculum.arms == ("b", "d")


def test_a_strategy_that_refuses_changes_nothing() -> None:
    class Picky(Strategy):
        def on_grow(self, step: int) -> np.ndarray:
            if step < 3:
                raise RuntimeError("not yet")
            return np.full(len(self.arms), np.nan)

    for strategy, error in (
        (Picky(), RuntimeError),
        (get_strategy("static_weights", weights=[1, 2]), ValueError),
    ):
        curriculum = Curriculum(FIRST, strategy)
        before = curriculum.to_bytes()
        with pytest.raises(error):
            curriculum.add(["new"])
        assert curriculum.to_bytes() == before
        assert curriculum.num_prompts == 21
    curriculum = Curriculum(FIRST, Picky())
    advance(curriculum, 3)
    with pytest.raises(ValueError, match="strategy Picky must return log-weights"):
        curriculum.add(["new"])
    assert curriculum.num_arms == 2


def test_features_grow_too() -> None:
    first = [(1, "a"), (2, "a"), (1, "b")] * 4
    curriculum = Curriculum(first, Factored(SEC(temperature=0.3)), seed=1)
    curriculum.observe([0, 1, 2], advantages=[[1.0], [0.2], [0.5]])
    # Q of the levels .375 (mean of 1 and .5, halved) and .1, of the kinds .3 and .25.
    assert curriculum.values() == pytest.approx([0.675, 0.625, 0.4])
    curriculum.add([(2, "b"), (3, "a")])
    assert curriculum.arms[3:] == ((2, "b"), (3, "a"))
    # A combination that is new knows both of its labels; level 3 is new, with Q = 0.
    assert curriculum.values() == pytest.approx([0.675, 0.625, 0.4, 0.35, 0.3])
    weights = np.exp(curriculum.values() / 0.3)
    assert curriculum.probabilities() == pytest.approx(weights / weights.sum())
    rebuilt = Curriculum(
        [*first, (2, "b"), (3, "a")], Factored(SEC(temperature=0.3)), arms=curriculum.arms
    )
    rebuilt.load_bytes(curriculum.to_bytes())
    assert rebuilt.draw(50).tolist() == curriculum.draw(50).tolist()


def test_a_feature_with_a_new_label_in_the_middle_resumes() -> None:
    first, more = [(1, "a"), (3, "a"), (1, "b"), (3, "b")] * 5, [(2, "a"), (2, "b")] * 5
    whole = Curriculum(first, Factored(SEC(temperature=0.2)), seed=1)
    whole.add(more)
    taught = {1: 0.1, 2: 0.5, 3: 0.9}
    advantages = [[taught[level]] for level, _ in first + more]
    whole.observe(range(30), advantages=advantages)
    # Built on all prompts, the levels of the feature are sorted; those of the state are not.
    rebuilt = Curriculum(first + more, Factored(SEC(temperature=0.2)), arms=whole.arms)
    rebuilt.load_bytes(whole.to_bytes())
    assert [table["labels"] for table in rebuilt.strategy.feature_tables()] == [
        (1, 3, 2),
        ("a", "b"),
    ]
    assert rebuilt.values().tolist() == whole.values().tolist()
    for curriculum in (whole, rebuilt):
        curriculum.observe(range(30), advantages=advantages)
    assert rebuilt.probabilities().tolist() == whole.probabilities().tolist()
    assert rebuilt.to_bytes() == whole.to_bytes()


def test_features_in_an_order_of_ones_own_grow_and_resume() -> None:
    first, more = [("b", 1), ("a", 1), ("b", 2)] * 4, [("c", 2), ("a", 2)]

    def grown() -> Curriculum:
        curriculum = Curriculum(first, Factored(SEC(), [("b", "a"), (2, 1)]), seed=1)
        curriculum.add(more)
        return curriculum

    whole, again = grown(), grown()
    whole.observe([0, 1, 12], advantages=[[0.9], [0.2], [0.5]])
    for curriculum in (again, whole):
        curriculum.load_bytes(whole.to_bytes())
    assert whole.strategy.feature_tables()[0]["labels"] == ("b", "a", "c")
    assert again.to_bytes() == whole.to_bytes()
    assert again.draw(50).tolist() == whole.draw(50).tolist()


@pytest.mark.parametrize(
    "strategy", [Floor(SEC(), 0.05), Factored(SEC()), Floor(Factored(SEC()), 0.1)]
)
def test_an_arm_that_gets_its_first_prompts_resumes(strategy: Strategy) -> None:
    arms = [(0, "a"), (1, "a"), (2, "a")]
    first, more = [arms[0], arms[2]] * 10, [arms[1]] * 5
    whole = Curriculum(first, strategy, seed=1, arms=arms)
    whole.observe([0, 1], advantages=[[0.2], [0.9]])
    whole.add(more)
    rebuilt = Curriculum(first + more, strategy, arms=arms)
    rebuilt.load_bytes(whole.to_bytes())
    for curriculum in (whole, rebuilt):
        curriculum.observe([0, 20], advantages=[[0.1], [0.7]])
    assert rebuilt.to_bytes() == whole.to_bytes()
    assert rebuilt.draw(50).tolist() == whole.draw(50).tolist()


@pytest.mark.parametrize("floor", [None, 0.0])
def test_schedules_of_features_that_grew_past_their_start_resume(floor: float | None) -> None:
    def grown() -> Curriculum:
        strategy: Strategy = Factored(Reverse(4))
        strategy = strategy if floor is None else Floor(strategy, floor)
        curriculum = Curriculum([(1, "a"), (2, "b")], strategy)
        assert [curriculum.draw(2).tolist() for _ in range(3)] == [[1, 1], [1, 1], [0, 0]]
        # Anew it would start at (3, "b"), which no prompt has.
        curriculum.add([(3, "a")])
        return curriculum

    whole = grown()
    whole.draw(2)
    restored = grown()
    restored.load_bytes(whole.to_bytes())
    assert restored.to_bytes() == whole.to_bytes()
    assert restored.draw(20).tolist() == whole.draw(20).tolist() == [0] * 20


def test_own_strategies_keep_the_arms_that_they_gave_up() -> None:
    class FirstOnly(Strategy):
        def on_bind(self, arms: tuple, sizes: np.ndarray) -> np.ndarray:
            return np.where(
                np.arange(len(arms)) < 2, [0.0, np.log(3.0), 0.0, 0.0][: len(arms)], -np.inf
            )

    curriculum = Curriculum(["a", "b", "c"], FirstOnly(), arms=["a", "b", "c", "d"])
    assert curriculum.probabilities() == pytest.approx([0.25, 0.75, 0.0, 0.0])
    curriculum.add(["c", "d"])
    # "c" had prompts and was given up; "d" had none, and weighs as much as "a" and "b" on average.
    assert curriculum.probabilities() == pytest.approx(np.array([0.25, 0.75, 0.0, 0.5]) / 1.5)
    within = Curriculum(["a", "b", "c"], Floor(FirstOnly(), 0.0), arms=["a", "b", "c", "d"])
    within.add(["c", "d"])
    assert within.probabilities() == pytest.approx(np.array([0.25, 0.75, 0.0, 0.5]) / 1.5)


def test_own_strategies_grow_by_default() -> None:
    class Counting(Strategy):
        def on_bind(self, arms: tuple, sizes: np.ndarray) -> np.ndarray:
            self.memory.update(seen=np.zeros((len(arms), 2)), total=0)
            return np.log(np.arange(1.0, len(arms) + 1))

        def observe(self, feedback) -> None:
            self.memory["seen"][feedback.arms] += 1
            self.memory["total"] += 1

    curriculum = Curriculum(["a", "b", "c"], Counting(), seed=7)
    assert curriculum.strategy.seed == 7
    curriculum.observe([0, 2], rewards=[[1.0], [0.0]])
    curriculum.add(["d"])
    assert curriculum.strategy.memory["seen"].tolist() == [[1, 1], [0, 0], [1, 1], [0, 0]]
    assert curriculum.strategy.memory["total"] == 1
    # 1/6, 2/6, 3/6 and the new arm at their mean, 1/3: over 4/3.
    assert curriculum.probabilities() == pytest.approx([0.125, 0.25, 0.375, 0.25])


def test_threads_may_add_and_draw() -> None:
    curriculum = Curriculum([0, 1] * 50, SEC(temperature=0.3), seed=2)
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for step in range(100):
                if number == 0:
                    curriculum.add([step % 7, 1])
                indices = curriculum.draw(8)
                curriculum.observe(indices, advantages=np.ones((8, 2), np.float32))
                curriculum.metrics()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert curriculum.num_prompts == 300
    assert curriculum.arm_table()["draws"].sum() == 3 * 100 * 8
