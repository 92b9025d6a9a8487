"""Plots of one or several runs: allocation, accuracy, training curves, arm values.

Figures are made without pyplot, so no window, backend or global state is involved. Arms and
levels are ordered, hence a sequential palette (viridis); runs are not, hence Okabe and Ito's
colour-blind-safe colours. Axes: T steps, K arms.
"""

from __future__ import annotations

import functools
import io
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from sec_grpo.report.atomic import write_atomically
from sec_grpo.report.log import Evaluation, FloatArray, RunLog
from sec_grpo.report.table import run_labels, wilson_interval

DPI = 150
MAX_LEGEND_ARMS = 16  # beyond, a colour bar names some of the arms
MANY_PANELS = 16  # beyond, accuracy panels are smaller
SMOOTHING_SHARE = 0.08  # of the logged steps, on the whole window of a moving average

# Black first would read as a reference line; yellow is too pale on white.
RUN_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
RUN_DASHES = ("-", "--", "-.", ":")
CAPTION_COLOUR = "#555555"
HELD_OUT_COLOUR = "#FBF4E6"

STYLE = {
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "axes.facecolor": "white",
    "axes.edgecolor": "#444444",
    "axes.labelcolor": "black",
    "axes.labelsize": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": "black",
    "text.usetex": False,
    "text.parse_math": False,  # a label with two dollar signs is not a formula
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.title_fontsize": 9,
    "legend.frameon": False,
    "figure.titlesize": 13,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}

Runs = RunLog | Sequence[RunLog]


def _styled(plot: Callable[..., Figure]) -> Callable[..., Figure]:
    @functools.wraps(plot)
    def wrapper(*args: Any, **kwargs: Any) -> Figure:
        with matplotlib.rc_context(STYLE):
            return plot(*args, **kwargs)

    return wrapper


def _as_list(runs: Runs) -> list[RunLog]:
    found = [runs] if isinstance(runs, RunLog) else list(runs)
    if not found:
        raise ValueError("runs must hold at least one run. Got none.")
    return found


def _shorten(label: str, length: int = 28) -> str:
    return label if len(label) <= length else label[: length - 1] + "…"


@dataclass
class _Group:
    """Runs of one name, drawn in one colour: say, the seeds of one strategy."""

    name: str
    runs: list[RunLog]
    colour: str
    dash: str

    @property
    def label(self) -> str:
        count = len(self.runs)
        return _shorten(self.name) + (f" ({count} runs)" if count > 1 else "")


def _groups(runs: Sequence[RunLog]) -> list[_Group]:
    names = list(dict.fromkeys(run.name for run in runs))
    return [
        _Group(
            name=name,
            runs=[run for run in runs if run.name == name],
            colour=RUN_COLOURS[i % len(RUN_COLOURS)],
            dash=RUN_DASHES[i // len(RUN_COLOURS) % len(RUN_DASHES)],
        )
        for i, name in enumerate(names)
    ]


def _grid(count: int, columns: int, panel: tuple[float, float], **share: Any) -> tuple[Figure, Any]:
    """A figure with ``count`` panels, row by row; the panels, and none left empty."""
    columns = min(count, columns)
    rows = math.ceil(count / columns)
    size = (panel[0] * columns + 1.6, panel[1] * rows + 1.0)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.07))
    axes = figure.subplots(rows, columns, squeeze=False, **share).ravel()
    for ax in axes[count:]:
        ax.remove()
    for i, ax in enumerate(axes[:count]):
        if i + columns >= count:  # the lowest panel of its column shows the step labels
            ax.tick_params(labelbottom=True)
    return figure, axes[:count]


def _finish(figure: Figure, title: str, caption: str = "") -> Figure:
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    if caption:
        figure.supxlabel(caption, x=0.01, ha="left", fontsize=8.5, color=CAPTION_COLOUR)
    return figure


def _run_columns(count: int) -> int:
    """Columns for one panel a run."""
    return 2 if count == 4 else min(count, 3)


def _step_axis(ax: Any, label: str = "training step") -> None:
    ax.set_xlabel(label)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))


def _span(ax: Any, steps: np.ndarray) -> None:
    first, last = float(steps.min()), float(steps.max())
    ax.set_xlim((first, last) if last > first else (first - 0.5, last + 0.5))


