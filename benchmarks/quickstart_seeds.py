"""The quick start's recipe over several seeds: accuracy after random order and after SEC.

    python benchmarks/quickstart_seeds.py --seeds 0 1 2

writes `benchmarks/results/quickstart.json` and the two pictures in `docs/`, which the README shows:
accuracy over all seeds, and the allocation of the first.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from environment import environment

from sec_grpo.report import report

DOCS = Path(__file__).parents[1] / "docs"
RESULT = Path(__file__).parent / "results" / "quickstart.json"
MEASURES = ("mean_trained", "mean_held_out")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/quickstart_seeds"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as the quick start does
    before = environment()
    summaries = [run(seed, arguments.steps, arguments.output_dir) for seed in arguments.seeds]
    result = {
        "command": f"python benchmarks/quickstart_seeds.py --seeds "
        f"{' '.join(map(str, arguments.seeds))} --steps {arguments.steps}",
        "environment": before,
        "steps": arguments.steps,
        "runs": [
            {
                "seed": seed,
                "strategy": row["label"],
                "before": {name: row["before"][name] for name in MEASURES},
                "after": {name: row["after"][name] for name in MEASURES},
                "accuracy": row["after"]["accuracy"],
                "seconds": row["seconds"],
                "dead_groups": row["dead_groups"],
            }
            for seed, summary in zip(arguments.seeds, summaries, strict=True)
            for row in summary["runs"]
        ],
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    show(arguments.output_dir, arguments.seeds)
    print(table(result["runs"]))


def show(folder: Path, seeds: list[int]) -> None:
    """The README's pictures of all runs."""
    runs = [folder / f"seed{seed}" / name for name in ("random", "sec") for seed in seeds]
    report(runs, folder / "report")
    shutil.copyfile(folder / "report" / "accuracy.png", DOCS / "quickstart_accuracy.png")
    first = folder / f"seed{seeds[0]}" / "report" / "allocation.png"
    shutil.copyfile(first, DOCS / "quickstart_allocation.png")


def run(seed: int, steps: int, folder: Path) -> dict[str, Any]:
    """The summary of `sec-grpo quickstart` with one seed."""
    target = folder / f"seed{seed}"
    command = [sys.executable, "-m", "sec_grpo", "quickstart", "--seed", str(seed)]
    subprocess.run(
        [*command, "--steps", str(steps), "--output-dir", str(target)], check=True, text=True
    )
    return json.loads((target / "report" / "summary.json").read_text())


def table(runs: list[dict[str, Any]]) -> str:
    """Mean and range over the seeds, as Markdown."""
    lines = ["| | levels 2-16 | held out 18, 20 | dead groups | seconds |", "|---|---|---|---|---|"]
    first = [r for r in runs if r["strategy"] == runs[0]["strategy"]]
    rows = {"before": [(r["before"], None, None) for r in first]}
    for name in dict.fromkeys(r["strategy"] for r in runs):
        chosen = [r for r in runs if r["strategy"] == name]
        rows[name] = [(r["after"], r["dead_groups"], r["seconds"]) for r in chosen]
    for name, values in rows.items():
        cells = [spread([accuracy[m] for accuracy, _, _ in values], 2) for m in MEASURES]
        for column, digits in ((1, 2), (2, 0)):
            numbers = [value[column] for value in values if value[column] is not None]
            cells.append(spread(numbers, digits) if numbers else "-")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(numbers: list[float], digits: int) -> str:
    """Mean (lowest to highest)."""
    low, mean, high = min(numbers), statistics.mean(numbers), max(numbers)
    return f"{mean:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


if __name__ == "__main__":
    main()
