"""Saved states: bit-for-bit continuation, and every way in which a state is refused."""

import io
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from sec_grpo.curriculum import (
    SEC,
    Curriculum,
    CurriculumStateError,
    Ordered,
    Random,
    Reverse,
    Strategy,
)

CATEGORIES = ["easy"] * 11 + ["hard"] * 7 + ["medium"] * 5


def advance(curriculum: Curriculum, steps: int) -> list[int]:
    drawn = []
    for _ in range(steps):
        indices = curriculum.draw(8)
        rewards = (indices[:, None] * 7 + np.arange(4) + curriculum.step) % 5 / 4.0
        curriculum.observe(indices, advantages=rewards - rewards.mean(), rewards=rewards)
        drawn += indices.tolist()
    return drawn


@dataclass(frozen=True)
class Noisy(Strategy):
    """A strategy with random numbers, arrays and counters of its own to resume."""

    scale: float = 1.0

    def on_bind(self, arms: tuple, sizes: np.ndarray) -> None:
        self.memory.update(calls=0, total=np.zeros(len(arms), np.float32), log=[0.1, None, "x"])

    def before_draw(self, step: int) -> np.ndarray:
        self.memory["calls"] += 1
        rng = np.random.default_rng(self.memory["calls"])
        return self.scale * rng.standard_normal(len(self.arms)) + self.memory["total"]

    def observe(self, feedback) -> None:
        self.memory["total"][feedback.arms] += feedback.reward.astype(np.float32)


STRATEGIES = [
    SEC(temperature=0.1),
    SEC(alpha=0.3, temperature=0.05, undrawn="decay"),
    Random(),
    Ordered(20),
    Reverse(20),
    Noisy(),
]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
@pytest.mark.parametrize("steps", [0, 1, 6, 7, 25])
def test_resumes_bit_for_bit(strategy: Strategy, steps: int) -> None:
    one = Curriculum(CATEGORIES, strategy, seed=5)
    advance(one, steps)
    state = one.state_dict()
    other = Curriculum(CATEGORIES, strategy, seed=1234)
    advance(other, 3)
    other.load_state_dict(state)
    assert other.seed == 5
    assert other.step == steps
    assert other.state_dict() == state
    for name, column in one.arm_table().items():
        np.testing.assert_array_equal(other.arm_table()[name], column, err_msg=name)
    assert other.metrics() == one.metrics()
    assert advance(other, 20) == advance(one, 20)
    assert other.state_dict() == one.state_dict()


def test_a_state_is_a_snapshot() -> None:
    curriculum = Curriculum(CATEGORIES, Noisy())
    advance(curriculum, 3)
    state = curriculum.state_dict()
    expected = advance(curriculum, 5)
    curriculum.load_state_dict(state)
    assert advance(curriculum, 5) == expected


def test_torch_saves_and_loads_it_safely() -> None:
    curriculum = Curriculum(CATEGORIES)
    advance(curriculum, 3)
    buffer = io.BytesIO()
    torch.save({"step": 3, "curriculum": curriculum.state_dict()}, buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)["curriculum"]
    assert state == curriculum.state_dict()
    other = Curriculum(CATEGORIES)
    other.load_state_dict(state)
    assert advance(other, 3) == advance(curriculum, 3)


def test_size() -> None:
    def size(arms: int) -> int:
        curriculum = Curriculum(np.arange(10_000) % arms, SEC(temperature=0.3))
        for _ in range(300):
            indices = curriculum.draw(64)
            rewards = (indices[:, None] % np.arange(2, 6)) / 7.0
            curriculum.observe(indices, advantages=rewards - 0.3, rewards=rewards)
        return len(curriculum.to_bytes())

    # Q 8, last observation 10, step 2, epoch and cursor 1 each.
    assert size(2000) - size(1000) == 22 * 1000
    assert len(Curriculum(np.arange(1_000_000) % 3).to_bytes()) < 500


def test_every_damaged_byte_and_truncation_is_refused() -> None:
    curriculum = Curriculum(CATEGORIES)
    advance(curriculum, 4)
    core = curriculum.to_bytes()
    for position in range(len(core)):
        damaged = bytearray(core)
        damaged[position] ^= 0x20
        with pytest.raises(CurriculumStateError):
            curriculum.load_bytes(bytes(damaged))
        with pytest.raises(CurriculumStateError, match="load another copy"):
            curriculum.load_bytes(core[:position])
    with pytest.raises(CurriculumStateError, match="truncated or damaged"):
        curriculum.load_bytes(core + b"\0")
    assert curriculum.to_bytes() == core


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Curriculum([*CATEGORIES, "easy"]), "another data set.*23 prompts, this curriculum 24"),
        (Curriculum(["easy"] * 20 + ["hard"] * 3), "3 arms, this curriculum 2"),
        (Curriculum([c.upper() for c in CATEGORIES]), "other arms: their labels"),
        (Curriculum(CATEGORIES, arms=["hard", "easy", "medium"]), "labels or their order"),
        (Curriculum(CATEGORIES[::-1]), "order of the prompts"),
        (Curriculum(CATEGORIES, SEC(alpha=0.25)), r'strategy SEC {"alpha":0.5.*SEC {"alpha":0.25'),
        (Curriculum(CATEGORIES, Random()), r"this curriculum has Random {}"),
    ],
)
def test_other_data_sets_and_strategies_are_refused(other: Curriculum, message: str) -> None:
    curriculum = Curriculum(CATEGORIES)
    advance(curriculum, 2)
    before = other.state_dict()
    with pytest.raises(CurriculumStateError, match=f"(?s){message}"):
        other.load_state_dict(curriculum.state_dict())
    assert other.state_dict() == before


