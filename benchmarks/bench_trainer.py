"""The trainer beside the newest TRL: the update phase and whole steps, in one run.

    python benchmarks/bench_trainer.py                      # results/trainer_cpu.json: 5 minutes
    python benchmarks/bench_trainer.py --device cuda        # results/trainer_gpu.json
    python benchmarks/bench_trainer.py --part "scaled, equal"   # one of its parts

The two take turns, each on a new model, and their gradients are compared first. TRL runs with the
same micro-batches, and with others, of which the fastest are its best. What a step is:
`trainer_runs.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from typing import Any

import torch
from results_file import write_part
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
from trainer_tables import RESULTS, STEP

MODELS = {"cpu": ["scaled"], "cuda": ["qwen2.5-0.5b", "qwen2.5-1.5b"]}
MICRO_BATCH = 8
OTHER_MICRO_BATCHES = (1, 2, 4, 20)
STEPS = 3
"""of a round; the first warms up"""
STEPS_WITH_SAMPLING = 12


def parts(device: str) -> list[str]:
    """What is measured on "cpu" or "cuda", each of it written as soon as it is known."""
    updates = [f"{shape}, {lengths}" for shape in MODELS[device] for lengths in LENGTHS]
    return [*updates, *([STEP] if device == "cpu" else [])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=RESULTS, default="cpu")
    parser.add_argument("--part", help="default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = arguments.device
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU")
    if arguments.part and arguments.part not in parts(device):
        parser.error(f"--part must be one of {parts(device)}, got {arguments.part!r}")
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        torch.set_num_threads(1)
    if arguments.memory:
        print(json.dumps(memory(*arguments.memory)))
        return
    for part in [arguments.part] if arguments.part else parts(device):
        load = os.getloadavg()[1]
        measured = (
            step_case(arguments.rounds) if part == STEP else update_case(part, arguments.rounds)
        )
        write_part(RESULTS[device], part, {"load": load, "rounds": arguments.rounds, **measured})
        print(json.dumps(measured), flush=True)


def update_case(part: str, rounds: int) -> dict[str, Any]:
    """One model and distribution of lengths: both trainers, and TRL with its best micro-batch."""
    name, lengths = part.split(", ", 1)
    shape = SHAPES[name]
    batch = make_batch(shape, lengths)
    error = compare_gradients(shape, batch)
    runs = {
        "sec-grpo": ("sec-grpo", MICRO_BATCH),
        "trl": ("trl", MICRO_BATCH),
        **{f"trl, {size}": ("trl", size) for size in OTHER_MICRO_BATCHES},
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    peaks: dict[str, int] = {}
    resident: dict[str, int] = {}
    for _ in range(rounds):
        for name, (trainer, micro_batch) in list(runs.items()):
            try:
                found = measure_update(trainer, shape, batch, micro_batch=micro_batch, steps=STEPS)
            except torch.OutOfMemoryError:
                if micro_batch == MICRO_BATCH:
                    raise
                torch.cuda.empty_cache()
                del runs[name]
                continue
            seconds[name] += found.update_seconds
            peaks[name], resident[name] = found.peak_bytes, found.resident_bytes
    if not torch.cuda.is_available():
        for name in TRAINERS:
            peaks[name], resident[name] = memory_alone(name, shape, lengths, MICRO_BATCH)
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
    of_trl = [found for name, found in case["trainers"].items() if name.startswith("trl")]
    case["trainers"]["trl, its best"] = min(of_trl, key=lambda found: found["seconds"])
    return case


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
    return case


def _mean(logs: list[dict[str, float]], key: str) -> float:
    return statistics.fmean(entry[key] for entry in logs)


if __name__ == "__main__":
    main()
