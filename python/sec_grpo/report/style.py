"""Colours and matplotlib settings of the plots.

Runs are not ordered, hence Okabe and Ito's colours, which the colour-blind tell apart, and dashes
beyond; arms and levels are, hence viridis. On the HTML page every colour here is a CSS variable
with a value for dark screens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.colors import to_hex

DPI = 150

INK = "#1a1a1a"
SOFT_INK = "#444444"
FAINT_INK = "#595959"
GRID = "#e4e4e4"
PAPER = "#ffffff"
HELD_OUT = "#fbf4e6"

# Yellow is too pale on white.
RUN_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK)
RUN_COLOURS_ON_DARK = ("#56b4e9", "#ff8a4c", "#2fd0a0", "#e6a3c8", "#f0c04a", "#a8d8f5", "#ececec")
RUN_DASHES = ("-", "--", "-.", ":")

OUTCOME_COLOURS = {
    "all_fail": "#d55e00",
    "format_only": "#e69f00",
    "mixed": "#0072b2",
    "all_pass": "#009e73",
}
PART_COLOURS = {
    "rollout": "#0072b2",
    "reward": "#e69f00",
    "curriculum": "#009e73",
    "logprobs": "#cc79a7",
    "update": "#d55e00",
    "other": "#999999",
}

MAX_ARM_COLOURS = 16  # more cannot be told apart

STYLE: dict[str, Any] = {
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.edgecolor": SOFT_INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.labelsize": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "text.usetex": False,
    "text.parse_math": False,  # a label with two dollar signs is not a formula
    "xtick.color": SOFT_INK,
    "ytick.color": SOFT_INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.title_fontsize": 9,
    "legend.frameon": False,
    "figure.titlesize": 13,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",  # text stays text: it can be read out, searched and selected
}


def run_style(number: int) -> dict[str, Any]:
    """Colour and dash of the run group of a number."""
    rounds, colour = divmod(number, len(RUN_COLOURS))
    return {"color": RUN_COLOURS[colour], "linestyle": RUN_DASHES[rounds % len(RUN_DASHES)]}


def ordered_colours(count: int, *, dark: bool = False) -> list[str]:
    """Colours for things in order: viridis, without the end that is lost on the background."""
    first, last = (0.3, 1.0) if dark else (0.0, 0.92)
    positions = [first + (last - first) * i / max(count - 1, 1) for i in range(count)]
    if count == 1:
        positions = [0.7 if dark else 0.3]
    return [to_hex(colour) for colour in matplotlib.colormaps["viridis"](positions)]


def arm_colours(arms: Sequence[str]) -> dict[str, str]:
    """A colour for each of up to MAX_ARM_COLOURS arms, the first the darkest."""
    return dict(zip(arms, ordered_colours(len(arms)), strict=True))


def shorten(label: str, length: int = 28) -> str:
    """The label, cut where it is longer."""
    return label if len(label) <= length else label[: length - 1] + "…"
