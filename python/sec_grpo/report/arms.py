"""The curriculum: where it goes, and each arm over the run. T steps, K arms."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from sec_grpo.report import marks, series
from sec_grpo.report.groups import RunGroup
from sec_grpo.report.log import FloatArray, RunLog
from sec_grpo.report.panels import (
    LegendEntry,
    Panel,
    Section,
    draw_group,
    notes,
    run_legend,
    smoothed,
)
from sec_grpo.report.style import MAX_ARM_COLOURS, arm_colours, run_style, shorten

MAX_ARM_PANELS = 24  # beyond, success is a heat map


def _bins(arms: Sequence[str]) -> list[tuple[str, slice]]:
    """The arms, or where they are many, neighbours together: label and columns."""
    if len(arms) <= MAX_ARM_COLOURS:
        return [(arm, slice(k, k + 1)) for k, arm in enumerate(arms)]
    edges = np.linspace(0, len(arms), MAX_ARM_COLOURS + 1).round().astype(int)
    return [
        (f"{shorten(arms[a], 12)} to {shorten(arms[b - 1], 12)}", slice(a, b))
        for a, b in itertools.pairwise(edges)
    ]


def allocation(runs: Sequence[RunLog], labels: Sequence[str]) -> Section | None:
    """The probability of the arms as stacked areas, and for a single run what was drawn."""
    if not any(len(run.steps) for run in runs):
        return None
    arms = list(dict.fromkeys(arm for run in runs for arm in run.arms))
    bins = _bins(arms)
    colours = arm_colours([label for label, _ in bins])
    joined = [label for label, _ in bins] if len(arms) > MAX_ARM_COLOURS else None

    def panel(title: str, run: RunLog, shares: FloatArray) -> Panel:
        if joined is None:
            wanted, palette = shares, [colours[arm] for arm in run.arms]
        else:
            position = {arm: k for k, arm in enumerate(run.arms)}
            columns = [[position[a] for a in arms[part] if a in position] for _, part in bins]
            wanted = np.stack([shares[:, c].sum(axis=1) for c in columns], axis=1)
            palette = list(colours.values())
        draw = partial(marks.stack, steps=run.steps, shares=wanted, colours=palette)
        return Panel(title, "share of the batch", draw)

    if len(runs) == 1:
        (run,) = runs
        panels = [panel("probability of each arm", run, run.probability)]
        window = series.smoothing_window(len(run.steps))
        title = f"prompts drawn (mean of {window} steps)" if window > 1 else "prompts drawn"
        if np.isfinite(run.draws).any():
            panels.append(panel(title, run, series.drawn_share(run)))
    else:
        panels = [
            panel(shorten(label, 44), run, run.probability)
            for run, label in zip(runs, labels, strict=True)
        ]
    return Section(
        key="allocation",
        title="Which arms the curriculum trains on",
        panels=panels,
        caption="Probability of each arm by step, the first arm at the bottom.",
        legend_title="arm",
        legend=[LegendEntry(shorten(arm), colour) for arm, colour in colours.items()],
        stacked=True,
        columns=2 if len(panels) in (2, 4) else 3,
        panel_size=(3.9, 2.7),
        share_y=True,
    )


def success(groups: Sequence[RunGroup]) -> Section | None:
    """Success in training, a panel an arm, with intervals."""
    runs = [run for group in groups for run in group.runs]
    arms = list(dict.fromkeys(arm for run in runs for arm in run.arms))
    logged = any(np.isfinite(run.successes).any() for run in runs)
    if not logged or len(arms) > MAX_ARM_PANELS:
        return None
    measured = {id(run): series.success(run) for run in runs}

    def draw(ax: Any, arm: str) -> None:
        for group in groups:
            style = run_style(group.number)
            curves = []
            for run in group.runs:
                if arm not in run.arms or not np.isfinite(run.successes).any():
                    continue
                k, found = run.arms.index(arm), measured[id(run)]
                curves.append((run.steps.astype(float), found.rate[:, k]))
                if len(group.runs) == 1:
                    bounds = found.low[:, k], found.high[:, k]
                    marks.band(ax, run.steps, *bounds, style["color"])
            draw_group(ax, group, curves)
        ax.set_ylim(-0.03, 1.03)
        marks.step_axis(ax, np.concatenate([run.steps for run in runs]))

    threshold = runs[0].config.get("success_threshold")
    said = "" if threshold is None else f" (reward of at least {threshold:g})"
    return Section(
        key="success",
        title="Success in training by arm",
        panels=[Panel(f"arm {shorten(arm)}", "success", partial(draw, arm=arm)) for arm in arms],
        caption=notes(
            groups,
            f"Share of rollouts that succeed{said}, moving average over "
            f"{series.SMOOTHING_SHARE:.0%} of the run; bands: 95% intervals. Gaps: not drawn.",
        ),
        legend_title="run",
        legend=run_legend(groups),
        share_y=True,
    )


_ARM_SERIES: tuple[tuple[str, str, Callable[[RunLog], FloatArray], float | None], ...] = (
    ("value Q", "Q", lambda run: run.value, None),
    ("probability", "probability", lambda run: run.probability, None),
    ("prompts drawn", "in all", lambda run: run.draws, None),
    ("success", "share of rollouts", lambda run: series.success(run).rate, 1.0),
    (
        "|A| with the std",
        "mean |A|",
        lambda run: smoothed(run, run.abs_advantage_with_std),
        None,
    ),
    (
        "|A| without the std",
        "mean |A|",
        lambda run: smoothed(run, run.abs_advantage_without_std),
        None,
    ),
    ("epochs consumed", "passes", lambda run: run.epochs, None),
    ("staleness", "steps since drawn", series.staleness, None),
)


def _slug(label: str) -> str:
    return re.sub(r"[^\w.-]+", "-", label).strip("-")[:40]


def each_arm(run: RunLog, label: str, number: int | None = None) -> Section | None:
    """What the log says of the arms of one run: a line each, or heat maps where they are many.

    `number` counts the runs of a report on several.
    """
    shown = [s for s in _ARM_SERIES if np.isfinite(s[2](run)).any()]
    if not shown:
        return None
    many = len(run.arms) > MAX_ARM_COLOURS
    colours = {} if many else arm_colours(run.arms)

    def draw(ax: Any, unit: str, values: Callable[[RunLog], FloatArray], top: float | None) -> None:
        if many:
            marks.heat_map(ax, run.steps, values(run), run.arms, unit, top)
            return
        table = values(run)
        for k, arm in enumerate(run.arms):
            marks.line(ax, run.steps, table[:, k], color=colours[arm], label=arm, linewidth=1.5)
        low = min(0.0, float(np.nanmin(table)))
        ax.set_ylim(bottom=1.05 * low, top=None if top is None else 1.03 * top)
        marks.step_axis(ax, run.steps)

    panels = [
        Panel(
            title,
            "arm" if many else unit,
            partial(draw, unit=unit, values=values, top=top),
            named_rows=many,
        )
        for title, unit, values, top in shown
    ]
    many_runs = number is not None
    return Section(
        key=f"arms_{number}_{_slug(label)}" if many_runs else "arms",
        title=f"Each arm: {shorten(label, 44)}" if many_runs else "Each arm",
        panels=panels,
        caption="Success and |A|: moving averages over "
        f"{series.SMOOTHING_SHARE:.0%} of the run, with gaps where an arm was not drawn.",
        legend_title="arm",
        legend=[LegendEntry(shorten(arm), c) for arm, c in colours.items()],
        stacked=True,
    )
