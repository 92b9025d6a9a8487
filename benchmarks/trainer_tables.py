"""The tables of docs/trainer.md and README.md, from results/trainer_*.json."""

from __future__ import annotations

from typing import Any

from results_file import read_parts
from trainer_runs import LENGTHS, SHAPES, TRAINERS

RESULTS = {"cpu": "trainer_cpu.json", "cuda": "trainer_gpu.json"}
STEP = "whole steps"
"""the part that is measured on the CPU alone"""


def measured_updates() -> dict[str, dict[str, Any]]:
    """part -> what was measured, of both devices."""
    return {name: part for file in RESULTS.values() for name, part in read_parts(file).items()}


def update_table(measured: dict[str, dict[str, Any]]) -> str:
    """Markdown, for the documentation; a row for everything that is to be measured."""
    lines = [
        "| model | lengths | sec-grpo, tokens/s | TRL, tokens/s | faster "
        "| TRL at its best | faster | memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for shape in SHAPES:
        for lengths in LENGTHS:
            case = measured.get(f"{shape}, {lengths}")
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


def step_table(step: dict[str, Any]) -> str:
    """Markdown: milliseconds of a whole step, and the shares of ours."""
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


def readme_table(measured: dict[str, dict[str, Any]]) -> str:
    """Markdown: how much faster than TRL, and the memory."""
    lines = [
        f"| update phase against TRL | {' | '.join(LENGTHS)} | memory, {LENGTHS[1]} |",
        "|---" * (len(LENGTHS) + 2) + "|",
    ]
    for shape in SHAPES:
        cases = [measured.get(f"{shape}, {lengths}") for lengths in LENGTHS]
        cells = ["not measured" if c is None else _update_cells(c)[4] for c in cases]
        cells.append("not measured" if cases[1] is None else _update_cells(cases[1])[5])
        where = "CPU" if shape == "scaled" else "GPU, bf16"
        lines.append(f"| {shape}, {where} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
