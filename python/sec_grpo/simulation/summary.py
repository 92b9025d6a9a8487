"""Numbers and a table from a comparison. S seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from rich import box
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
    """The 97.5% quantile of Student's t, from 4 degrees on within 0.3%.

    Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5.
    """
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
        "level_first": _mean_level(found, slice(None, _LEVEL_WINDOW)),
        "level_last": _mean_level(found, slice(-_LEVEL_WINDOW, None)),
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
    extra = summary["extra"]
    made = Table(
        title=f"{summary['title']}: accuracy after training",
        title_style="bold",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    made.add_column("curriculum", no_wrap=True)
    for name in ("held out", "over random", "trained", "mean level"):
        made.add_column(name, justify="right", no_wrap=True)
    if extra:
        made.add_column("share", justify="right", no_wrap=True)
    for name, row in sorted(summary["methods"].items(), key=lambda item: -item[1]["held_out"]):
        made.add_row(*_cells(name, row, extra))
    notes = [] if not extra else [f"share: of the prompts, that the {extra} arm took"]
    if "best_static" in summary:
        best = summary["best_static"]
        made.add_section()
        made.add_row(*_cells("best static weights", best, extra))
        weights = ", ".join(f"{weight:.2f}" for weight in best["weights"])
        notes.append(f"best static weights found: {weights}")
    made.caption = "\n".join(notes)
    made.caption_justify = "left"
    return made


def _cells(name: str, row: dict[str, Any], extra: str | None) -> list[str]:
    gain = "" if "gain" not in row else f"{row['gain']:+.3f} ±{row['gain_half_interval']:.3f}"
    cells = [
        name,
        f"{row['held_out']:.3f} ±{row['held_out_half_interval']:.3f}",
        gain,
        f"{row['trained']:.3f}",
        f"{_level(row['level_first'])} → {_level(row['level_last'])}",
    ]
    return [*cells, f"{row['extra_share']:.0%}"] if extra else cells


def _level(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _mean_level(found: list[Outcome], steps: slice) -> float | None:
    """From 1; None where the steps drew no trained level."""
    levels = np.concatenate([one.mean_level[steps] for one in found])
    levels = levels[~np.isnan(levels)]
    return None if levels.size == 0 else 1.0 + float(levels.mean())
