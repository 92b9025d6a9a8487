"""The stream of every built-in strategy, which every platform and version of numpy must give.

A change of these numbers breaks the resumption of saved runs, and needs a line in the changelog.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest

from sec_grpo.curriculum import Curriculum, get_strategy, strategy_names

GOLDEN = {
    "adarft": "ceafecd8",
    "beta_thompson": "141be055",
    "composed": "6e9e7d27",
    "dump": "eea1c81f",
    "e2h_gaussian": "60649fcc",
    "learnability": "3f3a6112",
    "ordered": "5a58b4a5",
    "pac": "460da958",
    "plr": "5739abeb",
    "random": "8741d6ed",
    "reverse": "d0befb35",
    "sec": "c1896244",
    "staged": "acd03c49",
    "static_weights": "27aec608",
    "tscl": "2b1c2e52",
}
PARAMETERS: dict[str, dict[str, Any]] = {
    "composed": {"signal": "regret", "estimator": "gaussian", "allocator": "thompson"},
    "e2h_gaussian": {"steps": 50},
    "ordered": {"steps": 50},
    "pac": {"warmup": 5},
    "reverse": {"steps": 50},
    "staged": {"stages": 7},
    "static_weights": {"weights": [1, 2, 3, 4, 5, 0, 0.5]},
}


@pytest.mark.parametrize("name", sorted(strategy_names()))
def test_golden_stream_of_the_strategy(name: str) -> None:
    numbers = np.arange(1000)
    strategy = get_strategy(name, floor=0.01, **PARAMETERS.get(name, {}))
    curriculum = Curriculum(numbers * numbers % 7, strategy, seed=2026, arms=range(7))
    stream = b""
    for step in range(60):
        prompts = curriculum.draw(16)
        stream += prompts.astype("<u2").tobytes()
        # Rewards of 0, 1/2 and 1, all sums of which are exact; the harder arms are solved less.
        levels = (prompts[:, None] * 31 + step * 17 + np.arange(8) * 5) % 11
        solved = levels >= 2 + 2 * curriculum.arm_indices(prompts)[:, None]
        rewards = np.where(solved, 1.0, 0.5 * (levels % 2))
        advantages = rewards - rewards.mean(axis=1, keepdims=True)
        curriculum.observe(prompts, advantages=advantages, rewards=rewards)
    stream += curriculum.probabilities().astype("<f8").tobytes()
    assert f"{zlib.crc32(stream):08x}" == GOLDEN[name]