def _empty(ax: Any, text: str) -> None:
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color=CAPTION_COLOUR)


def _arm_labels(runs: Sequence[RunLog]) -> list[str]:
    return list(dict.fromkeys(arm for run in runs for arm in run.arms))


def _arm_colours(arms: Sequence[str]) -> dict[str, Any]:
    # The last tenth of viridis is too pale for a line on white.
    positions = np.linspace(0.0, 0.92, len(arms)) if len(arms) > 1 else np.array([0.3])
    palette = matplotlib.colormaps["viridis"](positions)
    return {arm: tuple(colour) for arm, colour in zip(arms, palette, strict=True)}


def _arm_legend(figure: Figure, axes: Any, colours: dict[str, Any]) -> None:
    """Names the arms outside the panels, the last on top as in the stack."""
    arms = list(colours)
    if len(arms) <= MAX_LEGEND_ARMS:
        handles = [Patch(color=colours[arm], label=_shorten(arm)) for arm in reversed(arms)]
        figure.legend(handles=handles, title="arm", loc="outside right upper", handlelength=1.2)
        return
    norm = BoundaryNorm(np.arange(len(arms) + 1) - 0.5, len(arms))
    mappable = ScalarMappable(norm, ListedColormap(list(colours.values())))
    shown = np.unique(np.linspace(0, len(arms) - 1, 8).round().astype(int))
    bar = figure.colorbar(mappable, ax=list(axes), ticks=shown, fraction=0.04, pad=0.02)
    bar.ax.set_yticklabels([_shorten(arms[i]) for i in shown])
    bar.ax.tick_params(length=0, which="both")
    bar.ax.set_title("arm", fontsize=9)
    bar.ax.grid(False)
    bar.outline.set_visible(False)


def _window(count: int) -> int:
    return max(1, round(count * SMOOTHING_SHARE)) | 1


def smooth(values: FloatArray, window: int) -> FloatArray:
    """The centred mean of the finite values in ``window`` (odd) rows; the ends use what is there.

    NaN where a window holds no value. ``values`` is (T,) or (T, K).
    """
    seen = np.isfinite(values)
    kernel = np.ones(window)

    def total(column: FloatArray) -> FloatArray:
        return np.convolve(column, kernel)[window // 2 : window // 2 + len(column)]

    sums = np.apply_along_axis(total, 0, np.where(seen, values, 0.0))
    counts = np.apply_along_axis(total, 0, seen.astype(np.float64))
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0.5)


def _drawn_share(run: RunLog) -> FloatArray:
    """Each arm's share of the prompts drawn, over the smoothing window; (T, K)."""
    drawn = np.diff(run.draws, axis=0, prepend=np.zeros((1, len(run.arms))))
    window = _window(len(run.steps))
    smoothed = smooth(drawn, window)
    total = smoothed.sum(axis=1, keepdims=True)
    return np.divide(smoothed, total, out=np.full_like(smoothed, np.nan), where=total > 0)


def _stack(ax: Any, run: RunLog, shares: FloatArray, colours: dict[str, Any]) -> None:
    rows = np.isfinite(shares).all(axis=1)
    if not rows.any():
        _empty(ax, "not in the log")
        return
    steps, shares = run.steps[rows].astype(np.float64), shares[rows]
    if len(steps) == 1:  # an area needs two points
        steps, shares = np.array([steps[0] - 0.5, steps[0] + 0.5]), np.repeat(shares, 2, axis=0)
    palette = [colours[arm] for arm in run.arms]
    separate = len(run.arms) <= MAX_LEGEND_ARMS
    areas = ax.stackplot(steps, shares.T, colors=palette, linewidth=0.4)
    for area, colour in zip(areas, palette, strict=True):
        area.set_edgecolor("white" if separate else colour)
    ax.set_xlim(steps[0], steps[-1])
    ax.set_ylim(0, 1)
    ax.grid(False)


