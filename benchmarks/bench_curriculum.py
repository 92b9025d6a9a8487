"""Microbenchmarks of the curriculum: `pytest benchmarks/bench_curriculum.py` (pytest-benchmark).

Axes: N prompts, K arms, B prompts a batch, G rollouts a prompt. Each case checks its result before
it is timed. Beside ours stand two loaders in plain Python (`loaders.py`) and torch's RandomSampler,
which has no curriculum at all: it is the price of shuffled data. Save a run with
`--benchmark-json=FILE`. SEC_GRPO_BENCH_FULL=1 adds sizes to 100M prompts and a million arms (16
GiB); `curriculum_sizes.py` makes the table of all sizes in one run.
"""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest
import torch
from curriculum_sizes import LARGEST_FOR_PYTHON, NEEDED
from loaders import BufferLoader, ListLoader
from torch.utils.data import RandomSampler

from sec_grpo import SEC, Curriculum
from sec_grpo.curriculum import get_strategy, strategy_names

G = 8
SIZES = [(30_000, 3), (1_000_000, 3), (1_000_000, 100), (1_000_000, 100_000)]
if os.environ.get("SEC_GRPO_BENCH_FULL"):
    arms = (3, 100, 10**4, 10**5, 10**6)
    SIZES = [(n, k) for n in (30_000, 10**6, 10**7, 10**8) for k in arms if k <= n]
TEMPERATURE, ALPHA = 0.5, 0.5

sizes = pytest.mark.parametrize(("num_prompts", "num_arms"), SIZES)
batches = pytest.mark.parametrize("batch_size", [256, 4096])


def categories(num_prompts: int, num_arms: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, num_arms, num_prompts, dtype=np.int32)


def advantages(batch_size: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((batch_size, G)).astype(np.float32)


@sizes
@batches
def test_draw(benchmark, num_prompts: int, num_arms: int, batch_size: int) -> None:
    labels = categories(num_prompts, num_arms)
    curriculum = Curriculum(labels, SEC(temperature=TEMPERATURE))
    indices = curriculum.draw(batch_size)
    assert indices.shape == (batch_size,)
    twice = np.flatnonzero(np.bincount(indices, minlength=num_prompts) > 1)
    # A prompt comes twice only where an epoch of its arm ended.
    assert (curriculum.arm_table()["epochs"][curriculum.arm_indices(twice)] > 1).all()
    benchmark(curriculum.draw, batch_size)


@sizes
@batches
def test_step(benchmark, num_prompts: int, num_arms: int, batch_size: int) -> None:
    labels = categories(num_prompts, num_arms)
    curriculum = Curriculum(labels, SEC(ALPHA, TEMPERATURE), arms=range(num_arms))
    values = advantages(batch_size)

    def step() -> np.ndarray:
        indices = curriculum.draw(batch_size)
        curriculum.observe(indices, advantages=values)
        return indices

    drawn = labels[step()]
    for arm in drawn[:20].tolist():
        expected = ALPHA * np.abs(values[drawn == arm]).mean(dtype=np.float64)
        assert curriculum.values()[arm] == pytest.approx(expected, rel=1e-12)
    benchmark(step)


@sizes
@batches
def test_observe(benchmark, num_prompts: int, num_arms: int, batch_size: int) -> None:
    curriculum = Curriculum(categories(num_prompts, num_arms), SEC(ALPHA, TEMPERATURE))
    indices, values = curriculum.draw(batch_size), advantages(batch_size)
    benchmark(curriculum.observe, indices, advantages=values)
    assert curriculum.metrics()["observations"] > 0


@sizes
@pytest.mark.parametrize("loader_class", [ListLoader, BufferLoader])
def test_step_of_a_python_loader(benchmark, loader_class, num_prompts: int, num_arms: int) -> None:
    if num_prompts > LARGEST_FOR_PYTHON[0] or num_arms > LARGEST_FOR_PYTHON[1]:
        pytest.skip("minutes to build")
    loader = loader_class(categories(num_prompts, num_arms).tolist(), 0, ALPHA, TEMPERATURE)
    values = advantages(256).tolist()

    def step() -> None:
        loader.observe(loader.draw(256), values)

    step()
    assert max(loader.values.values()) > 0
    benchmark.pedantic(step, rounds=30, warmup_rounds=2)


@batches
@pytest.mark.parametrize("num_prompts", sorted({n for n, _ in SIZES}))
def test_draw_of_torch_random_sampler(benchmark, num_prompts: int, batch_size: int) -> None:
    sampler = RandomSampler(range(num_prompts))
    indices = itertools.chain.from_iterable(itertools.repeat(sampler))
    assert len(set(itertools.islice(indices, batch_size))) == batch_size
    benchmark(lambda: list(itertools.islice(indices, batch_size)))


@batches
@pytest.mark.parametrize("num_arms", sorted({k for _, k in SIZES}))
@pytest.mark.parametrize("rival", ["numpy_choice", "torch_multinomial"])
def test_choice_of_arms_by_others(benchmark, rival: str, num_arms: int, batch_size: int) -> None:
    weights = np.full(num_arms, 1.0 / num_arms)
    tensor, generator = torch.from_numpy(weights), np.random.default_rng(0)
    calls = {
        "numpy_choice": lambda: generator.choice(num_arms, batch_size, p=weights),
        "torch_multinomial": lambda: torch.multinomial(
            tensor, batch_size, replacement=True
        ).numpy(),
    }
    assert calls[rival]().max() < num_arms
    benchmark(calls[rival])


@sizes
def test_build(benchmark, num_prompts: int, num_arms: int) -> None:
    labels = categories(num_prompts, num_arms)
    assert Curriculum(labels).num_prompts == num_prompts
    benchmark.pedantic(Curriculum, (labels,), rounds=5, warmup_rounds=1)


def trained(num_prompts: int, num_arms: int) -> Curriculum:
    curriculum = Curriculum(categories(num_prompts, num_arms), SEC(ALPHA, TEMPERATURE))
    for _ in range(100):
        curriculum.observe(curriculum.draw(256), advantages=advantages(256))
    return curriculum


@sizes
def test_save(benchmark, num_prompts: int, num_arms: int) -> None:
    curriculum = trained(num_prompts, num_arms)
    state = benchmark(curriculum.to_bytes)
    benchmark.extra_info["bytes"] = len(state)
    assert len(state) < 300 + 24 * curriculum.num_arms


@sizes
def test_load(benchmark, num_prompts: int, num_arms: int) -> None:
    curriculum = trained(num_prompts, num_arms)
    state = curriculum.to_bytes()
    curriculum.draw(256)
    benchmark.pedantic(curriculum.load_bytes, (state,), rounds=10, warmup_rounds=1)
    assert curriculum.to_bytes() == state


@pytest.mark.parametrize("num_arms", [1_000, 100_000])
@pytest.mark.parametrize("name", strategy_names())
def test_step_of_every_strategy(benchmark, name: str, num_arms: int) -> None:
    parameters = {"weights": [1.0] * num_arms} if name == "static_weights" else NEEDED.get(name, {})
    curriculum = Curriculum(np.arange(2 * num_arms) % num_arms, get_strategy(name, **parameters))
    values = advantages(256)
    rewards = (values > 0).astype(np.float32)

    def step() -> None:
        curriculum.observe(curriculum.draw(256), advantages=values, rewards=rewards)

    benchmark.pedantic(step, rounds=20, warmup_rounds=2)
    assert curriculum.metrics()["observations"] == 22
    assert curriculum.probabilities().sum() == pytest.approx(1.0)
