"""The trainer beside the newest TRL: the update phase and whole steps, in one run.

    python benchmarks/bench_trainer.py                   # results/trainer_cpu.json: 10 minutes
    python benchmarks/bench_trainer.py --device cuda     # results/trainer_gpu.json
    python benchmarks/bench_trainer.py --tables          # only its tables into the documentation

The two take turns, each on a new model, and their gradients are compared first. TRL runs with the
same micro-batches, and with those that are best for it. What a step is: `trainer_runs.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from environment import environment
from trainer_runs import (
    LENGTHS,
    SHAPES,
    TRAINERS,
    Batch,
    Measured,
    Shape,
    make_batch,
    measure_step,
    measure_update,
)

ROOT = Path(__file__).parents[1]
RESULTS = {device: ROOT / f"benchmarks/results/trainer_{device}.json" for device in ("cpu", "gpu")}
DEVICES = {
    "cpu": ["scaled"],
    "cuda": ["qwen2.5-0.5b", "qwen2.5-1.5b"],
}
MICRO_BATCH = 8
OTHER_MICRO_BATCHES = (1, 2, 4, 16)
STEPS = 3
"""of a round; the first warms up"""
STEPS_WITH_SAMPLING = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=DEVICES, default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="default: in benchmarks/results/")
    parser.add_argument("--tables", action="store_true", help="rewrite the tables of the docs")
    parser.add_argument("--memory", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.tables:
        write_tables()
        return
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU")
    if arguments.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        torch.set_num_threads(1)
    if arguments.memory:
        print(json.dumps(memory(*arguments.memory)))
        return
    before = environment()
    result = {
        "command": f"python benchmarks/bench_trainer.py --device {arguments.device} "
        f"--rounds {arguments.rounds}",
        "environment": before,
        "load": os.getloadavg()[1],
        "rounds": arguments.rounds,
        "update": [
            update_case(SHAPES[name], lengths, arguments.rounds)
            for name in DEVICES[arguments.device]
            for lengths in LENGTHS
        ],
    }
    if arguments.device == "cpu":
        result["step"] = step_case(arguments.rounds)
    target = arguments.out or RESULTS["gpu" if arguments.device == "cuda" else "cpu"]
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(update_table([result]))
    if "step" in result:
        print(step_table(result))


# ---- Measuring --------------------------------------------------------------------------------


def update_case(shape: Shape, lengths: str, rounds: int) -> dict[str, Any]:
    """One model and distribution of lengths: both trainers, and TRL with its best micro-batch."""
    batch = make_batch(shape, lengths)
    error = compare_gradients(shape, batch)
    best = best_micro_batch(shape, batch)
    runs = {
        "sec-grpo": ("sec-grpo", MICRO_BATCH),
        "trl": ("trl", MICRO_BATCH),
        "trl, its best": ("trl", best),
    }
    if best == MICRO_BATCH:
        del runs["trl, its best"]
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    peaks: dict[str, int] = {}
    resident: dict[str, int] = {}
    for _ in range(rounds):
        for name, (trainer, micro_batch) in runs.items():
            found = update(trainer, shape, batch, micro_batch)
            seconds[name] += found.update_seconds
            peaks[name], resident[name] = found.peak_bytes, found.resident_bytes
    if not torch.cuda.is_available():
        for name, (trainer, micro_batch) in runs.items():
            peaks[name], resident[name] = memory_alone(trainer, shape, lengths, micro_batch)
    case: dict[str, Any] = {
        "shape": shape.name,
        "lengths": lengths,
        "tokens": batch.num_tokens,
        "gradient_error": error,
        "trainers": {},
    }
    for name, (_, micro_batch) in runs.items():
        median = statistics.median(seconds[name])
        case["trainers"][name] = {
            "micro_batch": micro_batch,
            "seconds": median,
            "all_seconds": seconds[name],
            "tokens_per_second": batch.num_tokens / median,
            "peak_mib": peaks[name] / 2**20,
            "above_resident_mib": (peaks[name] - resident[name]) / 2**20,
        }
    if best == MICRO_BATCH:
        case["trainers"]["trl, its best"] = case["trainers"]["trl"]
    print(json.dumps(case), flush=True)
    return case


def update(trainer: str, shape: Shape, batch: Batch, micro_batch: int) -> Measured:
    return measure_update(trainer, shape, batch, micro_batch=micro_batch, steps=STEPS)


def compare_gradients(shape: Shape, batch: Batch) -> float:
    """The relative difference of both trainers' gradients of a step, which has to be rounding."""
    ours, theirs = (
        measure_update(
            name, shape, batch, micro_batch=MICRO_BATCH, steps=1, keep_gradient=True
        ).gradient
        for name in TRAINERS
    )
    assert ours is not None
    assert theirs is not None
    error = float(torch.linalg.vector_norm(ours - theirs) / torch.linalg.vector_norm(theirs))
    # bf16 gradients are summed over micro-batches in another order.
    limit = 1e-4 if ours.dtype == torch.float32 else 0.1
    if not error < limit:
        raise RuntimeError(
            f"the gradients differ by {error:.2e} for {shape.name}: nothing is timed"
        )
    return error