@_styled
def plot_allocation(runs: Runs) -> Figure:
    """Stacked area of the arms' probabilities by step, one panel a run.

    A single run gets a second panel with the share of prompts drawn, smoothed, where logged.
    """
    found = _as_list(runs)
    colours = _arm_colours(_arm_labels(found))
    panels = [
        (label, run, run.probability) for label, run in zip(run_labels(found), found, strict=True)
    ]
    if len(found) == 1:
        run = found[0]
        panels = [("probability of each arm", run, run.probability)]
        if np.isfinite(run.draws).all():
            window = _window(len(run.steps))
            title = (
                f"prompts drawn (mean of {window} logged steps)" if window > 1 else "prompts drawn"
            )
            panels.append((title, run, _drawn_share(run)))
    columns = _run_columns(len(panels))
    panel = (4.2, 2.9) if columns < 3 else (3.6, 2.6)
    figure, axes = _grid(len(panels), columns, panel, sharey=True)
    for i, (ax, (title, run, shares)) in enumerate(zip(axes, panels, strict=True)):
        _stack(ax, run, shares, colours)
        ax.set_title(_shorten(title, 44))
        _step_axis(ax)
        if i % columns == 0:
            ax.set_ylabel("share of the batch")
    _arm_legend(figure, axes, colours)
    name = f": {_shorten(found[0].name)}" if len(found) == 1 else ""
    return _finish(figure, f"Which arms the curriculum trains on{name}")


def _mean_accuracy(item: Evaluation, levels: Sequence[str]) -> float:
    values = np.array([item.accuracy.get(level, np.nan) for level in levels])
    return float(values[np.isfinite(values)].mean()) if np.isfinite(values).any() else math.nan


def _curve(run: RunLog, levels: Sequence[str], against: str) -> tuple[FloatArray, FloatArray]:
    points = [(getattr(e, against), _mean_accuracy(e, levels)) for e in run.evals]
    table = np.array([p for p in points if math.isfinite(p[0] + p[1])]).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _band(ax: Any, run: RunLog, level: str, against: str, colour: str) -> None:
    """The 95% interval of one level's accuracy."""
    rows = [
        (getattr(e, against), *wilson_interval(e.accuracy[level], e.num_prompts[level]))
        for e in run.evals
        if math.isfinite(e.accuracy.get(level, math.nan)) and e.num_prompts.get(level, 0) > 0
    ]
    if rows:
        x, low, high = np.array(rows).T
        ax.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)


def _mean_curve(
    curves: Sequence[tuple[FloatArray, FloatArray]], shared_clock: bool
) -> tuple[FloatArray, FloatArray]:
    """The mean of several curves: where all have a point, or over the time all cover."""
    if shared_clock:
        x = functools.reduce(np.intersect1d, [c[0] for c in curves])
    else:
        start, end = max(c[0][0] for c in curves), min(c[0][-1] for c in curves)
        x = np.linspace(start, end, 50) if end > start else np.empty(0)
    return x, np.mean([np.interp(x, *c) for c in curves], axis=0)


def _draw_group(ax: Any, group: _Group, levels: Sequence[str], against: str) -> None:
    curves = [c for c in (_curve(run, levels, against) for run in group.runs) if len(c[0])]
    if not curves:
        return
    style = {"color": group.colour, "linestyle": group.dash}
    marker = {"marker": "o", "markersize": 3.2} if len(curves[0][0]) <= 40 else {}
    if len(curves) == 1:
        if len(levels) == 1:
            _band(ax, group.runs[0], levels[0], against, group.colour)
        ax.plot(*curves[0], **style, **marker)
        return
    for curve in curves:
        ax.plot(*curve, **{**style, "linewidth": 0.8, "alpha": 0.5})
    ax.plot(*_mean_curve(curves, against == "step"), **style)


def _accuracy_panels(runs: Sequence[RunLog]) -> list[tuple[str, tuple[str, ...], bool]]:
    """(title, levels averaged, held out) of each panel: the means, then every level."""
    levels = list(dict.fromkeys(level for run in runs for level in run.levels))
    held_out = {level for run in runs for level in run.held_out}
    trained = tuple(level for level in levels if level not in held_out)
    unseen = tuple(level for level in levels if level in held_out)
    panels = []
    if trained:
        panels.append(("mean, trained levels", trained, False))
    if unseen:
        panels.append(("mean, held-out levels", unseen, True))
    panels += [(f"level {_shorten(level)}", (level,), False) for level in trained]
    panels += [(f"level {_shorten(level)} (held out)", (level,), True) for level in unseen]
    return panels


