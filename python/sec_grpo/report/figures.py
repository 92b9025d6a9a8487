"""Sections as matplotlib figures and PNG files, made without pyplot and global state."""

from __future__ import annotations

import io
import math
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sec_grpo.report.atomic import write_atomically
from sec_grpo.report.contents import sections
from sec_grpo.report.log import RunLog
from sec_grpo.report.panels import Panel, Section
from sec_grpo.report.style import DPI, FAINT_INK, HELD_OUT, STYLE


def section_figure(section: Section) -> Figure:
    """All panels of a section, row by row, with title, legend and caption."""
    with matplotlib.rc_context(STYLE):
        count = len(section.panels)
        columns = min(count, section.columns)
        rows = math.ceil(count / columns)
        width, height = section.panel_size
        size = (width * columns + (1.7 if section.legend else 0.3), height * rows + 1.0)
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.07))
        axes = figure.subplots(rows, columns, squeeze=False, sharey=section.share_y).ravel()
        for ax in axes[count:]:
            ax.remove()
        for i, (ax, panel) in enumerate(zip(axes, section.panels, strict=False)):
            draw_panel(ax, panel)
            ax.set_title(panel.title, fontweight="bold" if panel.emphasised else "normal")
            if i + columns < count:
                ax.set_xlabel("")
            if section.share_y and i % columns:
                ax.set_ylabel("")
        if section.legend:
            figure.legend(
                handles=_handles(section),
                title=section.legend_title,
                loc="outside right upper",
                handlelength=1.6,
            )
        figure.suptitle(section.title, x=0.01, ha="left", fontweight="bold")
        if section.caption:
            text = textwrap.fill(section.caption, int(14 * size[0]))
            figure.supxlabel(text, x=0.01, ha="left", fontsize=8.5, color=FAINT_INK)
        return figure


def draw_panel(ax: Any, panel: Panel) -> None:
    """A panel's marks and axis labels, without its title."""
    panel.draw(ax)
    ax.set_xlabel(panel.x_label)
    ax.set_ylabel(panel.unit)
    if panel.tinted:
        ax.set_facecolor(HELD_OUT)


def _handles(section: Section) -> list[Any]:
    """A column of marks, in the order in which areas are stacked."""
    return [
        Patch(color=entry.colour, label=entry.label)
        if entry.dash is None
        else Line2D([], [], color=entry.colour, linestyle=entry.dash, label=entry.label)
        for entry in (reversed(section.legend) if section.stacked else section.legend)
    ]


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def write_plots(runs: RunLog | Sequence[RunLog], out_dir: str | os.PathLike[str]) -> list[Path]:
    """Writes a PNG for each of `sections(runs)` into ``out_dir``, each renamed into place.

    Raises:
        ValueError: there is no run.
    """
    found = [runs] if isinstance(runs, RunLog) else list(runs)
    if not found:
        raise ValueError("runs must hold at least one run. Got none.")
    return [
        write_atomically(Path(out_dir) / f"{section.key}.png", png(section_figure(section)))
        for section in sections(found)
    ]