def best_micro_batch(shape: Shape, batch: Batch) -> int:
    """The micro-batch that is fastest for TRL."""
    times = {}
    for size in (MICRO_BATCH, *OTHER_MICRO_BATCHES):
        try:
            times[size] = min(update("trl", shape, batch, size).update_seconds)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
    return min(times, key=lambda size: times[size])


def memory_alone(trainer: str, shape: Shape, lengths: str, micro_batch: int) -> tuple[int, int]:
    """Peak and resident bytes of a process that does nothing else."""
    words = ["--memory", trainer, shape.name, lengths, str(micro_batch)]
    done = subprocess.run(
        [sys.executable, __file__, *words],
        capture_output=True,
        text=True,
        check=True,
        # Else freed tensors stay in the allocator, and what was used before hides a peak.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    peak, resident = json.loads(done.stdout.splitlines()[-1])
    return peak, resident


def memory(trainer: str, shape: str, lengths: str, micro_batch: str) -> tuple[int, int]:
    found = measure_update(
        trainer,
        SHAPES[shape],
        make_batch(SHAPES[shape], lengths),
        micro_batch=int(micro_batch),
        steps=2,
    )
    return found.peak_bytes, found.resident_bytes


def step_case(rounds: int) -> dict[str, Any]:
    """Whole steps of both trainers in turns, and where their time goes."""
    found: dict[str, list[Measured]] = {name: [] for name in TRAINERS}
    for _ in range(rounds):
        for name in TRAINERS:
            found[name].append(measure_step(name, steps=STEPS_WITH_SAMPLING))
    case: dict[str, Any] = {}
    for name, runs in found.items():
        steps = [seconds for run in runs for seconds in run.step_seconds]
        updates = [seconds for run in runs for seconds in run.update_seconds]
        logs = [entry for run in runs for entry in run.log[1:]]
        case[name] = {
            "seconds": statistics.median(steps),
            "update_seconds": statistics.median(updates),
            "completion_length": _mean(logs, "completions/mean_length"),
        }
        if name == "sec-grpo":
            whole = _mean(logs, "step_time")
            parts = sorted({key for entry in logs for key in entry if key.startswith("time/")})
            case[name]["shares"] = {
                part.removeprefix("time/"): _mean(logs, part) / whole for part in parts
            }
    print(json.dumps(case), flush=True)
    return case


def _mean(logs: list[dict[str, float]], key: str) -> float:
    return statistics.fmean(entry[key] for entry in logs)


# ---- Tables -----------------------------------------------------------------------------------


def read_results() -> dict[str, dict[str, Any]]:
    """device -> what was measured there, of the devices where anything was."""
    return {
        device: json.loads(path.read_text()) for device, path in RESULTS.items() if path.exists()
    }


def update_table(results: list[dict[str, Any]]) -> str:
    """Markdown, for the documentation; a row for everything that is to be measured."""
    lines = [
        "| model | lengths | sec-grpo, tokens/s | TRL, tokens/s | faster "
        "| TRL at its best | faster | memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    measured = {
        (case["shape"], case["lengths"]): case for result in results for case in result["update"]
    }
    for shape in SHAPES:
        for lengths in LENGTHS:
            case = measured.get((shape, lengths))
            cells = ["not measured"] * 6 if case is None else _update_cells(case)
            lines.append(f"| {shape} | {lengths} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _update_cells(case: dict[str, Any]) -> list[str]:
    ours, same, best = (case["trainers"][k] for k in ("sec-grpo", "trl", "trl, its best"))
    cells = [f"{ours['tokens_per_second']:,.0f}"]
    for other in (same, best):
        size = "" if other is same else f" ({other['micro_batch']} rows)"
        cells.append(f"{other['tokens_per_second']:,.0f}{size}")
        cells.append(f"{ours['tokens_per_second'] / other['tokens_per_second']:.1f}x")
    memory_ratio = _memory(ours, case) / _memory(same, case)
    return [*cells, f"{memory_ratio:.2f}x"]


def _memory(trainer: dict[str, Any], case: dict[str, Any]) -> float:
    """On a CPU above weights, optimizer and the program itself, which outweigh a scaled model."""
    return trainer["above_resident_mib" if case["shape"] == "scaled" else "peak_mib"]


def step_table(result: dict[str, Any]) -> str:
    """Markdown: milliseconds of a whole step, and the shares of ours."""
    step = result["step"]
    shares = step["sec-grpo"]["shares"]
    lines = ["| | step, ms | its update, ms | completion, tokens |", "|---|---|---|---|"]
    for name in TRAINERS:
        found = step[name]
        lines.append(
            f"| {name} | {1e3 * found['seconds']:,.0f} | {1e3 * found['update_seconds']:,.0f} "
            f"| {found['completion_length']:.1f} |"
        )
    parts = sorted(shares, key=lambda part: -shares[part])
    text = ", ".join(f"{part} {100 * shares[part]:.1f}%" for part in parts)
    rest = 100 * (1 - sum(shares.values()))
    return "\n".join(lines) + f"\n\nOurs by part: {text}, everything else {rest:.1f}%."


def readme_table(results: list[dict[str, Any]]) -> str:
    """Markdown: how much faster than TRL, and the memory."""
    lines = [
        f"| update phase against TRL | {' | '.join(LENGTHS)} | memory, {LENGTHS[1]} |",
        "|---" * (len(LENGTHS) + 2) + "|",
    ]
    measured = {
        (case["shape"], case["lengths"]): case for result in results for case in result["update"]
    }
    for shape in SHAPES:
        cases = [measured.get((shape, lengths)) for lengths in LENGTHS]
        cells = ["not measured" if c is None else _update_cells(c)[4] for c in cases]
        cells.append("not measured" if cases[1] is None else _update_cells(cases[1])[5])
        where = "CPU" if shape == "scaled" else "GPU, bf16"
        lines.append(f"| {shape}, {where} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def tables() -> dict[tuple[str, str], str]:
    """(file, mark) -> what stands between its marks."""
    results = read_results()
    found = list(results.values())
    return {
        ("docs/trainer.md", "update"): update_table(found),
        ("docs/trainer.md", "step"): step_table(results["cpu"]),
        ("README.md", "update"): readme_table(found),
    }


def write_tables() -> None:
    """The tables into the documentation, between their marks."""
    for (file, name), lines in tables().items():
        text = (ROOT / file).read_text()
        marks = f"<!-- {name} -->", f"<!-- /{name} -->"
        begin, end = (text.index(mark) for mark in marks)
        (ROOT / file).write_text(f"{text[: begin + len(marks[0])]}\n{lines}\n{text[end:]}")


if __name__ == "__main__":
    main()