def _run_legend(figure: Figure, groups: Sequence[_Group]) -> None:
    handles = [Line2D([], [], color=g.colour, linestyle=g.dash, label=g.label) for g in groups]
    figure.legend(handles=handles, title="run", loc="outside right upper")


@_styled
def plot_accuracy(runs: Runs, against: Literal["step", "time"] = "step") -> Figure:
    """Accuracy on the fixed evaluation prompts: a panel a level, one for each mean over levels.

    Runs of one name share a colour, thin, under their mean. A single run of a name shows the 95%
    Wilson interval.

    Args:
        against: the horizontal axis, training steps or seconds.

    Raises:
        ValueError: no run holds an evaluation.
    """
    found = _as_list(runs)
    panels = _accuracy_panels(found)
    if not panels:
        raise ValueError(
            "runs must hold at least one eval line to plot accuracy. "
            f"Got none in {', '.join(str(run.path) for run in found)}."
        )
    groups = _groups(found)
    columns, panel = (4, (2.5, 2.0)) if len(panels) <= MANY_PANELS else (6, (2.1, 1.6))
    figure, axes = _grid(len(panels), columns, panel, sharex=True, sharey=True)
    for i, (ax, (title, levels, unseen)) in enumerate(zip(axes, panels, strict=True)):
        for group in groups:
            _draw_group(ax, group, levels, against)
        ax.set_title(title, fontweight="bold" if len(levels) > 1 else "normal")
        if unseen:
            ax.set_facecolor(HELD_OUT_COLOUR)
        ax.set_ylim(-0.03, 1.03)
        if i + columns >= len(panels):
            _step_axis(ax, "training step" if against == "step" else "seconds")
        if i % columns == 0:
            ax.set_ylabel("accuracy")
    _run_legend(figure, groups)
    notes = ["Tinted: levels never trained on."] if any(unseen for *_, unseen in panels) else []
    if any(len(group.runs) > 1 for group in groups):
        notes.append("Thin: each run. Thick: their mean.")
    if any(len(group.runs) == 1 for group in groups):
        notes.append("Bands: 95% intervals over the prompts of a level.")
    return _finish(figure, "Accuracy on fixed evaluation prompts", " ".join(notes))


def _mean_advantage(run: RunLog) -> FloatArray:
    """Mean |A| over the prompts of each step, (T,)."""
    weights = np.diff(run.draws, axis=0, prepend=np.zeros((1, len(run.arms))))
    weights = np.where(np.isfinite(run.abs_advantage) & (weights > 0), weights, 0.0)
    total = weights.sum(axis=1)
    weighted = (weights * np.nan_to_num(run.abs_advantage)).sum(axis=1)
    return np.divide(weighted, total, out=np.full_like(total, np.nan), where=total > 0)


def _effective_arms(run: RunLog) -> FloatArray:
    """exp of the entropy of the arms' probabilities: K when uniform, 1 on one arm; (T,)."""
    p = run.probability
    return np.exp(-np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), p), axis=1))


def _mean_level(run: RunLog) -> FloatArray:
    """Mean rank of the arms under their probabilities, 1 the first; (T,)."""
    return run.probability @ np.arange(1.0, len(run.arms) + 1)


@dataclass(frozen=True)
class _Series:
    title: str
    unit: str
    values: Callable[[RunLog], FloatArray]
    bounds: tuple[float | None, float | None] = (None, None)


TRAINING_SERIES = (
    _Series("training reward", "mean reward", lambda run: run.scalar("reward")),
    _Series(
        "dead groups (all rewards equal)",
        "share of groups",
        lambda run: run.scalar("frac_reward_zero_std"),
        (-0.03, 1.03),
    ),
    _Series("learning signal", "mean |A|", _mean_advantage, (0.0, None)),
    _Series("policy entropy", "nats per token", lambda run: run.scalar("entropy"), (0.0, None)),
    _Series("mean level of the curriculum", "mean rank of the arm", _mean_level),
    _Series("effective number of arms", "exp(entropy of p)", _effective_arms, (0.0, None)),
)
TRAINING_CAPTION = (
    f"Lines: moving averages over {SMOOTHING_SHARE:.0%} of the run. Faint: each step, for runs "
    "whose name is not repeated.\nTraining reward and dead groups cannot be compared between "
    "curricula: each trains on its own mix of levels."
)


