"""The tables of docs/kernels.md, from results/heads_gpu.json and kernels_gpu.json."""

from __future__ import annotations

from typing import Any

from bench_heads import BARE, GPU_SHAPES, OURS
from heads import IMPLEMENTATIONS

HEADS, KERNELS = "heads_gpu.json", "kernels_gpu.json"
OTHERS = [name for name in IMPLEMENTATIONS if not name.startswith(OURS)]
Parts = dict[str, dict[str, Any]]


def heads_table(parts: Parts) -> str:
    """Markdown, a row a shape: ours and the fastest other as multiples of the bare products."""
    titles = ("training", "frozen head", "log-probabilities", "half dead", "memory, GiB")
    lines = [f"| N | D | GPU | {' | '.join(titles)} |", "|---" * (len(titles) + 3) + "|"]
    for shape in GPU_SHAPES:
        part = parts.get(shape.name)
        cells = ["not measured"] * (len(titles) + 1) if part is None else _heads_cells(part)
        lines.append(f"| {shape.tokens} | {shape.hidden} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _heads_cells(part: dict[str, Any]) -> list[str]:
    found = {(entry["group"], entry["name"]): entry for entry in part["benchmarks"]}
    cells = [part["environment"]["gpu"]]
    cells += [_beside_others(found, group) for group in ("train", "frozen", "logprobs")]
    ours, dead = found.get(("train", OURS)), found.get(("dead", OURS))
    if ours is None or dead is None:
        return [*cells, "failed", "failed"]
    cells.append(f"{dead['median_ms'] / ours['median_ms']:.2f} of training")
    return [*cells, f"{ours['peak_gib']:.2f}"]


def _beside_others(found: dict[tuple[str, str], dict[str, Any]], group: str) -> str:
    """Milliseconds, and multiples of the products: ours, and the fastest other that ran."""
    ours, bare = found.get((group, OURS)), found.get((group, BARE))
    if ours is None or bare is None:
        return "failed"
    cell = f"{ours['median_ms']:.1f} ms, {ours['median_ms'] / bare['median_ms']:.2f}x"
    others = {
        name: found[group, name]["median_ms"]
        for name in OTHERS
        if (group, name) in found and not found[group, name].get("out_of_memory")
    }
    if not others:
        return cell
    fastest = min(others, key=lambda name: others[name])
    return f"{cell} ({fastest} {others[fastest] / bare['median_ms']:.2f}x)"


def policy_table(parts: Parts) -> str:
    """Markdown: advantages, policy loss and gradient of 1M tokens beside a copy of their bytes."""
    lines = [
        "| GPU | advantages and policy loss | copy | ratio | with Python |",
        "|---|---|---|---|---|",
    ]
    found = {
        (entry["how"], entry["work"]): entry["median_ms"]
        for part in parts.values()
        for entry in part["benchmarks"]
        if entry["device"] != "cpu" and "work" in entry
    }
    times = [found.get(key) for key in (("replayed", "own"), ("replayed", "copy"))]
    times.append(found.get(("called", "own")))
    if None in times:
        return "\n".join([*lines, "|" + " not measured |" * 5])
    own, copy, called = times
    gpu = next(iter(parts.values()))["environment"]["gpu"]
    cells = [gpu, f"{own:.3f} ms", f"{copy:.3f} ms", f"{own / copy:.2f}x", f"{called:.3f} ms"]
    return "\n".join([*lines, f"| {' | '.join(cells)} |"])
