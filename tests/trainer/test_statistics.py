"""What the log says of groups, arms and time."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch

from sec_grpo.trainer.group_statistics import GroupStatistics, group_outcomes
from sec_grpo.trainer.metrics import clip_extremes
from sec_grpo.trainer.step_timer import PARTS

REWARDS = np.array(
    [
        [0.0, 0.0, 0.0, 0.0],  # all fail
        [0.1, 0.1, 0.1, 0.1],  # all fail, well-formed
        [0.0, 0.1, 0.1, 0.0],  # format only
        [0.0, 0.1, 1.0, 0.0],  # mixed
        [1.0, 1.0, 1.0, 1.0],  # all pass
        [1.0, 1.5, 1.0, 1.0],  # all pass, with rewards that differ
    ]
)


def test_outcomes_of_groups():
    assert group_outcomes(REWARDS, 0.5).tolist() == [0, 0, 1, 2, 3, 3]
    assert group_outcomes(REWARDS, 0.1).tolist() == [0, 3, 2, 2, 3, 3]


def test_columns_by_arm():
    groups = GroupStatistics(0.5)
    groups.add(np.array([2, 0, 2]), REWARDS[:3])
    groups.add(np.array([0, 0, 2]), REWARDS[3:].astype(np.float32))
    columns, shares = groups.pop(4)
    np.testing.assert_array_equal(columns["rollouts"], [12, np.nan, 12, np.nan])
    np.testing.assert_array_equal(columns["successes"], [5, np.nan, 4, np.nan])
    raw = [np.abs(row - row.mean()).mean() for row in REWARDS]
    scaled = [d / (row.std(ddof=1) + 1e-4) for d, row in zip(raw, REWARDS, strict=True)]
    for name, values in (("without", raw), ("with", scaled)):
        found = columns[f"abs_advantage_{name}_std"]
        assert np.isnan(found[[1, 3]]).all()
        assert found[0] == pytest.approx((values[1] + values[3] + values[4]) / 3)
        assert found[2] == pytest.approx((values[0] + values[2] + values[5]) / 3)
    assert shares == {
        "groups/all_fail": pytest.approx(2 / 6),
        "groups/format_only": pytest.approx(1 / 6),
        "groups/mixed": pytest.approx(1 / 6),
        "groups/all_pass": pytest.approx(2 / 6),
    }
    assert groups.pop(4) == ({}, {})


def test_the_log_counts_what_the_reward_function_gave(make_trainer, read_events, tmp_path):
    given = []

    def reward(completions, difficulty, **columns):
        scores = [0.25 * len(text) for text in completions]
        given.extend(zip(difficulty, scores, strict=True))
        return scores

    make_trainer(
        reward_funcs=reward, max_steps=4, logging_steps=2, check_reward_funcs=False
    ).train()
    events = read_events(tmp_path / "run", "step")
    assert len(events) == 2
    for event, part in zip(events, (given[:16], given[16:]), strict=True):
        for k, arm in enumerate((0, 1, 2)):
            scores = [score for label, score in part if label == arm]
            assert event["arms"]["rollouts"][k] == (len(scores) or None)
            successes = sum(score >= 0.5 for score in scores)
            assert event["arms"]["successes"][k] == (successes if scores else None)
        assert sum(event[f"groups/{name}"] for name in OUTCOME_NAMES) == pytest.approx(1)


OUTCOME_NAMES = ("all_fail", "format_only", "mixed", "all_pass")


def test_times_are_means_over_optimizer_steps(make_trainer, read_events, tmp_path):
    """Rollouts every second step, each with a reward function that sleeps 50 ms."""

    def reward(completions, **columns):
        time.sleep(0.05)
        return [float(len(text)) for text in completions]

    options = {"reward_funcs": reward, "num_iterations": 2, "max_steps": 4}
    make_trainer(output_dir=str(tmp_path / "each"), **options).train()
    make_trainer(output_dir=str(tmp_path / "pairs"), logging_steps=2, **options).train()
    each = read_events(tmp_path / "each", "step")
    for event, slept in zip(each, (True, False, True, False), strict=True):
        assert (event["time/reward"] >= 0.05) == slept
        assert (event["time/rollout"] > 0) == (event["time/logprobs"] > 0) == slept
        assert event["time/update"] > 0
        assert 0 < sum(event[f"time/{name}"] for name in PARTS) <= event["step_time"]
    for event in read_events(tmp_path / "pairs", "step"):
        assert 0.025 <= event["time/reward"] <= 0.25
        assert event["step_time"] > event["time/reward"]


def test_clip_extremes():
    """Three completions of 2, 4 and 1 tokens; A of -1, 1 and -1."""
    log_ratio = torch.tensor([-1.0, 0.0, 1.0, 1.0, 1.0, -1.0, -1.0])
    arguments = {
        "old_logprobs": torch.zeros(7),
        "advantages": torch.tensor([-1.0, 1.0, -1.0]),
        "cu_seqlens": torch.tensor([0, 2, 6, 7]),
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
    }
    # From below: 1/2, 0 (A > 0), 1; from above: 0, 3/4, 0.
    found = clip_extremes(log_ratio, sequence_level=False, **arguments)
    assert found["clip_ratio/low_min"].item() == 0.0
    assert found["clip_ratio/high_max"].item() == 0.75
    negative = {**arguments, "advantages": -torch.ones(3)}
    found = clip_extremes(log_ratio, sequence_level=False, **negative)
    assert found["clip_ratio/low_min"].item() == 0.25
    # Means of the log-ratio: -0.5, 0.5, -1.
    found = clip_extremes(log_ratio, sequence_level=True, **arguments)
    assert found["clip_ratio/high_max"].item() == 1.0
    found = clip_extremes(log_ratio, sequence_level=True, **{**arguments, "epsilon_high": 0.7})
    assert found["clip_ratio/high_max"].item() == 0.0
    arguments["old_logprobs"] = None
    found = clip_extremes(log_ratio, sequence_level=False, **arguments)
    assert [value.item() for value in found.values()] == [0.0, 0.0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_refused_threshold(make_trainer, value):
    with pytest.raises(ValueError, match="success_threshold must be finite"):
        make_trainer(success_threshold=value)