@_styled
def plot_training(runs: Runs) -> Figure:
    """Training curves: reward, dead groups, mean |A|, entropy, mean level, effective arms.

    A moving average is drawn over the raw values; series that no run logged are left out.
    """
    found = _as_list(runs)
    shown = [s for s in TRAINING_SERIES if any(np.isfinite(s.values(r)).any() for r in found)]
    figure, axes = _grid(max(1, len(shown)), 3, (3.1, 2.3), sharex=True)
    if not shown:
        _empty(axes[0], "not in the log")
    groups = _groups(found)
    for i, series in enumerate(shown):
        ax = axes[i]
        for group in groups:
            for run in group.runs:
                _smoothed_line(ax, run, series.values(run), group)
        ax.set_title(series.title)
        ax.set_ylabel(series.unit)
        ax.set_ylim(*series.bounds)
        if i + 3 >= len(shown):
            _step_axis(ax)
    if len(found) > 1:
        _run_legend(figure, groups)
    name = f": {_shorten(found[0].name)}" if len(found) == 1 else ""
    return _finish(figure, f"Training curves{name}", TRAINING_CAPTION)


def _smoothed_line(ax: Any, run: RunLog, values: FloatArray, group: _Group) -> None:
    rows = np.isfinite(values)
    if not rows.any():
        return
    steps, values = run.steps[rows], values[rows]
    alone = len(group.runs) == 1
    marker = "o" if len(steps) == 1 else None
    if alone:  # the steps of several seeds would hide each other
        ax.plot(steps, values, color=group.colour, linewidth=0.7, alpha=0.28)
    ax.plot(
        steps,
        smooth(values, _window(len(run.steps))),
        color=group.colour,
        linestyle=group.dash,
        linewidth=1.8 if alone else 1.2,
        marker=marker,
    )


@_styled
def plot_values(runs: Runs) -> Figure:
    """Q of every arm by step, one panel a run."""
    found = _as_list(runs)
    colours = _arm_colours(_arm_labels(found))
    columns = _run_columns(len(found))
    panel = {1: (6.4, 3.2), 2: (4.2, 2.8), 3: (3.6, 2.6)}[columns]
    figure, axes = _grid(len(found), columns, panel, sharey=True)
    for i, (ax, run, label) in enumerate(zip(axes, found, run_labels(found), strict=True)):
        if not np.isfinite(run.value).any():
            _empty(ax, "this strategy keeps no values")
        for k, arm in enumerate(run.arms):
            width = 1.5 if len(run.arms) <= MAX_LEGEND_ARMS else 0.9
            marker = "o" if len(run.steps) == 1 else None
            ax.plot(run.steps, run.value[:, k], color=colours[arm], linewidth=width, marker=marker)
        _span(ax, run.steps)
        ax.set_title(_shorten(label, 44))
        _step_axis(ax)
        if i % columns == 0:
            ax.set_ylabel("value Q")
    _arm_legend(figure, axes, colours)
    return _finish(figure, "Estimated value of each arm")


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def write_plots(runs: Runs, out_dir: str | os.PathLike[str]) -> list[Path]:
    """Writes the plots as PNG into ``out_dir``, each renamed into place; returns their paths.

    ``accuracy.png`` needs an evaluation, ``accuracy_by_time.png`` also several runs.
    """
    found = _as_list(runs)
    figures: dict[str, Callable[[], Figure]] = {}
    if any(run.evals for run in found):
        figures["accuracy.png"] = lambda: plot_accuracy(found)
        if len(found) > 1:
            figures["accuracy_by_time.png"] = lambda: plot_accuracy(found, against="time")
    figures["allocation.png"] = lambda: plot_allocation(found)
    figures["training.png"] = lambda: plot_training(found)
    figures["values.png"] = lambda: plot_values(found)
    folder = Path(out_dir)
    return [write_atomically(folder / name, _png(plot())) for name, plot in figures.items()]
