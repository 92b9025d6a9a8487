"""Accuracy on the evaluation prompts: a panel for the means, one for each level."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from sec_grpo.report import marks, series
from sec_grpo.report.groups import RunGroup, run_labels
from sec_grpo.report.log import RunLog
from sec_grpo.report.panels import Panel, Section, notes, run_legend
from sec_grpo.report.style import run_style, shorten

MAX_LEVEL_PANELS = 24  # beyond, levels are heat maps


def accuracy(groups: Sequence[RunGroup], against: str) -> Section | None:
    """Accuracy against "step", by level, or against "time", the means alone."""
    runs = [run for group in groups for run in group.runs]
    levels = list(dict.fromkeys(level for run in runs for level in run.levels))
    if not levels:
        return None
    unseen = {level for run in runs for level in run.held_out}
    trained = [level for level in levels if level not in unseen]
    held_out = [level for level in levels if level in unseen]
    x_label = "training step" if against == "step" else "seconds of training"

    def panel(title: str, levels: list[str], *, mean: bool) -> Panel:
        draw = partial(_draw_accuracy, groups=groups, levels=levels, against=against)
        tinted = bool(held_out) and levels[0] in unseen
        return Panel(title, "accuracy", draw, x_label, tinted=tinted, emphasised=mean)

    panels = []
    if trained:
        panels.append(panel("mean of trained levels", trained, mean=True))
    if held_out:
        panels.append(panel("mean of held-out levels", held_out, mean=True))
    if against == "step" and len(levels) <= MAX_LEVEL_PANELS:
        for level in [*trained, *held_out]:
            mark = " (held out)" if level in unseen else ""
            panels.append(panel(f"level {shorten(level)}{mark}", [level], mean=False))
    elif against == "step":
        for run, label in zip(runs, run_labels(runs), strict=True):
            draw = partial(_draw_levels, run=run, levels=[*trained, *held_out])
            panels.append(Panel(f"levels, {shorten(label)}", "level", draw, named_rows=True))
    by_time = "" if against == "step" else " against time"
    return Section(
        key="accuracy" if against == "step" else "accuracy_by_time",
        title=f"Accuracy on fixed evaluation prompts{by_time}",
        panels=panels,
        caption=notes(
            groups,
            "Tinted: levels never trained on." if held_out else "",
            "Bands: 95% intervals over the prompts of a level."
            if any(len(group.runs) == 1 for group in groups) and against == "step"
            else "",
        ),
        legend_title="run",
        legend=run_legend(groups),
        share_y=len(levels) <= MAX_LEVEL_PANELS,
    )


def _draw_accuracy(
    ax: Any, *, groups: Sequence[RunGroup], levels: Sequence[str], against: str
) -> None:
    for group in groups:
        curves = [series.accuracy_curve(run, levels, against) for run in group.runs]
        curves = [curve for curve in curves if len(curve[0])]
        style = run_style(group.number)
        marker: dict[str, Any] = {}
        if curves and len(curves[0][0]) <= 40:
            marker = {"marker": "o", "markersize": 3.2}
        if len(curves) == 1:
            if len(levels) == 1:
                _accuracy_band(ax, group.runs[0], levels[0], against, style["color"])
            marks.line(ax, *curves[0], label=group.label, **{**style, **marker})
            continue
        for curve in curves:
            marks.line(ax, *curve, **style, linewidth=0.8, alpha=0.5)
        if curves:
            mean = marks.shared_mean(curves, shared_clock=against == "step")
            marks.line(ax, *mean, label=group.label, **style)
    ax.set_ylim(-0.03, 1.03)


def _accuracy_band(ax: Any, run: RunLog, level: str, against: str, colour: str) -> None:
    rows = [
        (getattr(e, against), *series.wilson_interval(e.accuracy[level], e.num_prompts[level]))
        for e in run.evals
        # An evaluation reward beyond 0 and 1 is no share, so has no such interval.
        if 0 <= e.accuracy.get(level, np.nan) <= 1 and e.num_prompts.get(level, 0) > 0
    ]
    if rows:
        x, low, high = np.array(rows).T
        marks.band(ax, x, low, high, colour)


def _draw_levels(ax: Any, *, run: RunLog, levels: Sequence[str]) -> None:
    if not run.evals:
        marks.note(ax, "no evaluation")
        return
    values = np.array([[e.accuracy.get(level, np.nan) for level in levels] for e in run.evals])
    steps = np.array([float(e.step) for e in run.evals])
    marks.heat_map(ax, steps, values, levels, "accuracy", top=1.0)
