"""Numbers and a table from a comparison. S seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from rich.table import Table

from sec_grpo.simulation.experiment import Comparison, Outcome, settings_of

BASELINE = "random"
CAVEAT = (
    "The learner's step is proportional to |A| by construction, which favours SEC and DUMP. This "
    "shows what a rule does, not what a language model will gain."
)
_LEVEL_WINDOW = 10  # steps at either end over which the mean level is taken


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95% interval, by Student's t."""
    array = np.asarray(values, dtype=np.float64)
    half = student_t(len(array) - 1) * float(array.std(ddof=1)) / math.sqrt(len(array))
    return float(array.mean()), half


def student_t(degrees: int) -> float:
    """The 97.5% quantile of Student's t (Abramowitz and Stegun 26.7.5; from 4 degrees within 0.1%)."""
    z = NormalDist().inv_cdf(0.975)
    if degrees < 4:
        return {1: 12.706, 2: 4.303, 3: 3.182}[degrees]
    return (
        z
        + (z**3 + z) / (4 * degrees)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    )


def summarise(comparison: Comparison) -> dict[str, Any]:
    """Everything that is shown, and that JSON can hold."""
    baseline = comparison.outcomes.get(BASELINE)
    methods = {name: _row(found, baseline) for name, found in comparison.outcomes.items()}
    summary: dict[str, Any] = {
        "scenario": comparison.scenario.name,
        "title": comparison.scenario.title,
        "extra": comparison.scenario.extra,
        "learner": settings_of(comparison.scenario),
        "methods": methods,
    }
    if comparison.best_static is not None:
        weights, found = comparison.best_static
        summary["best_static"] = {"weights": weights, **_row(found, baseline)}
    return summary


def _row(found: list[Outcome], baseline: list[Outcome] | None) -> dict[str, Any]:
    held_out, half = interval([one.held_out for one in found])
    row: dict[str, Any] = {
        "held_out": held_out,
        "held_out_half_interval": half,
        "trained": float(np.mean([one.trained for one in found])),
        "level_first": float(np.nanmean([one.mean_level[:_LEVEL_WINDOW] for one in found])),
        "level_last": float(np.nanmean([one.mean_level[-_LEVEL_WINDOW:] for one in found])),
        "extra_share": float(np.mean([one.extra_share for one in found])),
        "rollouts": float(np.mean([one.rollouts for one in found])),
        "steps": float(np.mean([len(one.mean_level) for one in found])),
        "each": [one.held_out for one in found],
    }
    if baseline is not None and baseline is not found:
        pairs = zip(found, baseline, strict=True)
        gain, gain_half = interval([a.held_out - b.held_out for a, b in pairs])
        row["gain"], row["gain_half_interval"] = gain, gain_half
    return row


def table(summary: dict[str, Any]) -> Table:
    """The methods, best held-out accuracy first, and the best static mixture last."""
    made = Table(
        title=f"{summary['title']}: accuracy after training", title_style="bold", expand=False
    )
    made.add_column("curriculum", no_wrap=True)
    for name in ("held out", "against random", "trained", "mean level"):
        made.add_column(name, justify="right", no_wrap=True)
    if summary["extra"]:
        made.add_column(f"{summary['extra']} arm", justify="right", no_wrap=True)
    rows = sorted(summary["methods"].items(), key=lambda item: -item[1]["held_out"])
    for name, row in rows:
        made.add_row(*_cells(name, row, summary["extra"]))
    if "best_static" in summary:
        best = summary["best_static"]
        made.add_section()
        weights = " ".join(f"{w:.2f}".lstrip("0") for w in best["weights"])
        made.add_row(*_cells(f"best static ({weights})", best, summary["extra"]))
    return made


def _cells(name: str, row: dict[str, Any], extra: str | None) -> list[str]:
    gain = "" if "gain" not in row else f"{row['gain']:+.3f} ± {row['gain_half_interval']:.3f}"
    cells = [
        name,
        f"{row['held_out']:.3f} ± {row['held_out_half_interval']:.3f}",
        gain,
        f"{row['trained']:.3f}",
        f"{row['level_first']:.2f} → {row['level_last']:.2f}",
    ]
    return [*cells, f"{row['extra_share']:.0%}"] if extra else cells
