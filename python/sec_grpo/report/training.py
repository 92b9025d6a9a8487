"""The run as a whole: training curves, what its groups teach, where its time goes."""

from __future__ import annotations

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
from sec_grpo.report.style import OUTCOME_COLOURS, PART_COLOURS, run_style, shorten


def _scalar(name: str) -> Callable[[RunLog], FloatArray]:
    return lambda run: run.scalar(name)


_SHARE = (-0.03, 1.03)
_TRAINING_SERIES: tuple[
    tuple[str, str, Callable[[RunLog], FloatArray], tuple[float | None, float | None]], ...
] = (
    ("training reward", "mean reward", _scalar("reward"), (None, None)),
    ("dead groups", "share of groups", _scalar("frac_reward_zero_std"), _SHARE),
    ("learning signal", "mean |A|", series.mean_advantage, (0.0, None)),
    ("effective number of arms", "exp(entropy of p)", series.effective_arms, (0.0, None)),
    ("mean level", "rank of the arm", series.mean_level, (None, None)),
    ("policy entropy", "nats per token", _scalar("entropy"), (0.0, None)),
    ("KL to the reference", "nats per token", _scalar("kl"), (None, None)),
    ("completion length", "mean tokens", _scalar("completions/mean_length"), (0.0, None)),
    ("truncated completions", "share", _scalar("completions/clipped_ratio"), _SHARE),
    ("gradient norm", "before clipping", _scalar("grad_norm"), (0.0, None)),
    (
        "dropped groups",
        "per batch",
        _scalar("dynamic_sampling/dropped_groups"),
        (0.0, None),
    ),
    (
        "refill rollouts",
        "per batch",
        _scalar("dynamic_sampling/refill_rollouts"),
        (0.0, None),
    ),
)


def training(groups: Sequence[RunGroup]) -> Section | None:
    """Scalars over the run; those that no run logged are left out."""
    runs = [run for group in groups for run in group.runs]
    shown = [s for s in _TRAINING_SERIES if any(np.isfinite(s[2](run)).any() for run in runs)]
    if not shown:
        return None

    def draw(
        ax: Any,
        values: Callable[[RunLog], FloatArray],
        bounds: tuple[float | None, float | None],
    ) -> None:
        for group in groups:
            curves = []
            for run in group.runs:
                raw = values(run)
                if not np.isfinite(raw).any():
                    continue
                steps = run.steps.astype(float)
                if len(group.runs) == 1:  # the steps of several seeds would hide each other
                    faint = {**run_style(group.number), "linewidth": 0.7, "alpha": 0.28}
                    marks.line(ax, steps, raw, **faint)
                curves.append((steps, smoothed(run, raw)))
            draw_group(ax, group, curves)
        ax.set_ylim(*bounds)
        marks.step_axis(ax, np.concatenate([run.steps for run in runs]))

    compared = (
        "Reward and dead groups cannot be compared between curricula: each trains on its own mix "
        "of levels."
    )
    return Section(
        key="training",
        title="Training curves",
        panels=[
            Panel(title, unit, partial(draw, values=values, bounds=bounds))
            for title, unit, values, bounds in shown
        ],
        caption=notes(
            groups,
            f"Moving averages over {series.SMOOTHING_SHARE:.0%} of the run; faint: each step.",
            compared if len(groups) > 1 else "",
        ),
        legend_title="run",
        legend=run_legend(groups) if len(runs) > 1 else [],
    )


def outcomes(runs: Sequence[RunLog], labels: Sequence[str]) -> Section | None:
    """The share of each kind of group, as stacked areas."""
    names = {"all_fail": "all fail", "format_only": "format only", "all_pass": "all pass"}
    logged = [
        (run, label)
        for run, label in zip(runs, labels, strict=True)
        if np.isfinite(run.scalar("groups/mixed")).any()
    ]
    if not logged:
        return None
    panels = [
        Panel(
            "groups of each batch" if len(runs) == 1 else shorten(label, 44),
            "share of groups",
            partial(
                marks.stack,
                steps=run.steps,
                shares=series.outcome_shares(run),
                colours=list(OUTCOME_COLOURS.values()),
            ),
        )
        for run, label in logged
    ]
    return Section(
        key="groups",
        title="What the groups teach",
        panels=panels,
        caption="Mixed: some rollouts of the group succeed. Format only: none does, but the "
        "rewards differ. Where all fail alike or all pass alike nothing is learnt. Moving "
        f"averages over {series.SMOOTHING_SHARE:.0%} of the run.",
        legend_title="rollouts of a group",
        legend=[
            LegendEntry(names.get(name, name), colour) for name, colour in OUTCOME_COLOURS.items()
        ],
        stacked=True,
        columns=2 if len(panels) in (2, 4) else 3,
        panel_size=(3.9, 2.5),
        share_y=True,
    )


def times(runs: Sequence[RunLog], labels: Sequence[str]) -> Section | None:
    """Mean seconds of an optimizer step by part, a bar a run."""
    found = {
        label: parts
        for run, label in zip(runs, labels, strict=True)
        if (parts := series.step_times(run))
    }
    if not found:
        return None

    def draw(ax: Any) -> None:
        starts = np.zeros(len(found))
        for name, colour in PART_COLOURS.items():
            widths = np.array([parts[name] for parts in found.values()])
            ax.barh(range(len(found)), widths, left=starts, color=colour, height=0.62)
            starts = starts + widths
        ax.set_yticks(range(len(found)), [shorten(label, 20) for label in found])
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)

    used = [name for name in PART_COLOURS if any(parts[name] > 0 for parts in found.values())]
    return Section(
        key="time",
        title="Where the time of a step goes",
        panels=[Panel("mean of the optimizer steps", "", draw, x_label="seconds", named_rows=True)],
        caption="Update: forward, backward and optimizer. Logprobs: those "
        "of the sampling policy and the reference. Other: tokenizing, packing, logging.",
        legend_title="part",
        legend=[LegendEntry(name, PART_COLOURS[name]) for name in used],
        panel_size=(7.0, 1.0 + 0.4 * len(found)),
        columns=1,
    )
