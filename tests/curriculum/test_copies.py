"""Pickled and copied curricula go on bit for bit, each on its own."""

from __future__ import annotations

import copy
import multiprocessing
import pickle

import pytest

from sec_grpo.curriculum import (
    SEC,
    Curriculum,
    Factored,
    Floor,
    Strategy,
    get_strategy,
    strategy_names,
)

NEEDED = {
    "ordered": {"steps": 40},
    "reverse": {"steps": 40},
    "e2h_gaussian": {"steps": 40},
    "staged": {"stages": 4},
    "static_weights": {"weights": [3.0, 2.0, 1.0, 0.5]},
}
MADE = {name: get_strategy(name, **NEEDED.get(name, {})) for name in strategy_names()}
CATEGORIES = list("abcd") * 100


@pytest.fixture
def advance(play):
    """advance(curriculum, batches) -> the indices it drew."""

    def run(curriculum: Curriculum, batches: int) -> list[int]:
        played = play(curriculum, batches, start=curriculum.step)
        return [index for batch in played for index in batch["indices"].tolist()]

    return run


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
@pytest.mark.parametrize("strategy", [*MADE.values(), Floor(SEC(), 0.1)], ids=repr)
def test_it_goes_on_as_the_original(strategy: Strategy, copied, advance) -> None:
    original = Curriculum(CATEGORIES, strategy, seed=2**63 + 5)
    advance(original, 5)
    original.add(["b", "c", "a"])
    advance(original, 5)
    made = copied(original)
    assert made.to_bytes() == original.to_bytes()
    assert (made.arms, made.seed, made.step) == (original.arms, original.seed, original.step)
    before = original.to_bytes()
    drawn = advance(made, 5)
    assert original.to_bytes() == before
    assert advance(original, 5) == drawn
    assert made.to_bytes() == original.to_bytes()


def test_new_categories_of_one_are_not_the_others(advance) -> None:
    original = Curriculum(CATEGORIES, SEC())
    advance(original, 1)
    made = copy.deepcopy(original)
    made.add(["e"])
    assert (made.arms, original.arms) == (tuple("abcde"), tuple("abcd"))
    assert (made.num_prompts, original.num_prompts) == (401, 400)


def test_categories_feature_by_feature(advance) -> None:
    labels = [("pqr"[i % 2], "xy"[i // 2 % 2]) for i in range(400)]
    original = Curriculum(labels, Factored((SEC(), SEC(temperature=0.2))), seed=1)
    advance(original, 4)
    assert advance(copy.deepcopy(original), 6) == advance(original, 6)


def test_another_process_gets_the_same(advance) -> None:
    original = Curriculum(CATEGORIES, SEC(), seed=3)
    advance(original, 3)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        drawn = pool.apply(Curriculum.draw, (original, 64)).tolist()
    assert drawn == original.draw(64).tolist()


def test_labels_without_prompts_are_kept() -> None:
    original = Curriculum(["b", "a"], SEC(), arms=["c", "b", "a"])
    made = copy.copy(original)
    assert made.arms == ("c", "b", "a")
    assert made.arm_indices([0, 1]).tolist() == [1, 2]
