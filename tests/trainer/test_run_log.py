"""The run's `metrics.jsonl` beside its curriculum."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sec_grpo import SEC, Curriculum
from sec_grpo.report import read_run
from sec_grpo.trainer.run_log import MAX_ARMS, ArmBins, RunRecorder


def test_few_arms_are_logged_one_by_one():
    bins = ArmBins(["a", "b", "c"])
    assert bins.labels == ["a", "b", "c"]
    assert bins.column("reward", np.array([0.1234567891, np.nan, 2.0])) == [0.1234568, None, 2.0]
    third = [1 / 3] * 3
    assert bins.column("probability", np.array(third)) == third


def test_neighbours_are_joined_where_arms_are_many():
    count = 2 * MAX_ARMS + 500
    bins = ArmBins([str(k) for k in range(count)])
    assert len(bins.labels) == MAX_ARMS
    assert bins.labels[:2] == ["0 to 1", "2 to 4"]  # two or three each
    assert bins.labels[-1].endswith(f" to {count - 1}")
    draws = bins.column("draws", np.arange(count))
    assert draws[:2] == [1, 2 + 3 + 4]
    assert sum(draws) == count * (count - 1) / 2
    assert sum(bins.column("probability", np.full(count, 1 / count))) == pytest.approx(1)
    rewards = np.full(count, np.nan)
    rewards[[0, 2, 3]] = 1.0, 0.25, 0.5
    assert bins.column("reward", rewards)[:3] == [1.0, 0.375, None]
    assert bins.column("successes", rewards)[:3] == [1.0, 0.75, None]


def write(recorder, curriculum, steps):
    config = {"run_name": "x"}
    recorder.start(config, step=0, max_steps=9, resumed=False)
    for step in steps:
        indices = curriculum.draw(4)
        curriculum.observe(indices, advantages=np.ones((4, 2)), rewards=np.zeros((4, 2)))
        rollouts = np.bincount(curriculum.arm_indices(indices), minlength=curriculum.num_arms) * 2.0
        recorder.step(step, {"loss": math.nan}, {"rollouts": np.where(rollouts, rollouts, np.nan)})


def test_many_arms_stay_a_log_that_can_be_read(tmp_path):
    curriculum = Curriculum(np.arange(20_000), SEC(), seed=0)
    write(RunRecorder(str(tmp_path), curriculum, enabled=True), curriculum, (1, 2))
    run = read_run(tmp_path)
    assert len(run.arms) == MAX_ARMS
    assert (tmp_path / "metrics.jsonl").stat().st_size < 300_000
    np.testing.assert_allclose(run.probability.sum(axis=1), 1)
    assert np.nansum(run.draws, axis=1).tolist() == [4, 8]
    assert np.nansum(run.rollouts, axis=1).tolist() == [8, 8]
    assert run.max_steps == 9


def test_arms_added_while_training(tmp_path):
    curriculum = Curriculum(["a"] * 5, SEC(), seed=0)
    recorder = RunRecorder(str(tmp_path), curriculum, enabled=True)
    write(recorder, curriculum, (1,))
    curriculum.add(["b"] * 5)
    for step in (2, 3):
        curriculum.draw(4)
        recorder.step(step, {}, {})
    run = read_run(tmp_path)
    assert run.arms == ("a", "b")
    assert run.steps.tolist() == [1, 2, 3]
    assert np.isnan(run.probability[0, 1])
    np.testing.assert_allclose(run.probability[1:].sum(axis=1), 1)
    assert run.damaged == ()


def test_only_one_process_writes(tmp_path):
    curriculum = Curriculum(["a"], SEC(), seed=0)
    write(RunRecorder(str(tmp_path), curriculum, enabled=False), curriculum, (1,))
    assert list(tmp_path.iterdir()) == []


def test_the_summary_carries_the_steps_that_no_other_log_does(make_trainer, read_events):
    trainer = make_trainer(max_steps=3, logging_steps=2)
    trainer.train()
    first, summary = trainer.state.log_history
    assert first["step"] == 2
    assert "train_runtime" not in first
    assert summary["step"] == 3
    assert "train_runtime" in summary
    assert {"reward", "rewards/letter_reward/mean", "curriculum/step"} <= summary.keys()
    assert summary["num_tokens"] > first["num_tokens"]
    events = read_events(trainer.args.output_dir, "step")
    assert [event["step"] for event in events] == [2, 3]
    assert events[1]["reward"] == summary["reward"]
    assert "train_runtime" not in events[1]
    # Nothing is left where the last step was logged.
    trainer = make_trainer(max_steps=2, logging_steps=1)
    trainer.train()
    assert "reward" not in trainer.state.log_history[-1]
