"""The HTML page: whole, safe, and readable by those who cannot see it."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from sec_grpo.report import MetricsWriter, alarms, read_run, sections, summary
from sec_grpo.report.page import page
from sec_grpo.report.svg import ON_DARK

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Document(HTMLParser):
    """Checks that tags are balanced; keeps elements and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def made(runs):
    rows = summary(runs)["runs"]
    for row, run in zip(rows, runs, strict=True):
        row["alarms"] = alarms(run)
    return page(runs, rows)


@pytest.fixture(scope="module")
def runs(shared_run):
    options = {"steps": 30, "arms": 2, "held_out": 1}
    return [
        shared_run("sec", **options, config={"seed": 0, "beta": 0.0}),
        shared_run("sec", **options, seed=1, config={"seed": 1, "beta": 0.0}),
        shared_run("random", **options, seed=2, config={"seed": 0, "beta": 0.1}),
    ]


@pytest.fixture(scope="module")
def text(runs):
    return made(runs)


def test_every_section_and_panel_is_there_once(runs, text):
    document = Document(text)
    found = sections(runs)
    assert len(document.all("figure")) == sum(len(section.panels) for section in found)
    ids = [attributes["id"] for _, attributes in document.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [a["href"][1:] for a in document.all("a")]
    assert set(targets) <= set(ids)
    assert {section.key for section in found} <= set(targets)
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', text))
    assert used <= set(ids)


def test_nothing_is_loaded_from_elsewhere(text):
    addresses = set(re.findall(r"[a-z]+://[^\s\"'<)]+", text))
    assert addresses == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    document = Document(text)
    assert not {tag for tag, _ in document.elements} & {"script", "link", "iframe", "object"}
    (policy,) = [m["content"] for m in document.all("meta") if "http-equiv" in m]
    assert policy.startswith("default-src 'none'")


def test_figures_are_named_in_words(runs, text):
    drawings = [a for a in Document(text).all("svg") if a.get("role") == "img"]
    spoken = [a["aria-label"] for a in drawings]
    accuracy = [run.evals[0].accuracy["2"] for run in runs]
    first = f"{(accuracy[0] + accuracy[1]) / 2:.3g}"
    label = next(t for t in spoken if t.startswith("level 2, accuracy by training step"))
    assert f": sec from {first} to " in label
    assert f"; random from {accuracy[2]:.3g} to " in label
    assert all(a["viewbox"] for a in drawings)


def test_drawings_are_well_formed(text):
    for svg in re.findall(r"<svg viewBox=.*?</svg>", text, flags=re.DOTALL):
        ElementTree.fromstring(svg)


def test_every_colour_has_a_dark_one(text):
    drawn = set(re.findall(r"#[0-9a-f]{6}", "".join(re.findall(r'style="[^"]*"', text))))
    assert drawn == set()
    used = set(re.findall(r"var\(--c([0-9a-f]{6})\)", text))
    assert {"1a1a1a", "ffffff", "0072b2", "d55e00", "440154"} <= used
    light, dark = re.findall(r":root\{(--c.*?)\}", text)[:2]
    for name in used:
        assert f"--c{name}:#{name};" in light
        assert f"--c{name}:{ON_DARK['#' + name]};" in dark


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_is_readable_on_both_grounds():
    """WCAG 2.2 asks for 4.5 between text and ground."""
    for text in ("#1a1a1a", "#444444", "#595959"):
        assert contrast(text, "#ffffff") >= 4.5
        assert contrast(ON_DARK[text], ON_DARK["#ffffff"]) >= 4.5


HOSTILE = "<script>alert(1)</script>\"'&--><b> $x$ {y}"


def test_labels_are_text(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        config = {"note": HOSTILE}
        writer.write("run", schema=1, arms=[HOSTILE, "b"], name=HOSTILE, config=config)
        for step in (1, 2):
            arms = {"probability": [0.5, 0.5], "value": [0.1, 0.2], "successes": [1, 1]}
            writer.write("step", step=step, time=0.0, reward=float("nan"), arms=arms)
        accuracy = {HOSTILE: 0.5}
        writer.write("eval", step=2, time=1.0, accuracy=accuracy, num_prompts={HOSTILE: 4})
    text = made([read_run(tmp_path)])
    document = Document(text)
    assert "script" not in {tag for tag, _ in document.elements}
    assert f"Report on {HOSTILE}" in document.texts
    for svg in re.findall(r"<svg viewBox=.*?</svg>", text, flags=re.DOTALL):
        ElementTree.fromstring(svg)


def test_tables_alarms_and_settings(runs, text):
    document = Document(text)
    assert "No alarms." in document.texts
    cells = [text for text in document.texts if text.strip()]
    beta = cells.index("beta")
    assert cells[beta + 1 : beta + 4] == ["0.0", "0.0", "0.1"]
    seed = cells.index("seed")
    assert cells[seed + 1 : seed + 4] == ["0", "1", "0"]
    trained = cells.index("mean, trained")
    row = summary(runs)["runs"][0]
    expected = f"{row['before']['mean_trained']:.2f} → {row['after']['mean_trained']:.2f}"
    assert cells[trained + 1] == expected


def test_alarms_come_first(synthetic_run):
    stuck = synthetic_run("stuck", arms=2, steps=60, temperature=0.01, speed=0.0, eval_every=0)
    text = made([stuck])
    assert text.index("had more than 80% probability") < text.index("<h2>Runs</h2>")


def test_the_same_log_makes_the_same_page(runs, text):
    assert made(runs) == text
