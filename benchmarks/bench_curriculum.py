"""Microbenchmarks of the curriculum: `pytest benchmarks/bench_curriculum.py` (pytest-benchmark).

Axes: N prompts, K arms, B prompts a batch, G rollouts a prompt. Each case checks its result before
it is timed. Beside ours stand a plain Python loader (lists per category, `random.choices` over a
softmax, a moving average) and torch's RandomSampler, which has no curriculum at all: it is the
price of shuffled data. Save a run with `--benchmark-json=FILE`.
"""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from torch.utils.data import RandomSampler

from sec_grpo import SEC, Curriculum

B, G = 256, 8
SIZES = [(30_000, 3), (1_000_000, 3), (1_000_000, 100)]
TEMPERATURE, ALPHA = 0.5, 0.5

sizes = pytest.mark.parametrize(("num_prompts", "num_arms"), SIZES)


class PythonLoader:
    """SEC in lists: what one writes first."""

    def __init__(self, categories: list[int], seed: int) -> None:
        self._random = random.Random(seed)
        self._prompts: dict[int, list[int]] = {}
        for i, category in enumerate(categories):
            self._prompts.setdefault(category, []).append(i)
        self._left: dict[int, list[int]] = {category: [] for category in self._prompts}
        self.values = dict.fromkeys(self._prompts, 0.0)
        self._category_of: dict[int, int] = {}

    def draw(self, batch_size: int) -> list[int]:
        arms = list(self.values)
        top = max(self.values.values())
        weights = [math.exp((self.values[arm] - top) / TEMPERATURE) for arm in arms]
        out = []
        for arm in self._random.choices(arms, weights, k=batch_size):
            if not self._left[arm]:
                self._left[arm] = self._random.sample(self._prompts[arm], len(self._prompts[arm]))
            out.append(self._left[arm].pop())
            self._category_of[out[-1]] = arm
        return out

    def observe(self, indices: list[int], advantages: list[list[float]]) -> None:
        sums: dict[int, list[float]] = {}
        for index, group in zip(indices, advantages, strict=True):
            sums.setdefault(self._category_of[index], []).extend(abs(a) for a in group)
        for arm, numbers in sums.items():
            mean = sum(numbers) / len(numbers)
            self.values[arm] += ALPHA * (mean - self.values[arm])


def categories(num_prompts: int, num_arms: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, num_arms, num_prompts)


def advantages() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((B, G)).astype(np.float32)


@sizes
def test_draw(benchmark, num_prompts: int, num_arms: int) -> None:
    curriculum = Curriculum(categories(num_prompts, num_arms), SEC(temperature=TEMPERATURE))
    indices = curriculum.draw(B)
    assert indices.shape == (B,)
    assert len(set(indices.tolist())) == B, "no prompt twice within an epoch"
    benchmark(curriculum.draw, B)


@sizes
def test_step(benchmark, num_prompts: int, num_arms: int) -> None:
    labels = categories(num_prompts, num_arms)
    curriculum = Curriculum(labels, SEC(ALPHA, TEMPERATURE))
    values = advantages()

    def step() -> np.ndarray:
        indices = curriculum.draw(B)
        curriculum.observe(indices, advantages=values)
        return indices

    drawn = labels[step()]
    for arm in set(drawn.tolist()):
        expected = ALPHA * np.abs(values[drawn == arm]).mean(dtype=np.float64)
        assert curriculum.values()[arm] == pytest.approx(expected, rel=1e-12)
    benchmark(step)


@sizes
def test_step_of_a_python_loader(benchmark, num_prompts: int, num_arms: int) -> None:
    loader = PythonLoader(categories(num_prompts, num_arms).tolist(), seed=0)
    values = advantages().tolist()

    def step() -> None:
        loader.observe(loader.draw(B), values)

    step()
    assert max(loader.values.values()) > 0
    benchmark(step)


@pytest.mark.parametrize("num_prompts", [30_000, 1_000_000])
def test_draw_of_torch_random_sampler(benchmark, num_prompts: int) -> None:
    sampler = RandomSampler(range(num_prompts))
    indices = itertools.chain.from_iterable(itertools.repeat(sampler))
    assert len(set(itertools.islice(indices, B))) == B
    benchmark(lambda: list(itertools.islice(indices, B)))


def test_build_a_million_prompts(benchmark) -> None:
    labels = categories(1_000_000, 100)
    assert Curriculum(labels).num_arms == 100
    benchmark.pedantic(Curriculum, (labels,), rounds=5, warmup_rounds=1)
