"""The curriculum at every size beside its rivals, in one run: results/curriculum.json.

    python benchmarks/curriculum_sizes.py            # to 10M prompts: 3 minutes, 4 GiB
    python benchmarks/curriculum_sizes.py --full     # to 100M prompts and a million arms: 16 GiB

N prompts, K arms, B prompts a batch, G = 8 rollouts a prompt. Medians; our draw, our step and
RandomSampler take turns. To the sampler's median its share of the shuffle is added, which comes
before the first index of an epoch: the time of that index over N.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import environment
from loaders import BufferLoader, ListLoader
from torch.utils.data import RandomSampler

from sec_grpo import SEC, Curriculum

RESULT = Path(__file__).parent / "results" / "curriculum.json"
SIZES = [
    (30_000, 3),
    (30_000, 10_000),
    (1_000_000, 3),
    (1_000_000, 100),
    (1_000_000, 10_000),
    (1_000_000, 100_000),
    (10_000_000, 100),
    (10_000_000, 100_000),
]
FULL = [(10_000_000, 1_000_000), (100_000_000, 3), (100_000_000, 100_000), (100_000_000, 1_000_000)]
BATCHES, G = (256, 4096), 8
ALPHA, TEMPERATURE = 0.5, 0.5
LARGEST_FOR_PYTHON = 1_000_000
SECONDS_A_CASE = 1.0
IN_TURNS = ("draw", "step", "random_sampler")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="to 100M prompts and 1M arms")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    before = environment()
    rows = []
    for num_prompts, num_arms in SIZES + (FULL if arguments.full else []):
        rows.append(measure(num_prompts, num_arms))
        print(json.dumps(rows[-1]), flush=True)
    command = "python benchmarks/curriculum_sizes.py" + (" --full" if arguments.full else "")
    result = {"command": command, "environment": before, "unit": "microseconds", "rows": rows}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(table(rows))


def measure(num_prompts: int, num_arms: int) -> dict[str, Any]:
    """One size: ours and the rivals in turns, then build, save, load and memory."""
    labels = np.random.default_rng(0).integers(0, num_arms, num_prompts, dtype=np.int32)
    labels[:num_arms] = np.arange(num_arms)
    make = lambda: Curriculum(labels, SEC(ALPHA, TEMPERATURE))  # noqa: E731
    held = peak_growth(make)
    build = median_of(make, rounds=3 if num_prompts > 10**7 else 5)
    curriculum = make()
    row: dict[str, Any] = {
        "prompts": num_prompts,
        "arms": num_arms,
        "build_ms": 1e3 * build,
        "bytes_a_prompt": 4 + (1 if num_arms <= 256 else 2 if num_arms <= 65536 else 4),
        "peak_rss_growth_bytes_a_prompt": held / num_prompts,
    }
    loaders = {}
    if num_prompts <= LARGEST_FOR_PYTHON:
        categories = labels.tolist()
        for name, kind in (("list_loader", ListLoader), ("buffer_loader", BufferLoader)):
            loaders[name] = kind(categories, 0, ALPHA, TEMPERATURE)
    sampler, shuffle = random_sampler(num_prompts)
    row["random_sampler_shuffle_ns_an_index"] = 1e9 * shuffle
    for batch_size in BATCHES:
        found = cases(curriculum, loaders, sampler, batch_size)
        row[f"b{batch_size}"] = in_turns({name: found.pop(name) for name in IN_TURNS})
        row[f"b{batch_size}"]["random_sampler"] += 1e6 * shuffle * batch_size
        # Apart: those that copy whole buffers would empty the cache for the others.
        for name, call in found.items():
            row[f"b{batch_size}"] |= in_turns({name: call})
    saved = curriculum.to_bytes()
    row["save_ms"] = 1e3 * median_of(curriculum.to_bytes, rounds=5)
    row["load_ms"] = 1e3 * median_of(lambda: curriculum.load_bytes(saved), rounds=5)
    row["checkpoint_bytes_an_arm"] = (len(saved) - 250) / num_arms if num_arms >= 100 else None
    return row


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
        "random_sampler": lambda: list(itertools.islice(sampler, batch_size)),
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
    indices = itertools.chain.from_iterable(itertools.repeat(RandomSampler(range(num_prompts))))
    started = time.perf_counter()
    next(indices)
    return indices, (time.perf_counter() - started) / num_prompts


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
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        made = call()
        times.append(time.perf_counter() - started)
        del made
    return statistics.median(times)


def peak_growth(make: Callable[[], Any]) -> int:
    """Bytes by which the largest resident size grows while one is built."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    make()
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, B = 256 and 4096 apart by a slash, microseconds."""
    lines = [
        "| prompts x arms | draw | RandomSampler | step | buffer loader's step | build, ms | "
        "save, load, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        small, large = row["b256"], row["b4096"]

        def pair(name: str, small: Any = small, large: Any = large) -> str:
            if name not in small:
                return "-"
            return f"{small[name]:,.0f} / {large[name]:,.0f}"

        lines.append(
            f"| {row['prompts']:,} x {row['arms']:,} | {pair('draw')} | {pair('random_sampler')} "
            f"| {pair('step')} | {pair('buffer_loader_step')} | {row['build_ms']:.1f} | "
            f"{row['save_ms']:.1f}, {row['load_ms']:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
