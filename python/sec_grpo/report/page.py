"""One HTML page of a report: nothing but this file is needed to read it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from html import escape
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from sec_grpo.report.accuracy import MAX_LEVEL_PANELS
from sec_grpo.report.atomic import write_atomically
from sec_grpo.report.contents import sections
from sec_grpo.report.groups import differing_settings, run_labels
from sec_grpo.report.log import RunLog
from sec_grpo.report.panels import Section
from sec_grpo.report.style import shorten
from sec_grpo.report.svg import key_svg, panel_svg, variables
from sec_grpo.report.table import count_text, progress_text, strategy_text

PAGE_NAME = "report.html"
# The page may load nothing, whatever a run's labels hold.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def write_page(
    runs: Sequence[RunLog],
    rows: Sequence[Mapping[str, Any]],
    out_dir: str | os.PathLike[str],
) -> Path:
    """Writes ``report.html``, renamed into place.

    Args:
        runs: the logs.
        rows: the runs of `summary(runs)`, each with its `alarms`.
    """
    return write_atomically(Path(out_dir) / PAGE_NAME, page(runs, rows).encode())


def page(runs: Sequence[RunLog], rows: Sequence[Mapping[str, Any]]) -> str:
    """The page's HTML; `runs` and `rows` as for `write_page`."""
    found = sections(runs)
    title = f"Report on {rows[0]['label']}" if len(rows) == 1 else f"Report on {len(rows)} runs"
    style = files("sec_grpo.report").joinpath("page.css").read_text("utf-8")
    dark = f"@media (prefers-color-scheme:dark){{:root{{{variables(dark=True)}}}}}"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{escape(title)}</title>",
        f"<style>:root{{{variables(dark=False)}}}{dark}{style}</style></head><body>",
        f"<header><h1>{escape(title)}</h1>{_navigation(found)}</header><main>",
        _alarms(rows),
        _runs_table(rows),
        _accuracy_table(rows),
        *_figures(found),
        _settings(runs, rows),
        f'</main><footer class="soft"><p>sec-grpo {escape(version("sec-grpo"))}</p></footer>',
        "</body></html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _navigation(found: Sequence[Section]) -> str:
    links = [("alarms", "Alarms"), ("runs", "Runs")]
    links += [(section.key, section.title) for section in found]
    links += [("settings", "Settings")]
    items = "".join(f'<li><a href="#{escape(k)}">{escape(t)}</a></li>' for k, t in links)
    return f'<nav aria-label="Sections"><ul>{items}</ul></nav>'


def _alarms(rows: Sequence[Mapping[str, Any]]) -> str:
    found = [(row["label"], text) for row in rows for text in row["alarms"]]
    if not found:
        return '<section id="alarms"><p class="fine">No alarms.</p></section>'
    items = "".join(
        f"<li><strong>{escape(label)}</strong>: {escape(text)}</li>" for label, text in found
    )
    return f'<section id="alarms"><h2>Alarms</h2><ul class="alarms">{items}</ul></section>'


def _table(head: Sequence[str], body: Sequence[tuple[str, Sequence[str], bool]]) -> str:
    """A table of rows (label, cells as HTML, emphasised); the labels are escaped here."""
    columns = "".join(f'<th scope="col">{escape(shorten(name, 40))}</th>' for name in head)
    lines = []
    for label, cells, strong in body:
        mark = ' class="strong"' if strong else ""
        row = "".join(f"<td>{cell}</td>" for cell in cells)
        lines.append(f'<tr{mark}><th scope="row">{escape(shorten(label, 40))}</th>{row}</tr>')
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{columns}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _change(row: Mapping[str, Any], key: str) -> str:
    cells = [_number((row[when] or {}).get(key)) for when in ("before", "after")]
    return "–" if cells == ["–", "–"] else " → ".join(cells)


