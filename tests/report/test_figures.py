"""What the sections draw, and the PNG files made of them."""

import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from matplotlib.image import imread

from sec_grpo.report import MetricsWriter, read_run, section_figure, sections, write_plots
from sec_grpo.report.style import DPI, RUN_COLOURS, arm_colours


def figures(runs, *keys):
    """Section key -> figure, of all sections or of those named."""
    found = [section for section in sections(runs) if not keys or section.key in keys]
    return {section.key: section_figure(section) for section in found}


def panels(figure):
    """Panel title -> axes."""
    return {ax.get_title(loc="left"): ax for ax in figure.axes if ax.get_title(loc="left")}


def check_png(path, colours=5):
    """The file decodes whole, is opaque with a white margin, and shows several colours."""
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content[-8:-4] == b"IEND"
    position = content.index(b"pHYs")
    per_metre = struct.unpack(">I", content[position + 4 : position + 8])[0]
    assert per_metre == pytest.approx(DPI / 0.0254, rel=0.01)
    assert (
        zlib.crc32(content[position : position + 13])
        == struct.unpack(">I", content[position + 13 : position + 17])[0]
    )
    pixels = np.round(imread(path) * 255).astype(np.uint8)
    height, width, _ = pixels.shape
    assert 2 * DPI < height < 40 * DPI
    assert 3 * DPI < width < 20 * DPI
    assert (pixels[0, :, :3] == 255).all()
    packed = pixels[..., :3].astype(np.uint32) @ np.array([1, 1 << 8, 1 << 16], dtype=np.uint32)
    values, counts = np.unique(packed, return_counts=True)
    channels = np.stack([values & 255, values >> 8 & 255, values >> 16], axis=1).astype(int)
    saturated = np.ptp(channels, axis=1) > 60
    assert (counts[saturated] > 50).sum() >= colours


def test_plots_of_three_runs(synthetic_run, tmp_path):
    runs = [synthetic_run("sec", steps=40), synthetic_run("random", steps=40, seed=1)]
    runs.append(synthetic_run("dump x", steps=30, seed=2))
    paths = write_plots(runs, tmp_path / "made" / "here")
    names = ["accuracy", "accuracy_by_time", "allocation", "training", "groups", "success"]
    names += ["arms_1_sec", "arms_2_random", "arms_3_dump-x", "time"]
    assert [path.name for path in paths] == [f"{name}.png" for name in names]
    assert sorted(os.listdir(tmp_path / "made" / "here")) == sorted(path.name for path in paths)
    for path in paths:
        check_png(path, colours=3)


SHAPES = {
    "one step": {"steps": 1},
    "one arm": {"arms": 1, "steps": 12},
    "one arm, one step, no evaluation": {"arms": 1, "steps": 1, "eval_every": 0, "held_out": 0},
    "forty arms": {"arms": 40, "steps": 25},
    "no held-out level": {"held_out": 0, "steps": 20},
}


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES.keys())
def test_odd_shapes_make_plots(synthetic_run, tmp_path, options):
    paths = write_plots(synthetic_run(**options), tmp_path / "out")
    expected = 7 - (options.get("eval_every", 1) == 0) - (options.get("arms") == 40)
    assert len(paths) == expected
    for path in paths:
        check_png(path, colours=1)


def test_a_thousand_arms_make_heat_maps(synthetic_run):
    run = synthetic_run(arms=1000, steps=30)
    made = figures([run])
    assert "success" not in made
    images = [image for title, ax in panels(made["arms"]).items() for image in ax.images]
    assert len(images) == len(panels(made["arms"])) == 8
    ax = panels(made["arms"])["value Q"]
    shown = ax.images[0].get_array()
    assert shown.shape == (400, 30)
    np.testing.assert_allclose(shown[0], run.value[:, :2].mean(axis=1), atol=1e-6)  # rows 0 to 1.5
    assert [tick.get_text() for tick in ax.get_yticklabels()] == [
        run.arms[i] for i in np.linspace(0, 999, 6).round().astype(int)
    ]
    areas = made["allocation"].axes[0].collections
    assert len(areas) == 16
    top = areas[0].get_paths()[0].vertices[:, 1].max()
    assert top == pytest.approx(run.probability[:, :62].sum(axis=1).max(), abs=1e-6)


