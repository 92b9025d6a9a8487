"""Ctrl-C, SIGTERM and failing reward functions leave a checkpoint that resumes exactly."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sec_grpo import SEC
from sec_grpo.errors import RewardError

WORKER = Path(__file__).with_name("interrupted_worker.py")


@pytest.fixture(scope="module")
def worker():
    spec = importlib.util.spec_from_file_location("interrupted_worker", WORKER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def start():
    """Start the worker and wait for its `count`-th scoring; it is ended with the test."""
    started = []

    def start(folder, count):
        process = subprocess.Popen(
            [sys.executable, str(WORKER), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        started.append(process)
        assert process.stdout is not None
        for _ in range(count):
            while not process.stdout.readline().startswith("scoring"):
                assert process.poll() is None, process.stderr.read()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_after_the_step(start, worker, tmp_path, number):
    process = start(tmp_path / "run", count=3)
    process.send_signal(number)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "stopped True 3" in out
    assert f"{number.name}: saving a checkpoint after this step" in errors
    assert [p.name for p in (tmp_path / "run").glob("*checkpoint*")] == ["checkpoint-3"]

    resumed = worker.make_trainer(str(tmp_path / "run"), worker.fast_reward)
    resumed.train(resume_from_checkpoint=True)
    straight = worker.make_trainer(str(tmp_path / "straight"), worker.fast_reward)
    straight.train()
    assert resumed.state.global_step == worker.STEPS
    assert not resumed.stopped_by_signal
    for a, b in zip(resumed.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert resumed.curriculum.values().tolist() == straight.curriculum.values().tolist()


def test_second_signal_stops_at_once(start, tmp_path):
    process = start(tmp_path / "run", count=2)
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
    assert "stopped" not in out
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_handlers_are_restored(make_trainer):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    trainer = make_trainer(max_steps=1)
    trainer.train()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert not trainer.stopped_by_signal


class Flaky:
    """Rewards that fail from the `fail_at`-th scoring on."""

    __name__ = "flaky"

    def __init__(self, fail_at=None, kind=None):
        self.calls, self.fail_at, self.kind = 0, fail_at, kind

    def __call__(self, completions, **columns):
        if any(completions):
            self.calls += 1
        rewards = [len(text) + 0.5 * (text[-1:] < "d") for text in completions]
        if self.calls != self.fail_at:
            return rewards
        if self.kind == "nan":
            return [*rewards[:-1], float("nan")]
        if self.kind == "count":
            return rewards[:-1]
        raise KeyError("broken")


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("raise", r"'flaky' raised KeyError: 'broken'"),
        ("nan", r"'flaky' returned nan for completion 7 \("),
        ("count", r"'flaky' returned 7 rewards for 8 completions"),
    ],
)
@pytest.mark.parametrize("num_iterations", [1, 2])
def test_failing_reward_saves_the_last_step(make_trainer, tmp_path, kind, match, num_iterations):
    options = {"max_steps": 6, "learning_rate": 1e-2, "curriculum": SEC(temperature=0.3)}
    options["num_iterations"] = num_iterations
    run = tmp_path / "broken"
    broken = make_trainer(output_dir=str(run), reward_funcs=Flaky(3, kind), **options)
    with pytest.raises(RewardError, match=match):
        broken.train()
    last = 2 * num_iterations
    assert [p.name for p in run.glob("checkpoint-*")] == [f"checkpoint-{last}"]
    assert broken.curriculum.step == 2

    repaired = make_trainer(output_dir=str(run), reward_funcs=Flaky(), **options)
    repaired.train(resume_from_checkpoint=True)
    straight = make_trainer(output_dir=str(tmp_path / "s"), reward_funcs=Flaky(), **options)
    straight.train()
    for a, b in zip(repaired.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert repaired.curriculum.to_bytes() == straight.curriculum.to_bytes()


def test_failing_evaluation_reward_saves(make_trainer, tmp_path):
    trainer = make_trainer(
        max_steps=4,
        eval_dataset=[{"prompt": "abc", "difficulty": 0}],
        eval_reward_funcs=Flaky(2),
        eval_strategy="steps",
        eval_steps=1,
    )
    with pytest.raises(RewardError, match="'flaky' raised KeyError"):
        trainer.train()
    assert [p.name for p in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]


def test_first_step_failure_saves_nothing(make_trainer, tmp_path):
    trainer = make_trainer(reward_funcs=Flaky(1))
    before = trainer.curriculum.to_bytes()
    with pytest.raises(RewardError):
        trainer.train()
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    assert trainer.curriculum.to_bytes() == before
