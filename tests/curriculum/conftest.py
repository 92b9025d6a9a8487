"""A short training run for strategies: draws with random rewards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from sec_grpo.curriculum import Curriculum

SOLVED = np.array([0.9, 0.5, 0.2, 0.0])
B, G = 24, 6


@pytest.fixture
def play() -> Callable[[Curriculum, int], Iterator[dict[str, Any]]]:
    """play(curriculum over 400 prompts in 4 arms, batches): draws and observes, batch by batch.

    Yields arms, advantages, rewards and indices of the batch observed. Arm k is solved with
    probability .9, .5, .2, 0; batch t depends on nothing but t, the draws and `start`.
    """

    def run(curriculum: Curriculum, count: int, start: int = 0) -> Iterator[dict[str, Any]]:
        for number in range(start, start + count):
            indices = curriculum.draw(B)
            arms = curriculum.arm_indices(indices)
            generator = np.random.default_rng(number)
            rewards = (generator.random((B, G)) < SOLVED[arms, None]) * 1.0
            advantages = rewards - rewards.mean(1, keepdims=True)
            curriculum.observe(indices, advantages=advantages, rewards=rewards)
            yield {"arms": arms, "advantages": advantages, "rewards": rewards, "indices": indices}

    return run
