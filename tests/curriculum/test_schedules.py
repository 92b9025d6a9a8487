"""Staged, E2HGaussian and AdaRFT, by hand and beside plain loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from sec_grpo.curriculum import AdaRFT, Curriculum, E2HGaussian, Staged

CATEGORIES = np.arange(400) % 4


def drawn_arms(curriculum: Curriculum, count: int) -> list[list[int]]:
    """The distinct arms of each draw."""
    return [sorted(set(curriculum.arm_indices(curriculum.draw(40)).tolist())) for _ in range(count)]


def test_stages_of_equal_length() -> None:
    curriculum = Curriculum(CATEGORIES, Staged(2))
    assert drawn_arms(curriculum, 10) == [[0], [0], [1], [1], [2], [2], [3], [3], [3], [3]]


def test_stages_skip_empty_arms() -> None:
    curriculum = Curriculum([0, 0, 2, 2], Staged(1), arms=[0, 1, 2])
    assert drawn_arms(curriculum, 3) == [[0], [2], [2]]


def test_written_stages() -> None:
    stages = [{"arms": [0, 1], "steps": 2}, {"arms": [3], "steps": 1}, {"arms": [0, 1, 2, 3]}]
    curriculum = Curriculum(CATEGORIES, Staged(stages))
    assert drawn_arms(curriculum, 5) == [[0, 1], [0, 1], [3], [0, 1, 2, 3], [0, 1, 2, 3]]


def test_a_stage_draws_its_prompts_equally_often() -> None:
    curriculum = Curriculum([0] * 30 + [1] * 10, Staged([{"arms": [1, 0]}]))
    assert curriculum.probabilities() == pytest.approx([0.75, 0.25])


@pytest.mark.parametrize(
    ("stages", "error", "message"),
    [
        (0, ValueError, "stages must be an integer of at least 1"),
        ("ab", TypeError, "stages must be a number of draws, or a list"),
        ([], ValueError, "got an empty list"),
        ([{"arms": [1], "steps": 1}, {"steps": 2}], ValueError, r"stages\[1\] must be"),
        ([{"arms": [1]}, {"arms": [2]}], TypeError, r"stages\[0\]\['steps'\] must be an integer"),
        ([{"arms": 1}], ValueError, r"stages\[0\]\['arms'\] must be a list of labels, got 1"),
        ([{"arms": [1], "step": 3}], ValueError, r"stages\[0\] must be"),
    ],
)
def test_bad_stages(stages: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Staged(stages)


def test_stages_must_name_arms_with_prompts() -> None:
    with pytest.raises(ValueError, match=r"stages\[0\] must name arms .*\(0, 1, 2, 3\), got 7"):
        Curriculum(CATEGORIES, Staged([{"arms": [7]}]))
    with pytest.raises(ValueError, match=r"stages\[0\] must name an arm that has prompts, got 1"):
        Curriculum([0, 2], Staged([{"arms": [1]}]), arms=[0, 1, 2])


def test_e2h_gaussian_beside_a_loop() -> None:
    steps, beta, sigma = 10, 0.5, 0.7
    curriculum = Curriculum(CATEGORIES, E2HGaussian(steps, beta, sigma))
    for t in range(14):
        x = min(t / steps, 1.0) ** beta * 3
        raw = [math.exp(-((k - x) ** 2) / (2 * sigma**2)) for k in range(4)]
        floor = 2 / (4 * 5)
        expected = [(1 - 4 * floor) * r / sum(raw) + floor for r in raw]
        assert curriculum.probabilities() == pytest.approx(expected, abs=1e-9)
        curriculum.draw(8)


def test_e2h_gaussian_of_one_arm_and_with_empty_arms() -> None:
    assert Curriculum([1, 1], E2HGaussian(3)).probabilities().tolist() == [1.0]
    curriculum = Curriculum([0, 2], E2HGaussian(3), arms=[0, 1, 2])
    # x = 0 over two arms: exp(0) and exp(-2), floor 1/3.
    p = 1 / (1 + math.exp(-2))
    expected = [p / 3 + 1 / 3, 0.0, (1 - p) / 3 + 1 / 3]
    assert curriculum.probabilities() == pytest.approx(expected, abs=1e-9)


def test_adarft_moves_its_target_by_the_reward() -> None:
    curriculum = Curriculum(CATEGORIES, AdaRFT())
    assert curriculum.probabilities().tolist() == [1, 0, 0, 0]
    target = 0.0
    for reward in (1.0, 0.9, 0.6, 0.1, 0.0, 0.0, 1.0):
        indices = curriculum.draw(10)
        curriculum.observe(indices, rewards=np.full((10, 2), reward))
        target = min(max(target + 50 * math.tanh(2 * (reward - 0.5)), 0.0), 100.0)
        distance = [abs(target - d) for d in (0, 100 / 3, 200 / 3, 100)]
        assert curriculum.values() == pytest.approx([-d for d in distance])
        assert curriculum.probabilities()[int(np.argmin(distance))] == 1.0


def test_adarft_difficulties() -> None:
    def difficulty(categories: Any, **kwargs: Any) -> list[float]:
        return (-Curriculum(categories, AdaRFT(**kwargs)).values()).tolist()

    assert difficulty([3, 5, 13]) == [0, 20, 100]
    assert difficulty(["a", "b", "c"]) == [0, 50, 100]
    assert difficulty(["a", "b"], difficulties={"a": 9, "b": 1}) == [100, 0]
    assert difficulty([4, 4]) == [0]
    with pytest.raises(ValueError, match="difficulties must name every arm, got none for 'b'"):
        difficulty(["a", "b"], difficulties={"a": 1})
    with pytest.raises(TypeError, match="difficulties must map labels to numbers"):
        AdaRFT(difficulties=[1, 2])  # type: ignore[arg-type]


def test_adarft_shares_between_arms_equally_near() -> None:
    curriculum = Curriculum(["a"] * 30 + ["b"] * 10, AdaRFT(difficulties={"a": 5, "b": 5}))
    assert curriculum.probabilities() == pytest.approx([0.75, 0.25])
