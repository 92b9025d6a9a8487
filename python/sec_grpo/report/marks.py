"""Lines, bands, stacked areas and heat maps on matplotlib axes. T steps, K arms."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.ticker import MaxNLocator

from sec_grpo.report.style import FAINT_INK, PAPER, SOFT_INK, shorten

Array = npt.NDArray[Any]

MAX_POINTS = 500  # of a line: more than a panel has pixels, or nearly
MAX_ROWS = 400  # of a heat map
TICKED_ARMS = 6


def step_axis(ax: Any, steps: Array) -> None:
    """Whole numbers below, from the first step to the last."""
    if len(steps):
        first, last = float(np.min(steps)), float(np.max(steps))
        ax.set_xlim((first, last) if last > first else (first - 0.5, last + 0.5))
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))


def note(ax: Any, text: str) -> None:
    """Text where there is nothing to draw."""
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color=FAINT_INK)


def blocks(values: Array, count: int, axis: int = 0) -> Array:
    """Means of the finite values in ``count`` blocks along an axis, where it is longer."""
    size = values.shape[axis]
    if size <= count:
        return values
    edges = np.linspace(0, size, count + 1).round().astype(int)
    parts = [np.take(values, range(a, b), axis) for a, b in itertools.pairwise(edges)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a block without a finite value
        return np.stack([np.nanmean(part, axis=axis) for part in parts], axis=axis)


def line(ax: Any, x: Array, y: Array, **style: Any) -> None:
    """A line through what is finite; values without a neighbour are shown as points."""
    x, y = blocks(np.asarray(x, float), MAX_POINTS), blocks(np.asarray(y, float), MAX_POINTS)
    seen = np.isfinite(y)
    padded = np.concatenate([[False], seen, [False]])
    alone = seen & ~padded[:-2] & ~padded[2:]
    if alone.any() and "marker" not in style:
        style = {**style, "marker": "o", "markersize": 3, "markevery": np.flatnonzero(alone)}
    ax.plot(x, y, **style)


def band(ax: Any, x: Array, low: Array, high: Array, colour: str) -> None:
    """The area between two curves, pale."""
    x, low, high = (blocks(np.asarray(v, float), MAX_POINTS) for v in (x, low, high))
    ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def stack(ax: Any, steps: Array, shares: Array, colours: Sequence[str]) -> None:
    """Stacked areas of shares (T, K) that add up to 1, the first at the bottom."""
    rows = np.isfinite(shares).all(axis=1)
    if not rows.any():
        note(ax, "not in the log")
        return
    x = blocks(np.asarray(steps, float)[rows], MAX_POINTS)
    y = blocks(shares[rows], MAX_POINTS)
    if len(x) == 1:  # an area needs two points
        x, y = np.array([x[0] - 0.5, x[0] + 0.5]), np.repeat(y, 2, axis=0)
    for area in ax.stackplot(x, y.T, colors=list(colours), linewidth=0.4):
        area.set_edgecolor(PAPER)
    step_axis(ax, x)
    ax.set_ylim(0, 1)
    ax.grid(False)


def heat_map(
    ax: Any, steps: Array, values: Array, arms: Sequence[str], unit: str, top: Any = None
) -> None:
    """Values (T, K) as colours, an arm a row, the first at the bottom; ``top`` bounds the scale."""
    if not np.isfinite(values).any():
        note(ax, "not in the log")
        return
    shown = blocks(blocks(values, MAX_POINTS), MAX_ROWS, axis=1)
    first, last = float(steps[0]), float(steps[-1])
    if first == last:
        first, last = first - 0.5, last + 0.5
    extent = (first, last, -0.5, len(arms) - 0.5)
    low = min(0.0, float(np.nanmin(shown)))
    if top is None:  # a scale even where all values are 0
        top = float(np.nanmax(shown)) if np.nanmax(shown) > low else low + 1
    image = ax.imshow(
        shown.T,
        aspect="auto",
        origin="lower",
        extent=extent,
        cmap="viridis",
        interpolation="nearest",
        vmin=low,
        vmax=top,
    )
    ticks = np.unique(np.linspace(0, len(arms) - 1, TICKED_ARMS).round().astype(int))
    ax.set_yticks(ticks, [shorten(arms[i], 12) for i in ticks])
    ax.grid(False)
    step_axis(ax, np.array([first, last]))
    bar = ax.figure.colorbar(image, ax=ax, fraction=0.06, pad=0.03)
    bar.set_label(unit, fontsize=9)
    bar.ax.tick_params(labelsize=8, color=SOFT_INK)
    bar.outline.set_visible(False)
    bar.ax.grid(False)


def shared_mean(
    curves: Sequence[tuple[Array, Array]], *, shared_clock: bool = True
) -> tuple[Array, Array]:
    """The mean of several curves: where all have a point, or over the time all cover."""
    if shared_clock:
        x = curves[0][0]
        for other, _ in curves[1:]:
            x = np.intersect1d(x, other)
    else:
        start, end = max(c[0][0] for c in curves), min(c[0][-1] for c in curves)
        x = np.linspace(start, end, 50) if end > start else np.empty(0)
    return x, np.mean([np.interp(x, *curve) for curve in curves], axis=0)