def test_runs_with_different_arms_and_without_evaluations(synthetic_run):
    runs = [synthetic_run("a", steps=9), synthetic_run("b", arms=3, steps=5, eval_every=0)]
    made = figures(runs)
    assert [len(ax.collections) for ax in made["allocation"].axes] == [8, 3]
    assert len(panels(made["success"])["arm 2"].lines) == 2
    assert len(panels(made["success"])["arm 16"].lines) == 1


def test_bare_log_makes_plots(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write("run", schema=1, arms=["a", "b"], name="$x$ [b]odd[/b] $y_$")
        writer.write("step", step=1, time=0.0, loss=float("nan"))
    paths = write_plots(read_run(tmp_path), tmp_path)
    assert [path.name for path in paths] == ["allocation.png"]


def test_allocation_stacks_the_probabilities(synthetic_run):
    run = synthetic_run(steps=20, arms=3)
    areas = figures([run], "allocation")["allocation"].axes[0].collections
    assert len(areas) == 3
    tops = np.cumsum(run.probability, axis=1)
    for k, area in enumerate(areas):
        corners = area.get_paths()[0].vertices
        at_step_7 = corners[np.isclose(corners[:, 0], 7), 1]
        assert at_step_7.max() == pytest.approx(tops[6, k])
        assert at_step_7.min() == pytest.approx(tops[6, k] - run.probability[6, k])


def test_accuracy_has_a_panel_per_level_and_marks_held_out_ones(synthetic_run):
    run = synthetic_run(arms=2, held_out=1, steps=30)
    found = panels(figures([run], "accuracy")["accuracy"])
    assert list(found) == [
        "mean of trained levels",
        "mean of held-out levels",
        "level 2",
        "level 4",
        "level 6 (held out)",
    ]
    mean, level = found["mean of trained levels"].lines[0], found["level 4"].lines[0]
    assert mean.get_xdata().tolist() == level.get_xdata().tolist() == [0, 15, 30]
    assert level.get_ydata().tolist() == [item.accuracy["4"] for item in run.evals]
    assert mean.get_ydata().tolist() == [
        (item.accuracy["2"] + item.accuracy["4"]) / 2 for item in run.evals
    ]
    tinted = [title for title, ax in found.items() if ax.get_facecolor()[:3] != (1, 1, 1)]
    assert tinted == ["mean of held-out levels", "level 6 (held out)"]


def test_accuracy_against_seconds(synthetic_run):
    runs = [synthetic_run(name, arms=2, steps=30) for name in ("a", "b")]
    ax = figures(runs, "accuracy_by_time")["accuracy_by_time"].axes[0]
    assert ax.get_xlabel() == "seconds of training"
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [0, 4.65, 9.3])


def test_seeds_share_a_colour_under_their_mean(synthetic_run):
    runs = [
        synthetic_run("sec", steps=30, seed=seed, speed=1 + seed, config={"seed": seed})
        for seed in range(2)
    ]
    runs.append(synthetic_run("random", steps=15))
    figure = figures(runs, "accuracy")["accuracy"]
    lines = panels(figure)["level 2"].lines
    assert [line.get_color() for line in lines] == [RUN_COLOURS[0]] * 3 + [RUN_COLOURS[1]]
    both = (lines[0].get_ydata() + lines[1].get_ydata()) / 2
    np.testing.assert_allclose(lines[2].get_ydata(), both)
    assert lines[2].get_linewidth() > lines[0].get_linewidth()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["sec (2 runs)", "random"]


def test_plots_of_no_run_raise(tmp_path):
    with pytest.raises(ValueError, match="at least one run"):
        write_plots([], tmp_path)


