"""A resumed run of the TRL adapter repeats the uninterrupted one, or says why it cannot."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("trl", reason="needs TRL: pip install 'sec-grpo[trl]'")

from sec_grpo import SEC, Random
from sec_grpo.errors import CheckpointError
from sec_grpo.integrations.trl import STATE_FILE

SAVING = {"save_strategy": "steps", "save_steps": 1, "curriculum": SEC(temperature=0.2)}
# How a run is cut up, and whether the checkpoint at step 3 lies inside a generation batch.
CUTS = {
    "every step": ({}, False),
    "two steps a generation": ({"steps_per_generation": 2}, True),
    "two iterations": ({"num_iterations": 2}, True),
    "accumulation": ({"gradient_accumulation_steps": 2, "steps_per_generation": 4}, True),
    "workers": ({"dataloader_num_workers": 1}, False),
}


@pytest.fixture
def run(make, weights):
    def train(folder: Path, checkpoint: str | None = None, **options):
        trainer = make(folder, **{**SAVING, **options})
        trainer.train(resume_from_checkpoint=checkpoint and str(folder / checkpoint))
        return trainer.reward_funcs[0].numbers, weights(trainer), trainer

    return train


@pytest.mark.parametrize("cut", CUTS)
def test_it_repeats_the_uninterrupted_run(run, tmp_path, cut) -> None:
    options, inside = CUTS[cut]
    whole, expected, uncut = run(tmp_path, max_steps=6, **options)
    pending = tmp_path / "checkpoint-3" / "sec_grpo_generation_0.pt"
    assert pending.exists() == inside
    rest, found, resumed = run(tmp_path, "checkpoint-3", max_steps=6, **options)
    assert 0 < len(rest) < len(whole)
    assert rest == whole[-len(rest) :]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert resumed.curriculum.to_bytes() == uncut.curriculum.to_bytes()
    assert resumed.curriculum.metrics()["observations"] > 1


def test_without_its_completions_it_samples_new_ones(run, tmp_path) -> None:
    _, _, uncut = run(tmp_path, max_steps=4, num_iterations=2)
    (tmp_path / "checkpoint-3" / "sec_grpo_generation_0.pt").unlink()
    rest, _, resumed = run(tmp_path, "checkpoint-3", max_steps=4, num_iterations=2)
    assert len(rest) == 4
    assert resumed.curriculum.step == uncut.curriculum.step + 1


@pytest.mark.parametrize("change", [{"num_generations": 4}, {"steps_per_generation": 4}])
def test_completions_of_another_layout_are_left_alone(run, tmp_path, change) -> None:
    """What is pending was sampled for other groups or slices: new completions are drawn."""
    options = {"steps_per_generation": 2}
    _, _, saved = run(tmp_path, max_steps=3, **options)
    rest, _, resumed = run(tmp_path, "checkpoint-3", max_steps=4, **{**options, **change})
    assert rest
    assert resumed.curriculum.step == saved.curriculum.step + 1


def test_weights_alone_have_no_completions(run, tmp_path) -> None:
    run(tmp_path, max_steps=1, num_iterations=2, save_only_model=True)
    names = {path.name for path in (tmp_path / "checkpoint-1").iterdir()}
    assert STATE_FILE in names
    assert not any(name.startswith("sec_grpo_generation") for name in names)


def test_a_stale_file_of_an_earlier_run_is_removed(run, tmp_path) -> None:
    run(tmp_path, max_steps=1, num_iterations=2)
    assert (tmp_path / "checkpoint-1" / "sec_grpo_generation_0.pt").exists()
    run(tmp_path, max_steps=1)
    assert not (tmp_path / "checkpoint-1" / "sec_grpo_generation_0.pt").exists()


def test_a_checkpoint_without_a_curriculum_is_refused(run, make, tmp_path) -> None:
    run(tmp_path, max_steps=1)
    (tmp_path / "checkpoint-1" / STATE_FILE).unlink()
    with pytest.raises(CheckpointError, match=f"holds no {STATE_FILE}.*or start a new run with"):
        make(tmp_path, **SAVING).train(resume_from_checkpoint=True)


def test_damage_and_other_curricula_are_refused(run, make, tmp_path) -> None:
    run(tmp_path / "run", max_steps=1, num_iterations=2)
    checkpoint = tmp_path / "run" / "checkpoint-1"
    whole = (checkpoint / STATE_FILE).read_bytes()
    damaged = whole[:-1] + bytes([whole[-1] ^ 1])

    def refused(match: str, **options) -> None:
        trainer = make(tmp_path / "again", **{**SAVING, "num_iterations": 2, **options})
        before = trainer.curriculum.to_bytes()
        with pytest.raises(CheckpointError, match=match):
            trainer.train(resume_from_checkpoint=str(checkpoint))
        assert trainer.curriculum.to_bytes() == before

    refused("does not fit", curriculum=Random())
    refused("does not fit", category="number")
    for content in (damaged, whole[:40], b""):
        (checkpoint / STATE_FILE).write_bytes(content)
        refused("does not fit")
    (checkpoint / STATE_FILE).unlink()
    (checkpoint / STATE_FILE).mkdir()
    refused("cannot be read")
    shutil.rmtree(checkpoint / STATE_FILE)
    (checkpoint / STATE_FILE).write_bytes(whole)
    generation = checkpoint / "sec_grpo_generation_0.pt"
    content = generation.read_bytes()
    damages = [b"no archive", content[:-30], content.replace(b"layout", b"l\xffyout")]
    for damage in damages:
        generation.write_bytes(damage)
        with pytest.raises(CheckpointError, match="Remove it to sample new completions"):
            make(tmp_path / "again", **SAVING, num_iterations=2).train(
                resume_from_checkpoint=str(checkpoint)
            )


def test_completions_are_read_without_running_what_a_file_says(run, make, tmp_path) -> None:
    class Harm:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "harmed",))

    run(tmp_path / "run", max_steps=1, num_iterations=2)
    checkpoint = tmp_path / "run" / "checkpoint-1"
    torch.save({"layout": Harm()}, checkpoint / "sec_grpo_generation_0.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        make(tmp_path / "again", **SAVING, num_iterations=2).train(
            resume_from_checkpoint=str(checkpoint)
        )
    assert not (tmp_path / "harmed").exists()


def test_rotation_keeps_the_curriculum_with_each_checkpoint(run, tmp_path) -> None:
    run(tmp_path, max_steps=4, save_total_limit=2)
    kept = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert kept == ["checkpoint-3", "checkpoint-4"]
    for name in kept:
        assert (tmp_path / name / STATE_FILE).exists()
