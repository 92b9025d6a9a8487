"""Panels and the sections they stand in, before anything is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sec_grpo.report import marks
from sec_grpo.report.groups import RunGroup
from sec_grpo.report.log import FloatArray, RunLog
from sec_grpo.report.series import smooth, smoothing_window
from sec_grpo.report.style import run_style, shorten


@dataclass(frozen=True)
class LegendEntry:
    """A label and what it stands for."""

    label: str
    colour: str
    dash: str | None = None  # None for an area


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    unit: str  # of the vertical axis
    draw: Callable[[Any], None]
    x_label: str = "training step"
    tinted: bool = False
    emphasised: bool = False
    named_rows: bool = False  # the vertical axis has names in place of numbers


@dataclass(frozen=True)
class Section:
    """Panels that are read together."""

    key: str  # file name and anchor
    title: str
    panels: list[Panel]
    caption: str = ""
    legend_title: str = ""
    legend: list[LegendEntry] = field(default_factory=list)
    stacked: bool = False  # the first entry lies at the bottom
    columns: int = 4
    panel_size: tuple[float, float] = (2.9, 2.1)  # inches
    share_y: bool = False


def run_legend(groups: Sequence[RunGroup]) -> list[LegendEntry]:
    """An entry for each group of runs."""
    entries = []
    for group in groups:
        count = f" ({len(group.runs)} runs)" if len(group.runs) > 1 else ""
        style = run_style(group.number)
        entries.append(
            LegendEntry(shorten(group.label) + count, style["color"], style["linestyle"])
        )
    return entries


def notes(groups: Sequence[RunGroup], *more: str) -> str:
    """A caption of sentences, with what thin lines are where groups hold several runs."""
    notes = list(more)
    if any(len(group.runs) > 1 for group in groups):
        notes.append("Thin: each run. Thick: their mean.")
    return " ".join(note for note in notes if note)


def draw_group(ax: Any, group: RunGroup, curves: Sequence[tuple[FloatArray, FloatArray]]) -> None:
    """A line for each run of a group, and for several their mean."""
    style = run_style(group.number)
    if len(curves) == 1:
        marks.line(ax, *curves[0], label=group.label, **style)
        return
    for curve in curves:
        marks.line(ax, *curve, **style, linewidth=0.8, alpha=0.5)
    if curves:
        finite = [(x[np.isfinite(y)], y[np.isfinite(y)]) for x, y in curves]
        if all(len(x) for x, _ in finite):
            marks.line(ax, *marks.shared_mean(finite), label=group.label, **style)


def smoothed(run: RunLog, values: FloatArray) -> FloatArray:
    """A moving average over the report's window."""
    return smooth(values, smoothing_window(len(run.steps)))