def test_training_curves(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write("run", schema=1, arms=["a", "b"], name="x")
        for step, draws, p in ((1, [3, 1], [0.5, 0.5]), (2, [3, 5], [0.0, 1.0])):
            advantage = [0.2, 0.6] if step == 1 else [None, 0.4]
            arms = {"probability": p, "draws": draws, "abs_advantage": advantage}
            refills = {"dynamic_sampling/refill_rollouts": 8.0 * step}
            writer.write("step", step=step, time=0.0, reward=step / 4, arms=arms, **refills)
    found = panels(figures([read_run(tmp_path)], "training")["training"])
    assert {name: ax.lines[-1].get_ydata().tolist() for name, ax in found.items()} == {
        "training reward": [0.25, 0.5],
        "learning signal": [pytest.approx((3 * 0.2 + 0.6) / 4), 0.4],
        "mean level": [1.5, 2.0],
        "effective number of arms": [pytest.approx(2.0), 1.0],
        "refill rollouts": [8.0, 16.0],
    }


def test_each_arm(synthetic_run):
    run = synthetic_run(arms=3, steps=12)
    found = panels(figures([run], "arms")["arms"])
    for title, expected in (
        ("value Q", run.value),
        ("probability", run.probability),
        ("prompts drawn", run.draws),
        ("epochs consumed", run.epochs),
    ):
        lines = found[title].lines
        np.testing.assert_array_equal(np.stack([line.get_ydata() for line in lines], 1), expected)
        assert [line.get_color() for line in lines] == list(arm_colours(run.arms).values())
    assert len(found) == 8


def test_an_observation_without_a_neighbour_is_a_point(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write("run", schema=1, arms=["a"], name="x")
        for step, value in ((1, 0.5), (2, None), (3, 0.25), (4, 0.25)):
            writer.write("step", step=step, time=0.0, arms={"value": [value]})
    (line,) = panels(figures([read_run(tmp_path)], "arms")["arms"])["value Q"].lines
    assert line.get_marker() == "o"
    assert list(line.get_markevery()) == [0]


def test_outcomes_and_times(synthetic_run):
    made = figures([synthetic_run(steps=20)])
    areas = made["groups"].axes[0].collections
    assert len(areas) == 4
    corners = areas[-1].get_paths()[0].vertices
    assert corners[:, 1].max() == pytest.approx(1.0)
    bars = made["time"].axes[0].patches
    widths = [round(bar.get_width(), 3) for bar in bars]
    assert widths == [0.11, 0.01, 0.001, 0.0, 0.18, 0.009]
    labels = [text.get_text() for text in made["time"].legends[0].get_texts()]
    assert labels == ["rollout", "reward", "curriculum", "update", "other"]


def test_long_labels_and_many_seeds_do_not_overlap(synthetic_run):
    runs = [synthetic_run("a-rather-long-name-of-a-strategy", steps=20, seed=s) for s in range(3)]
    for figure in figures(runs).values():
        figure.draw_without_rendering()
        boxes = [ax.get_tightbbox() for ax in figure.axes]
        boxes += [legend.get_window_extent() for legend in figure.legends]
        for i, one in enumerate(boxes):
            assert not any(one.padded(-1).overlaps(other) for other in boxes[i + 1 :])


def test_long_runs_are_thinned(synthetic_run):
    run = synthetic_run(steps=1500, arms=2, eval_every=0)
    made = figures([run])
    assert len(panels(made["arms"])["value Q"].lines[0].get_xdata()) == 500
    x = made["allocation"].axes[0].collections[0].get_paths()[0].vertices[:, 0]
    assert len(np.unique(x)) == 500


def test_importing_the_report_does_not_import_matplotlib():
    code = "import sys, sec_grpo.report; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_plotting_leaves_pyplot_and_global_settings_alone(synthetic_run):
    code = (
        "import sys, matplotlib; from sec_grpo.report import *;"
        "keys = ['axes.grid', 'font.size', 'figure.facecolor', 'axes.spines.top'];"
        "before = [matplotlib.rcParams[key] for key in keys];"
        "write_plots(read_run(sys.argv[1]), sys.argv[1]);"
        "print('matplotlib.pyplot' in sys.modules,"
        " before == [matplotlib.rcParams[key] for key in keys])"
    )
    folder = str(synthetic_run(steps=3).path.parent)
    done = subprocess.run(
        [sys.executable, "-c", code, folder], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "True"]
