import math

import numpy as np
import pytest

from sec_grpo.report import MetricsWriter, read_run, series


def test_smooth_is_a_centred_mean_of_what_is_there():
    values = np.array([1.0, 2.0, np.nan, 6.0, np.nan, np.nan, np.nan])
    expected = [1.5, 1.5, 4.0, 6.0, 6.0, np.nan, np.nan]
    np.testing.assert_allclose(series.smooth(values, 3), expected)
    both = series.smooth(np.stack([values, values + 1], 1), 3)
    np.testing.assert_allclose(both[:, 1], np.add(expected, 1))
    np.testing.assert_allclose(series.smooth(np.array([1.0, 3.0]), 1), [1, 3])
    np.testing.assert_allclose(series.smooth(np.array([1.0, 3.0]), 9), [2, 2])
    assert series.smooth(np.zeros((0, 3)), 3).shape == (0, 3)


@pytest.mark.parametrize(
    ("share", "count", "expected"),
    [(0.5, 10, (0.2366, 0.7634)), (0.0, 10, (0.0, 0.2775)), (1.0, 48, (0.9259, 1.0))],
)
def test_wilson_interval_matches_published_values(share, count, expected):
    assert series.wilson_interval(share, count) == pytest.approx(expected, abs=1e-4)


def written(folder, rows, arms=("a", "b"), **scalars):
    """A log of steps 2, 4, 6, ... with these columns and scalars."""
    with MetricsWriter(folder) as writer:
        writer.write("run", schema=1, arms=list(arms), name="x")
        count = len(next(iter(rows.values() or scalars.values())))
        for t in range(count):
            line = {name: values[t] for name, values in scalars.items()}
            table = {name: values[t] for name, values in rows.items()}
            writer.write("step", step=2 * t + 2, time=0.0, arms=table, **line)
    return read_run(folder)


def test_of_the_allocation(tmp_path):
    p = [[0.5, 0.5], [0.0, 1.0]]
    advantage = [[0.2, 0.6], [None, 0.4]]
    run = written(
        tmp_path, {"probability": p, "draws": [[3, 1], [3, 5]], "abs_advantage": advantage}
    )
    np.testing.assert_allclose(series.effective_arms(run), [2.0, 1.0])
    np.testing.assert_allclose(series.mean_level(run), [1.5, 2.0])
    np.testing.assert_allclose(series.mean_advantage(run), [(3 * 0.2 + 0.6) / 4, 0.4])
    np.testing.assert_array_equal(series.drawn(run), [[3, 1], [0, 4]])
    np.testing.assert_allclose(series.drawn_share(run), [[0.75, 0.25], [0.0, 1.0]])


def test_staleness_counts_steps_since_the_last_draw(tmp_path):
    draws = [[1, 0], [1, 2], [1, 2], [4, 2]]
    run = written(tmp_path, {"draws": draws})
    # Steps 2, 4, 6, 8; the second arm is first drawn at step 4.
    np.testing.assert_array_equal(series.staleness(run), [[0, 2], [2, 0], [4, 2], [0, 4]])
    unknown = written(tmp_path / "unknown", {"probability": [[0.5, 0.5]]})
    assert np.isnan(series.staleness(unknown)).all()


def test_success_pools_the_rollouts_of_a_window(tmp_path):
    steps = 40  # a window of 3
    rollouts = [[8, None] for _ in range(steps)]
    successes = [[t % 3 * 4, None] for t in range(steps)]  # 0, 4, 8 of 8
    found = series.success(written(tmp_path, {"rollouts": rollouts, "successes": successes}))
    assert np.isnan(found.rate[:, 1]).all()
    np.testing.assert_allclose(found.rate[1:-1, 0], 0.5)
    low, high = series.wilson_interval(0.5, 24)
    np.testing.assert_allclose(found.low[1:-1, 0], low)
    np.testing.assert_allclose(found.high[1:-1, 0], high)
    assert found.rate[0, 0] == pytest.approx(0.25)


def test_time_of_a_step(tmp_path):
    """The first step, which compiles, is left out; what no part claims is "other"."""
    parts = {f"time/{name}": [9.0, 0.5, 1.5] for name in series.TIME_PARTS}
    run = written(tmp_path, {}, step_time=[99.0, 3.0, 8.0], **parts)
    assert series.step_times(run) == {
        **dict.fromkeys(series.TIME_PARTS, 1.0),
        "other": pytest.approx(5.5 - 5),
    }
    assert series.step_times(written(tmp_path / "none", {}, step_time=[1.0])) == {}


def test_accuracy_leaves_out_what_was_not_measured(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write("run", schema=1, arms=["a"], name="x")
        for step, accuracy in ((0, {"a": 0.5}), (5, {"a": None}), (9, {"a": 1.0, "b": 0.0})):
            writer.write("eval", step=step, time=step / 2, accuracy=accuracy)
    run = read_run(tmp_path)
    steps, values = series.accuracy_curve(run, ["a", "b"], "step")
    assert (steps.tolist(), values.tolist()) == ([0, 9], [0.5, 0.5])
    assert series.accuracy_curve(run, ["a"], "time")[0].tolist() == [0, 4.5]
    assert math.isnan(series.mean_accuracy(run.evals[0], ["b"]))
