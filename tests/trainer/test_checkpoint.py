"""Checkpoints are verified before anything is changed, and are whole or absent."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from sec_grpo import SEC, Random
from sec_grpo.errors import CheckpointError
from sec_grpo.trainer import checkpoint as checkpoints

WORKER = Path(__file__).with_name("saving_worker.py")


@pytest.fixture
def saved(make_trainer):
    """checkpoint-1 of a run, in the middle of a generation batch."""
    trainer = make_trainer(max_steps=1, save_strategy="steps", save_steps=1, num_iterations=2)
    trainer.train()
    return Path(trainer.args.output_dir) / "checkpoint-1"


@pytest.fixture
def make_resuming(make_trainer):
    def make(**options):
        return make_trainer(**{"max_steps": 3, "num_iterations": 2, **options})

    return make


def state_of(trainer):
    parameters = [p.detach().clone() for p in trainer.model.parameters()]
    return parameters, trainer.curriculum.to_bytes()


def assert_refused(trainer, path, match):
    parameters, curriculum = state_of(trainer)
    with pytest.raises(CheckpointError, match=match):
        trainer.train(resume_from_checkpoint=str(path))
    assert trainer.state.global_step == 0
    after, curriculum_after = state_of(trainer)
    assert curriculum_after == curriculum
    assert all(torch.equal(a, b) for a, b in zip(after, parameters, strict=True))


def test_every_file_is_checked(saved, make_resuming, tmp_path):
    trainer = make_resuming()
    names = sorted(p.relative_to(saved).as_posix() for p in saved.rglob("*") if p.is_file())
    assert {"sec_grpo.pt", "rollouts_0.pt", "optimizer.pt", "model.safetensors"} < set(names)
    for name in names:
        for harm in ("truncate", "flip", "delete"):
            damaged = tmp_path / "damaged" / "checkpoint-1"
            shutil.copytree(saved, damaged)
            file = damaged / name
            content = file.read_bytes()
            if harm == "delete":
                file.unlink()
            elif harm == "truncate":
                file.write_bytes(content[: len(content) // 2])
            else:
                middle = len(content) // 2
                flipped = bytes([content[middle] ^ 0xFF])
                file.write_bytes(content[:middle] + flipped + content[middle + 1 :])
            # A flipped byte in the manifest is in the entry of some file.
            assert_refused(trainer, damaged, name if name != "manifest.json" else str(damaged))
            shutil.rmtree(damaged.parent)
    trainer.train(resume_from_checkpoint=str(saved))
    assert trainer.state.global_step == 3


def test_deleted_manifest_is_named(saved, make_resuming):
    (saved / "manifest.json").unlink()
    assert_refused(make_resuming(), saved, r"has no manifest\.json")


def test_checkpoint_of_another_program(make_model, make_resuming, tmp_path):
    rows = [{"input_ids": torch.tensor([3, 4]), "labels": torch.tensor([3, 4])}] * 4
    args = TrainingArguments(
        output_dir=str(tmp_path / "plain"),
        max_steps=1,
        save_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    Trainer(make_model(), args, train_dataset=rows).train()
    foreign = tmp_path / "plain" / "checkpoint-1"
    assert_refused(make_resuming(), foreign, r"not written by sec_grpo.*pass the folder as the")


def test_missing_checkpoints(make_resuming, tmp_path):
    trainer = make_resuming()
    assert_refused(trainer, tmp_path / "nowhere", "does not exist or is not a folder")
    with pytest.raises(CheckpointError, match="holds no checkpoint to resume from"):
        trainer.train(resume_from_checkpoint=True)


ROWS = [{"prompt": "abcdefgh"[: 2 + i % 5], "difficulty": i % 3} for i in range(24)]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"train_dataset": ROWS}, "train_dataset='24 prompts"),
        ({"train_dataset": ROWS[:12]}, "now it is '12 prompts"),
        ({"category": None}, "does not fit this run"),
        ({"curriculum": Random()}, "does not fit this run.*strategy"),
        ({"curriculum": SEC(temperature=0.1)}, "does not fit this run"),
        ({"seed": 5}, "generation_seed=3, now it is 5"),
        ({"generation_seed": 7}, "generation_seed=3, now it is 7"),
        ({"per_device_train_batch_size": 16}, "generation_batch_size=8, now it is 16"),
        ({"num_generations": 2}, "num_generations=4, now it is 2"),
        ({"num_iterations": 1}, "num_iterations=2, now it is 1"),
        (
            {"per_device_train_batch_size": 4, "steps_per_generation": 2, "num_iterations": 1},
            "num_iterations=2, now it is 1",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_another_run_is_refused(saved, make_resuming, options, match):
    assert_refused(make_resuming(**options), saved, match)


def test_another_model_is_refused(saved, make_resuming, make_model):
    assert_refused(make_resuming(model=make_model(hidden_size=32)), saved, "model='parameters")
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    assert_refused(make_resuming(peft_config=lora), saved, "model='parameters")


def test_rotation_keeps_the_newest(make_trainer, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    trainer = make_trainer(max_steps=5, **options)
    trainer.train()
    run = tmp_path / "run"
    assert sorted(p.name for p in run.glob("*checkpoint*")) == ["checkpoint-4", "checkpoint-5"]
    assert not (run / checkpoints.STAGING_DIR).exists()
    # An older branch of the run does not push out the newer checkpoints.
    resumed = make_trainer(max_steps=9, **{**options, "save_steps": 2, "save_total_limit": 1})
    shutil.rmtree(run / "checkpoint-5")
    os.rename(run / "checkpoint-4", run / "checkpoint-400")
    os.utime(run / "checkpoint-400", (1e9, 1e9))  # transformers sorts by time from 1 s on
    resumed.train(resume_from_checkpoint=str(run / "checkpoint-400"))
    assert [p.name for p in run.glob("checkpoint-*")] == ["checkpoint-9"]


@pytest.mark.parametrize("limit", [1, 2])
def test_kill_in_a_deletion_leaves_whole_checkpoints(make_trainer, tmp_path, monkeypatch, limit):
    """The process ends after one file of an old checkpoint is gone."""
    rmtree = shutil.rmtree

    class KilledError(BaseException):
        pass

    def killed(path, *args, **kwargs):
        if not Path(path).name.startswith("checkpoint-") or not Path(path).exists():
            return rmtree(path, *args, **kwargs)
        next(file for file in Path(path).iterdir()).unlink()
        raise KilledError

    trainer = make_trainer(max_steps=5, save_strategy="steps", save_steps=1, save_total_limit=limit)
    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KilledError):
        trainer.train()
    monkeypatch.undo()
    found = checkpoints.saved(tmp_path / "run")
    assert len(found) == limit
    for path in found:
        checkpoints.verify(path)
    checkpoints.recover(tmp_path / "run")
    assert sorted((tmp_path / "run").glob("checkpoint-*")) == sorted(found)


def make_best_trainer(make_trainer, **options):
    """Four steps, of which the second is evaluated best."""
    scores = iter([1.0, 5.0, 2.0, 3.0])
    return make_trainer(
        max_steps=4,
        eval_dataset=ROWS[:2],
        eval_reward_funcs=lambda completions, **_: (
            [next(scores) if completions[0] else 0.0] * len(completions)
        ),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        metric_for_best_model="reward",
        greater_is_better=True,
        load_best_model_at_end=True,
        **options,
    )


def test_a_run_killed_after_its_last_save_ends_with_the_best_model(make_trainer):
    first = make_best_trainer(make_trainer)
    first.train()
    again = make_best_trainer(make_trainer)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4
    best, last = (load_file(c / "model.safetensors") for c in checkpoints_of(first, 2, 4))
    norm = "model.norm.weight"
    assert not torch.equal(best[norm], last[norm])
    assert torch.equal(again.model.model.norm.weight, best[norm])


def checkpoints_of(trainer, *steps):
    return [Path(trainer.args.output_dir) / f"checkpoint-{step}" for step in steps]


def test_best_checkpoint_is_kept_and_loaded(make_trainer, tmp_path):
    trainer = make_best_trainer(make_trainer, save_total_limit=1)
    snapshots = {}

    from transformers import TrainerCallback

    class Snapshot(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            snapshots[state.global_step] = model.model.norm.weight.detach().clone()

    trainer.add_callback(Snapshot())
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "run" / "checkpoint-2")
    assert torch.equal(trainer.model.model.norm.weight, snapshots[2])
    assert not torch.equal(trainer.model.model.norm.weight, snapshots[4])
    state = json.loads((tmp_path / "run" / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(tmp_path / "run" / "checkpoint-2")
    checkpoints.verify(tmp_path / "run" / "checkpoint-2")


def test_leftover_staging_is_ignored_and_removed(saved, make_resuming):
    staging = saved.parent / checkpoints.STAGING_DIR
    (staging / "checkpoint-900").mkdir(parents=True)
    (staging / "checkpoint-900" / "optimizer.pt").write_bytes(b"half")
    trainer = make_resuming()
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3
    assert not staging.exists()


def test_kill_between_the_renames_keeps_the_old_checkpoint(saved, make_resuming):
    saved.rename(saved.with_name("checkpoint-1.replaced"))
    trainer = make_resuming()
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3
    assert sorted(p.name for p in saved.parent.glob("check*")) == ["checkpoint-1"]


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path):
    """kill -9 while one checkpoint after another is saved: the newest is whole and resumes."""
    run = tmp_path / "run"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(WORKER), str(run)]
    for round_number, delay in enumerate([0.02, 0.11, 0.05]):
        worker = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        assert worker.stdout is not None
        # Every line is a finished step: with each round the kill falls elsewhere in a save.
        lines = []
        for line in worker.stdout:
            lines.append(line)
            if line.startswith("step") and len(lines) > 2 + round_number:
                break
        time.sleep(delay)
        worker.kill()
        _, errors = worker.communicate()
        assert worker.returncode == -signal.SIGKILL, errors
        found = [p for p in run.glob("checkpoint-*") if p.name[11:].isdigit()]
        assert found
        for path in found:
            checkpoints.verify(path)
    last = subprocess.run(
        [*command, "once"], capture_output=True, text=True, env=environment, check=False
    )
    assert last.returncode == 0, last.stderr
    newest = max(int(p.name[11:]) for p in found)
    assert f"resumed {newest}" in last.stdout