def test_newer_version_is_refused() -> None:
    curriculum = Curriculum(CATEGORIES)
    newer = bytearray(curriculum.to_bytes())
    newer[8] += 1
    with pytest.raises(CurriculumStateError, match=r"format version 4, newer.*upgrade sec-grpo"):
        curriculum.load_bytes(newer)


@pytest.mark.parametrize(
    "state",
    [
        None,
        b"",
        {},
        {"format": "sec_grpo.curriculum"},
        {"format": "other", "core": b""},
        {"format": "sec_grpo.curriculum", "core": "text"},
        {"format": "sec_grpo.curriculum", "core": b"text"},
        {"format": "sec_grpo.curriculum", "core": b""},
    ],
)
def test_what_is_no_state_is_refused(state: object) -> None:
    with pytest.raises(CurriculumStateError):
        Curriculum(CATEGORIES).load_state_dict(state)  # type: ignore[arg-type]


def test_error_is_a_value_error() -> None:
    assert issubclass(CurriculumStateError, ValueError)


def test_a_strategy_can_refuse_its_state() -> None:
    class Picky(Noisy):
        def load_state_dict(self, state: dict) -> None:
            super().load_state_dict(state)
            if refuse:
                raise KeyError("total")

    refuse = False
    curriculum = Curriculum(CATEGORIES, Picky())
    advance(curriculum, 2)
    state = curriculum.state_dict()
    advance(curriculum, 2)
    before = curriculum.state_dict()
    refuse = True
    with pytest.raises(CurriculumStateError, match="Picky refuses its part"):
        curriculum.load_state_dict(state)
    assert curriculum.state_dict() == before


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        ({"calls": 1, "log": []}, "'total', which is missing"),
        ({"calls": 1, "log": [], "total": [0, 0, 0]}, "must be an array of float32, got"),
        ({"calls": 1, "log": [], "total": np.zeros(3, int)}, "must be an array of float32"),
        ({"calls": 1, "log": [], "total": np.zeros(2)}, r"must have shape \(3,\), got \(2,\)"),
        ({"calls": 1, "log": [], "total": np.zeros((3, 1))}, r"shape \(3,\), got \(3, 1\)"),
    ],
)
def test_the_memory_of_another_version_is_refused(memory: dict, message: str) -> None:
    class Other(Noisy):
        @property
        def name(self) -> str:
            return "Noisy"

        def state_dict(self) -> dict:
            return memory

    other = Curriculum(CATEGORIES, Other())
    advance(other, 2)
    curriculum = Curriculum(CATEGORIES, Noisy())
    advance(curriculum, 1)
    before = curriculum.state_dict()
    with pytest.raises(
        CurriculumStateError, match=f"Noisy refuses its part of the state.*{message}"
    ):
        curriculum.load_state_dict(other.state_dict())
    assert curriculum.state_dict() == before


def test_state_that_cannot_be_saved_is_named() -> None:
    class Odd(Strategy):
        def state_dict(self) -> dict:
            return {"x": object()}

    with pytest.raises(TypeError, match="state of a strategy must be made of"):
        Curriculum(CATEGORIES, Odd()).state_dict()


def test_a_dict_that_would_not_come_back_as_it_was_is_refused() -> None:
    class ByNumber(Strategy):
        def on_bind(self, arms: tuple, sizes: np.ndarray) -> None:
            self.memory["seen"] = {"a": [{1: 2.0}]}

    with pytest.raises(
        TypeError, match=r"strings as the keys of dicts, got 1; use a list of pairs"
    ):
        Curriculum(CATEGORIES, ByNumber()).to_bytes()


def test_memory_may_hold_an_array_without_dimensions() -> None:
    class Counter(Strategy):
        def on_bind(self, arms: tuple, sizes: np.ndarray) -> None:
            self.memory["count"] = np.array(0.5)

    curriculum = Curriculum(CATEGORIES, Counter())
    curriculum.strategy.memory["count"] += 2
    restored = Curriculum(CATEGORIES, Counter())
    restored.load_bytes(curriculum.to_bytes())
    assert restored.strategy.memory["count"].shape == ()
    assert float(restored.strategy.memory["count"]) == 2.5
