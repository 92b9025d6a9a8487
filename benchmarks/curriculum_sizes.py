"""The curriculum at every size beside its rivals, in one run: results/curriculum.json.

    python benchmarks/curriculum_sizes.py            # to 10M prompts: 4 minutes, 4 GiB
    python benchmarks/curriculum_sizes.py --full     # to 100M prompts and a million arms: 16 GiB

N prompts, K arms, B prompts a batch, G = 8 rollouts a prompt. Medians; our draw, our step and
RandomSampler take turns. torch's RandomSampler shuffles before the first index of an epoch:
random_sampler is what 1 / N of that adds to each next index, random_sampler_next is without.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from curriculum_tables import BATCHES, RESULT, sizes_table, strategies_table
from environment import environment
from loaders import BufferLoader, ListLoader
from torch.utils.data import RandomSampler

from sec_grpo import SEC, Curriculum
from sec_grpo.curriculum import get_strategy, strategy_names

SIZES = [
    (30_000, 3),
    (30_000, 100),
    (30_000, 10_000),
    (1_000_000, 3),
    (1_000_000, 100),
    (1_000_000, 10_000),
    (1_000_000, 100_000),
    (10_000_000, 100),
    (10_000_000, 100_000),
]
FULL = [
    *((1_000_000, k) for k in (1_000_000,)),
    *((10_000_000, k) for k in (3, 10_000, 1_000_000)),
    *((100_000_000, k) for k in (3, 100, 10_000, 100_000, 1_000_000)),
]
G = 8
ALPHA, TEMPERATURE = 0.5, 0.5
LARGEST_FOR_PYTHON = (1_000_000, 100_000)
SECONDS_A_CASE = 1.0
IN_TURNS = ("draw", "step", "random_sampler_next")
STRATEGY_ARMS = (1_000, 10_000, 100_000)
NEEDED: dict[str, dict[str, Any]] = {
    "ordered": {"steps": 10**9},
    "reverse": {"steps": 10**9},
    "e2h_gaussian": {"steps": 1000},
    "pac": {"warmup": 1},
    "staged": {"stages": 10**6},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="to 100M prompts and 1M arms")
    parser.add_argument("--memory", nargs=2, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        print(json.dumps(memory(*arguments.memory)))
        return
    torch.set_num_threads(1)
    before = environment()
    rows = []
    for num_prompts, num_arms in sorted(SIZES + (FULL if arguments.full else [])):
        rows.append(measure(num_prompts, num_arms))
        print(json.dumps(rows[-1]), flush=True)
    strategies = [one for count in STRATEGY_ARMS for one in measure_strategies(count)]
    command = "python benchmarks/curriculum_sizes.py" + (" --full" if arguments.full else "")
    result = {
        "command": command,
        "environment": before,
        "unit": "microseconds",
        "rows": rows,
        "strategies": strategies,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(sizes_table(rows))
    print(strategies_table(strategies))


def categories(num_prompts: int, num_arms: int) -> np.ndarray:
    """An arm for each prompt at random, all of them used."""
    labels = np.random.default_rng(0).integers(0, num_arms, num_prompts, dtype=np.int32)
    labels[:num_arms] = np.arange(num_arms)
    return labels


def measure(num_prompts: int, num_arms: int) -> dict[str, Any]:
    """One size: ours and the rivals in turns, then build, save, load and memory."""
    size = (str(num_prompts), str(num_arms))
    fresh = subprocess.run(
        [sys.executable, __file__, "--memory", *size], capture_output=True, text=True, check=True
    )
    labels = categories(num_prompts, num_arms)
    make = lambda: Curriculum(labels, SEC(ALPHA, TEMPERATURE))  # noqa: E731
    builds = times_of(make, rounds=3 if num_prompts > 10**7 else 9)
    curriculum = make()
    row: dict[str, Any] = {
        "prompts": num_prompts,
        "arms": num_arms,
        "build_ms": 1e3 * statistics.median(builds),
        "build_best_ms": 1e3 * min(builds),
        **json.loads(fresh.stdout),
    }
    loaders = {}
    if num_prompts <= LARGEST_FOR_PYTHON[0] and num_arms <= LARGEST_FOR_PYTHON[1]:
        plain = labels.tolist()
        for name, kind in (("list_loader", ListLoader), ("buffer_loader", BufferLoader)):
            loaders[name] = kind(plain, 0, ALPHA, TEMPERATURE)
    sampler, shuffle = random_sampler(num_prompts)
    row["random_sampler_shuffle_ns_an_index"] = 1e9 * shuffle
    for batch_size in BATCHES:
        found = cases(curriculum, loaders, sampler, batch_size)
        times = in_turns({name: found.pop(name) for name in IN_TURNS})
        times["random_sampler"] = times["random_sampler_next"] + 1e6 * shuffle * batch_size
        # Apart: those that copy whole buffers would empty the cache for the others.
        for name, call in found.items():
            times |= in_turns({name: call})
        row[f"b{batch_size}"] = times
    saved = curriculum.to_bytes()
    row["save_ms"] = 1e3 * median_of(curriculum.to_bytes, rounds=5)
    row["load_ms"] = 1e3 * median_of(lambda: curriculum.load_bytes(saved), rounds=5)
    row["checkpoint_bytes"] = len(saved)
    return row


def memory(num_prompts: int, num_arms: int) -> dict[str, float]:
    """Of a curriculum that is the first of its process: time to build it, and what it holds."""
    labels = categories(num_prompts, num_arms)
    before = resident()
    started = time.perf_counter()
    curriculum = Curriculum(labels, SEC(ALPHA, TEMPERATURE))
    seconds = time.perf_counter() - started
    held = resident() - before
    assert curriculum.num_prompts == num_prompts
    return {"first_build_ms": 1e3 * seconds, "resident_bytes": held}


def resident() -> int:
    """Bytes of this process in memory (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def measure_strategies(num_arms: int) -> list[dict[str, Any]]:
    """Every strategy over `num_arms` arms of two prompts: a draw, an observation, the state."""
    rows = []
    generator = np.random.default_rng(3)
    advantages = generator.standard_normal((256, G)).astype(np.float32)
    rewards = (generator.random((256, G)) < 0.5).astype(np.float32)
    labels = np.arange(2 * num_arms) % num_arms
    for name in strategy_names():
        parameters = NEEDED.get(name, {})
        if name == "static_weights":
            parameters = {"weights": [1.0] * num_arms}
        curriculum = Curriculum(labels, get_strategy(name, **parameters))
        draws, observations = [], []
        for _ in range(60):
            started = time.perf_counter()
            indices = curriculum.draw(256)
            drawn = time.perf_counter()
            curriculum.observe(indices, advantages=advantages, rewards=rewards)
            draws.append(drawn - started)
            observations.append(time.perf_counter() - drawn)
        rows.append(
            {
                "strategy": name,
                "arms": num_arms,
                "draw": 1e6 * statistics.median(draws),
                "observe": 1e6 * statistics.median(observations),
                "state_bytes_an_arm": len(curriculum.to_bytes()) / num_arms,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def cases(
    curriculum: Curriculum, loaders: dict[str, Any], sampler: Any, batch_size: int
) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    advantages = np.random.default_rng(1).standard_normal((batch_size, G)).astype(np.float32)
    as_lists = advantages.tolist()
    weights = curriculum.probabilities()
    tensor = torch.from_numpy(weights)
    drawn = curriculum.draw(batch_size)
    generator = np.random.default_rng(2)
    num_arms = len(weights)

    def step() -> None:
        indices = curriculum.draw(batch_size)
        curriculum.observe(indices, advantages=advantages)

    found: dict[str, Callable[[], Any]] = {
        "draw": lambda: curriculum.draw(batch_size),
        "observe": lambda: curriculum.observe(drawn, advantages=advantages),
        "step": step,
        "random_sampler_next": lambda: list(itertools.islice(sampler, batch_size)),
        "numpy_choice_of_arms": lambda: generator.choice(num_arms, batch_size, p=weights),
    }
    if num_arms < 2**24:
        found["torch_multinomial_of_arms"] = lambda: torch.multinomial(tensor, batch_size, True)
    for name, loader in loaders.items():
        found[f"{name}_step"] = lambda loader=loader: loader.observe(
            loader.draw(batch_size), as_lists
        )
    return found


def random_sampler(num_prompts: int) -> tuple[Any, float]:
    """The indices of torch's RandomSampler without end, and seconds of its shuffle an index."""
    sampler = RandomSampler(range(num_prompts))
    rounds = 9 if num_prompts <= 10**6 else 3 if num_prompts <= 10**7 else 1
    shuffle = median_of(lambda: next(iter(sampler)), rounds)
    indices = itertools.chain.from_iterable(itertools.repeat(sampler))
    next(indices)
    return indices, shuffle / num_prompts


def in_turns(found: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median microseconds of each case; one call of each, again and again."""
    times: dict[str, list[float]] = {name: [] for name in found}
    for call in found.values():
        call()
    deadline = time.perf_counter() + SECONDS_A_CASE * len(found)
    while time.perf_counter() < deadline or min(map(len, times.values())) < 5:
        for name, call in found.items():
            started = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - started)
        if min(map(len, times.values())) >= 400:
            break
    return {name: 1e6 * statistics.median(values) for name, values in times.items()}


def median_of(call: Callable[[], Any], rounds: int) -> float:
    """Median seconds."""
    return statistics.median(times_of(call, rounds))


def times_of(call: Callable[[], Any], rounds: int) -> list[float]:
    """Seconds of each call."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        made = call()
        times.append(time.perf_counter() - started)
        del made
    return times


if __name__ == "__main__":
    main()
