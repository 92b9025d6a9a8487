"""Panels as SVG that a page can hold inline and colour with CSS variables."""

from __future__ import annotations

import io
import re
from html import escape

import matplotlib
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from sec_grpo.report.figures import draw_panel
from sec_grpo.report.panels import LegendEntry, Panel
from sec_grpo.report.style import (
    FAINT_INK,
    GRID,
    HELD_OUT,
    INK,
    MAX_ARM_COLOURS,
    PAPER,
    PART_COLOURS,
    RUN_COLOURS,
    RUN_COLOURS_ON_DARK,
    SOFT_INK,
    STYLE,
    ordered_colours,
)

PANEL_SIZE = (4.0, 2.7)  # inches: at the width of a phone its text is as large as the page's
MAX_SPOKEN_LINES = 12
_MARGINS = {"left": 0.155, "right": 0.975, "bottom": 0.185, "top": 0.97}
_DASHES = {"-": "", "--": "6 4", "-.": "7 3 1 3", ":": "1.5 3"}


def _colours() -> dict[str, str]:
    """Every colour of the plots, and what it is on a dark screen."""
    found = {
        INK: "#ececec",
        SOFT_INK: "#b9bdc4",
        FAINT_INK: "#a2a7af",
        GRID: "#343a43",
        PAPER: "#171b21",
        HELD_OUT: "#2b2718",
        PART_COLOURS["other"]: "#8f959e",
    }
    found |= dict(zip(RUN_COLOURS, RUN_COLOURS_ON_DARK, strict=True))
    for count in range(1, MAX_ARM_COLOURS + 1):
        light, dark = ordered_colours(count), ordered_colours(count, dark=True)
        found |= dict(zip(light, dark, strict=True))
    return found


ON_DARK = _colours()


def variable(colour: str) -> str:
    """A colour of the plots as the CSS variable that holds it."""
    return f"var(--c{colour[1:]})" if colour in ON_DARK else colour


def variables(*, dark: bool) -> str:
    """The declarations of all variables."""
    return "".join(f"--c{c[1:]}:{ON_DARK[c] if dark else c};" for c in ON_DARK)


def panel_svg(panel: Panel, number: int, size: tuple[float, float] = PANEL_SIZE) -> str:
    """A panel as an `<svg>` element whose ids no panel of another number has."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "sec-grpo"}):
        figure = Figure(figsize=size)
        if panel.named_rows:
            figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.04))
        else:  # where numbers fit, the layout engine would take half of the time
            figure.subplots_adjust(**_MARGINS)
        ax = figure.subplots()
        draw_panel(ax, panel)
        buffer = io.StringIO()
        # No date, so that the same log makes the same page.
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Type")))
        spoken = _spoken(panel, figure.axes[0].get_lines())
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r'(?<= id=")|(?<=url\(#)|(?<=href="#)', f"p{number}-", text)
    text = re.sub(r'style="[^"]*"', lambda found: _with_variables(found[0]), text)
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    head = f'<svg {box[0]} role="img" aria-label="{escape(spoken)}" '
    head += 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return head + text[text.index(">") + 1 :].strip()


def _with_variables(style: str) -> str:
    return re.sub(r"#[0-9a-f]{6}", lambda found: variable(found[0]), style)


def _spoken(panel: Panel, lines: list) -> str:
    """The panel in words: what it shows, and where each line begins and ends."""
    parts = []
    for line in lines:
        label = str(line.get_label())
        values = [y for y in line.get_ydata() if y == y]
        if values and not label.startswith("_"):
            parts.append(f"{label} from {values[0]:.3g} to {values[-1]:.3g}")
    if len(parts) > MAX_SPOKEN_LINES:
        parts = []
    unit = f", {panel.unit}" if panel.unit else ""
    return f"{panel.title}{unit} by {panel.x_label}" + (": " + "; ".join(parts) if parts else "")


def key_svg(entry: LegendEntry) -> str:
    """The mark of a legend entry."""
    colour = variable(entry.colour)
    if entry.dash is None:
        mark = f'<rect width="14" height="12" x="6" y="0" rx="2" style="fill:{colour}"/>'
    else:
        style = f"stroke:{colour};stroke-width:2.5;stroke-dasharray:{_DASHES[entry.dash] or 'none'}"
        mark = f'<line x1="0" x2="26" y1="6" y2="6" style="{style}"/>'
    return f'<svg class="key" viewBox="0 0 26 12" aria-hidden="true">{mark}</svg>'
