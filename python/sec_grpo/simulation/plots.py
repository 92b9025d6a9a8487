"""Plots of comparisons: accuracy with intervals, and where the prompts went."""

from __future__ import annotations

import io
import math
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from sec_grpo.report.style import DPI, RUN_COLOURS, STYLE
from sec_grpo.simulation.experiment import Comparison
from sec_grpo.simulation.summary import BASELINE

_PANELS_A_ROW = 4


def accuracy_figure(summaries: list[dict[str, Any]]) -> Figure:
    """Held-out accuracy of each method with its 95% interval, one panel a scenario."""
    columns = min(2, len(summaries))
    rows = math.ceil(len(summaries) / columns)
    height = 0.24 * max(len(summary["methods"]) for summary in summaries) + 1.1
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6 * columns, height * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis, summary in zip(axes, summaries, strict=False):
            lines = _accuracy_panel(axis, summary)
        for axis in axes[len(summaries) :]:
            axis.set_visible(False)
        if lines:
            figure.legend(handles=lines, loc="outside lower center", ncols=len(lines))
        figure.suptitle("Curricula on a simulated learner", x=0.01, ha="left")
    return figure


def _accuracy_panel(axis: Any, summary: dict[str, Any]) -> list[Any]:
    """Draw one panel; returns the lines for the legend."""
    methods = sorted(summary["methods"].items(), key=lambda item: item[1]["held_out"])
    names = [name for name, _ in methods]
    values = [row["held_out"] for _, row in methods]
    halves = [row["held_out_half_interval"] for _, row in methods]
    colours = ["#000000" if name == BASELINE else RUN_COLOURS[0] for name in names]
    axis.grid(False, axis="y")
    for place, (value, half, colour) in enumerate(zip(values, halves, colours, strict=True)):
        axis.errorbar(value, place, xerr=half, fmt="o", color=colour, markersize=5, capsize=2.5)
    lines = []
    if BASELINE in summary["methods"]:
        value = summary["methods"][BASELINE]["held_out"]
        lines.append(axis.axvline(value, color="#000000", linewidth=0.9, label="random"))
    if "best_static" in summary:
        style = {"color": RUN_COLOURS[1], "linestyle": "--", "linewidth": 1.2}
        value = summary["best_static"]["held_out"]
        lines.append(axis.axvline(value, label="best static weights", **style))
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(-0.7, len(names) - 0.3)
    axis.set_title(summary["title"])
    axis.set_xlabel("held-out accuracy, mean and 95% interval")
    if min(values) < 0.5 * max(values):
        # A little below 0, so that the marks of methods at 0 are whole.
        axis.set_xlim(left=-0.015 * axis.get_xlim()[1])
    return lines


def allocation_figure(comparison: Comparison) -> Figure:
    """Share of each level over training, averaged over the seeds, one panel a method."""
    names = list(comparison.outcomes)
    # Three at least: the title and the legend need the width.
    columns = min(_PANELS_A_ROW, max(3, len(names)))
    rows = math.ceil(len(names) / columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.7 * columns, 1.75 * rows + 0.9), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
        num_levels = len(comparison.scenario.learner.skills) - 1
        colours = list(matplotlib.colormaps["viridis"](np.linspace(0.9, 0.1, num_levels)))
        labels = [f"level {level + 1}" for level in range(num_levels)]
        if comparison.scenario.extra:
            colours.append((0.84, 0.37, 0.0, 1.0))
            labels.append(f"{comparison.scenario.extra} arm")
        for axis, name in zip(axes, names, strict=False):
            found = comparison.outcomes[name]
            steps = min(len(one.allocation) for one in found)
            mean = np.mean([one.allocation[:steps] for one in found], axis=0)
            axis.stackplot(np.arange(1, steps + 1), mean.T, colors=colours, linewidth=0)
            axis.set_title(name)
            axis.set_xlim(1, max(steps, 2))
            axis.set_ylim(0, 1)
            axis.grid(False)
        for axis in axes[max(0, len(names) - columns) : len(names)]:
            axis.set_xlabel("step")
        for axis in axes[len(names) :]:
            axis.set_visible(False)
        figure.supylabel("share of the prompts", fontsize=10)
        pairs = zip(colours, labels, strict=True)
        handles = [Patch(color=colour, label=label) for colour, label in pairs]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        figure.suptitle(f"Where the prompts went: {comparison.scenario.title}", x=0.01, ha="left")
    return figure


def mean_level_figure(comparison: Comparison, chosen: list[str]) -> Figure:
    """Mean level of the batch over training of some methods."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axis = figure.subplots()
        ends = []
        for place, name in enumerate(chosen):
            found = comparison.outcomes[name]
            steps = min(len(one.mean_level) for one in found)
            mean = 1 + np.nanmean([one.mean_level[:steps] for one in found], axis=0)
            colour = "#000000" if name == BASELINE else RUN_COLOURS[place % (len(RUN_COLOURS) - 1)]
            axis.plot(np.arange(1, steps + 1), mean, color=colour, label=name)
            ends.append(steps)
        axis.set_xlim(1, max(2, *ends))
        axis.set_xlabel("step")
        axis.set_ylabel("mean level of the batch")
        axis.set_title(f"Mean level: {comparison.scenario.title}")
        axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def png(figure: Figure) -> bytes:
    """The figure as PNG, the same bytes for the same numbers."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()