def _runs_table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = [
        "run",
        "strategy",
        "trained levels",
        "held out",
        "steps",
        "seconds",
        "completion tokens",
        "dead groups",
    ]
    body = []
    for row in rows:
        cells = [
            escape(strategy_text(row["strategy"])),
            _change(row, "mean_trained"),
            _change(row, "mean_held_out"),
            progress_text(row),
            _number(row["seconds"], 0),
            count_text(row["completion_tokens"]).replace("-", "–"),
            _number(row["dead_groups"]),
        ]
        body.append((row["label"], cells, False))
    note = "Accuracy: mean of the levels, first → last evaluation."
    return (
        f'<section id="runs"><h2>Runs</h2><p class="soft">{note}</p>{_table(head, body)}</section>'
    )


def _accuracy_table(rows: Sequence[Mapping[str, Any]]) -> str:
    levels = list(dict.fromkeys(level for row in rows for level in row["levels"]))
    held_out = {level for row in rows for level in row["held_out"]}
    if not levels:
        return ""

    def cell(row: Mapping[str, Any], level: str) -> str:
        before, after = (row[when] or {"accuracy": {}, "interval": {}} for when in _TIMES)
        text = f"{_number(before['accuracy'].get(level))} → {_number(after['accuracy'].get(level))}"
        interval = after["interval"].get(level)
        if interval is None:
            return text
        return f'{text}<span class="interval">{interval[0]:.2f}–{interval[1]:.2f}</span>'

    body = []
    for level in sorted(levels, key=lambda level: level in held_out):
        mark = " (held out)" if level in held_out else ""
        body.append((level + mark, [cell(row, level) for row in rows], False))
    body.append(("mean, trained", [_change(row, "mean_trained") for row in rows], True))
    if held_out:
        body.append(("mean, held out", [_change(row, "mean_held_out") for row in rows], True))
    table = _table(["level", *(row["label"] for row in rows)], body)
    note = "First → last evaluation, with the 95% interval of the last over its prompts."
    opened = " open" if len(levels) <= MAX_LEVEL_PANELS else ""
    return (
        f'<details{opened}><summary>Accuracy by level</summary><p class="soft">{note}</p>'
        f"{table}</details>"
    )


_TIMES = ("before", "after")


def _figures(found: Sequence[Section]) -> list[str]:
    parts = []
    number = 0
    for section in found:
        wide = section.columns == 1
        panels = []
        for panel in section.panels:
            size = {"size": section.panel_size} if wide else {}
            svg = panel_svg(panel, number, **size)
            panels.append(f"<figure><figcaption>{escape(panel.title)}</figcaption>{svg}</figure>")
            number += 1
        caption = f'<p class="soft">{escape(section.caption)}</p>' if section.caption else ""
        parts.append(
            f'<section id="{escape(section.key)}"><h2>{escape(section.title)}</h2>{caption}'
            f'{_legend(section)}<div class="panels{" wide" if wide else ""}">'
            f"{''.join(panels)}</div></section>"
        )
    return parts


def _legend(section: Section) -> str:
    if not section.legend:
        return ""
    items = "".join(f"<li>{key_svg(entry)}{escape(entry.label)}</li>" for entry in section.legend)
    return f'<ul class="legend"><li class="what">{escape(section.legend_title)}</li>{items}</ul>'


def _settings(runs: Sequence[RunLog], rows: Sequence[Mapping[str, Any]]) -> str:
    labels = run_labels(runs)
    parts = ['<section id="settings"><h2>Settings</h2>']
    differing = differing_settings(runs) if len(runs) > 1 else {}
    if differing:
        body = [
            (name, [escape(json.dumps(v, default=str)) for v in values], False)
            for name, values in differing.items()
        ]
        parts.append("<h3>Where the runs differ</h3>" + _table(["setting", *labels], body))
    for label, run in zip(labels, runs, strict=True):
        config = {"strategy": run.strategy, "log": str(run.path), **run.config}
        text = escape(json.dumps(config, indent=1, default=str, ensure_ascii=False))
        parts.append(f"<details><summary>{escape(label)}</summary><pre>{text}</pre></details>")
    return "".join(parts) + "</section>"
