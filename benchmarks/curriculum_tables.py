"""The tables of docs/curriculum.md, from results/curriculum.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "curriculum.json"
BATCHES = (256, 4096)


def sizes_table(rows: list[dict[str, Any]]) -> str:
    """Markdown; nanoseconds a prompt at B = 256 / 4096, and what a whole curriculum takes."""
    lines = [
        "| prompts x arms | draw | RandomSampler: next (with its shuffle) | step | loader's step "
        "| build, ms: best, median | bytes a prompt | save, load, ms | checkpoint, bytes an arm |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:

        def pair(name: str, row: dict[str, Any] = row) -> str:
            found = [row[f"b{batch}"].get(name) for batch in BATCHES]
            if None in found:
                return "-"
            numbers = (1e3 * us / batch for us, batch in zip(found, BATCHES, strict=True))
            return " / ".join(f"{number:,.0f}" for number in numbers)

        few = row["arms"] < 100
        checkpoint = "-" if few else f"{row['checkpoint_bytes'] / row['arms']:.0f}"
        held = row["resident_bytes"] / row["prompts"]
        lines.append(
            f"| {size_text(row['prompts'])} x {size_text(row['arms'])} | {pair('draw')} "
            f"| {pair('random_sampler_next')} ({pair('random_sampler')}) | {pair('step')} "
            f"| {pair('buffer_loader_step')} "
            f"| {row['build_best_ms']:.1f}, {row['build_ms']:.1f} "
            f"| {held:.1f} | {row['save_ms']:.1f}, {row['load_ms']:.1f} | {checkpoint} |"
        )
    return "\n".join(lines)


def strategies_table(rows: list[dict[str, Any]]) -> str:
    """Markdown; B = 256, microseconds, and bytes an arm of a state after 60 batches."""
    counts = sorted({row["arms"] for row in rows})
    titles = [
        f"{what}, {size_text(count)} arms"
        for what in ("draw and observe", "state")
        for count in counts
    ]
    lines = ["| strategy | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    for name in dict.fromkeys(row["strategy"] for row in rows):
        mine = {row["arms"]: row for row in rows if row["strategy"] == name}
        cells = [f"{mine[count]['draw'] + mine[count]['observe']:,.0f}" for count in counts]
        cells += [f"{mine[count]['state_bytes_an_arm']:.0f}" for count in counts]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def size_text(number: int) -> str:
    """10000000 as 10M."""
    for unit, letter in ((10**6, "M"), (10**3, "k")):
        if number >= unit and number % unit == 0:
            return f"{number // unit}{letter}"
    return str(number)
