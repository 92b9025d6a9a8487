import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from matplotlib.image import imread

from sec_grpo.report import (
    MetricsWriter,
    plot_accuracy,
    plot_allocation,
    plot_training,
    plot_values,
    read_run,
    write_plots,
)
from sec_grpo.report.plots import DPI, smooth


def panel_titles(figure):
    return [ax.get_title(loc="left") for ax in figure.axes]


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


def test_write_plots_of_three_runs(synthetic_run, tmp_path):
    runs = [synthetic_run("sec", steps=40), synthetic_run("random", steps=40, seed=1)]
    runs.append(synthetic_run("dump", steps=30, seed=2))
    paths = write_plots(runs, tmp_path / "made" / "here")
    assert [path.name for path in paths] == [
        "accuracy.png",
        "accuracy_by_time.png",
        "allocation.png",
        "training.png",
        "values.png",
    ]
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
    evaluated = options.get("eval_every", 1) != 0
    assert len(paths) == 3 + evaluated
    for path in paths:
        check_png(path, colours=1)


def test_runs_with_different_arms_and_without_evaluations(synthetic_run, tmp_path):
    runs = [synthetic_run("a", steps=9), synthetic_run("b", arms=3, steps=5, eval_every=0)]
    assert len(write_plots(runs, tmp_path / "out")) == 5


def test_bare_log_makes_plots(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write("run", schema=1, arms=["a", "b"], name="$x$ [b]odd[/b] $y_$")
        writer.write("step", step=1, time=0.0, loss=float("nan"))
    paths = write_plots(read_run(tmp_path), tmp_path)
    assert [path.name for path in paths] == ["allocation.png", "training.png", "values.png"]


def test_allocation_stacks_the_probabilities(synthetic_run):
    run = synthetic_run(steps=20, arms=3)
    areas = plot_allocation(run).axes[0].collections
    assert len(areas) == 3
    tops = np.cumsum(run.probability, axis=1)
    for k, area in enumerate(areas):
        corners = area.get_paths()[0].vertices
        at_step_7 = corners[np.isclose(corners[:, 0], 7), 1]
        assert at_step_7.max() == pytest.approx(tops[6, k])
        assert at_step_7.min() == pytest.approx(tops[6, k] - run.probability[6, k])


def test_accuracy_has_a_panel_per_level_and_marks_held_out_ones(synthetic_run):
    run = synthetic_run(arms=2, held_out=1, steps=30)
    figure = plot_accuracy([run])
    assert panel_titles(figure) == [
        "mean, trained levels",
        "mean, held-out levels",
        "level 2",
        "level 4",
        "level 6 (held out)",
    ]
    mean, level = figure.axes[0].lines[0], figure.axes[3].lines[0]
    assert mean.get_xdata().tolist() == level.get_xdata().tolist() == [0, 15, 30]
    assert level.get_ydata().tolist() == [item.accuracy["4"] for item in run.evals]
    assert mean.get_ydata().tolist() == [
        (item.accuracy["2"] + item.accuracy["4"]) / 2 for item in run.evals
    ]


def test_accuracy_against_seconds(synthetic_run):
    run = synthetic_run(arms=2, steps=30)
    line = plot_accuracy(run, against="time").axes[0].lines[0]
    np.testing.assert_allclose(line.get_xdata(), [0, 4.65, 9.3])


def test_runs_of_one_name_share_a_colour_under_their_mean(synthetic_run):
    runs = [synthetic_run("sec", steps=30, seed=seed, speed=1 + seed) for seed in range(2)]
    runs.append(synthetic_run("random", steps=15))
    lines = plot_accuracy(runs).axes[2].lines
    assert [line.get_color() for line in lines] == ["#0072B2"] * 3 + ["#D55E00"]
    both = (lines[0].get_ydata() + lines[1].get_ydata()) / 2
    np.testing.assert_allclose(lines[2].get_ydata(), both)
    assert lines[2].get_linewidth() > lines[0].get_linewidth()


def test_accuracy_without_evaluations_says_which_run(synthetic_run):
    run = synthetic_run(steps=3, eval_every=0)
    with pytest.raises(ValueError, match=r"at least one eval line .* Got none in .*sec-0"):
        plot_accuracy(run)


def test_plots_of_no_run_raise(tmp_path):
    with pytest.raises(ValueError, match="at least one run"):
        write_plots([], tmp_path)


def test_training_curves(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write("run", schema=1, arms=["a", "b"], name="x")
        for step, draws, p in ((1, [3, 1], [0.5, 0.5]), (2, [3, 5], [0.0, 1.0])):
            advantage = [0.2, 0.6] if step == 1 else [None, 0.4]
            arms = {"probability": p, "draws": draws, "abs_advantage": advantage}
            writer.write("step", step=step, time=0.0, reward=step / 4, arms=arms)
    panels = {ax.get_title(loc="left"): ax.lines[0].get_ydata() for ax in _training(tmp_path)}
    assert {name: values.tolist() for name, values in panels.items()} == {
        "training reward": [0.25, 0.5],
        "learning signal": [pytest.approx((3 * 0.2 + 0.6) / 4), 0.4],
        "mean level of the curriculum": [1.5, 2.0],
        "effective number of arms": [pytest.approx(2.0), 1.0],
    }


def _training(folder):
    return plot_training(read_run(folder)).axes


def test_values_draws_q_of_every_arm(synthetic_run):
    run = synthetic_run(arms=3, steps=12)
    lines = plot_values(run).axes[0].lines
    np.testing.assert_array_equal(np.stack([line.get_ydata() for line in lines], 1), run.value)


def test_smooth_is_a_centred_mean_of_what_is_there():
    values = np.array([1.0, 2.0, np.nan, 6.0, np.nan, np.nan, np.nan])
    expected = [1.5, 1.5, 4.0, 6.0, 6.0, np.nan, np.nan]
    np.testing.assert_allclose(smooth(values, 3), expected)
    np.testing.assert_allclose(
        smooth(np.stack([values, values + 1], 1), 3)[:, 1], np.add(expected, 1)
    )
    np.testing.assert_allclose(smooth(np.array([1.0, 3.0]), 1), [1, 3])


def test_long_labels_and_many_seeds_do_not_overlap(synthetic_run):
    runs = [synthetic_run("a-rather-long-name-of-a-strategy", steps=20, seed=s) for s in range(3)]
    figure = plot_accuracy(runs)
    figure.draw_without_rendering()
    boxes = [ax.get_tightbbox() for ax in figure.axes] + [figure.legends[0].get_window_extent()]
    for i, one in enumerate(boxes):
        assert not any(one.padded(-1).overlaps(other) for other in boxes[i + 1 :])


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
