"""The TRL adapter against TRL itself; skipped where TRL is not installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

trl = pytest.importorskip("trl", reason="needs TRL: pip install 'sec-grpo[trl]'")

from datasets import Dataset  # noqa: E402

from sec_grpo import SEC, Random  # noqa: E402
from sec_grpo.errors import CheckpointError  # noqa: E402
from sec_grpo.integrations.trl import (  # noqa: E402
    STATE_FILE,
    CurriculumGRPOTrainer,
    use_fused_loss,
)
from sec_grpo.tiny import character_tokenizer, tiny_qwen2  # noqa: E402

ROWS = [{"prompt": "abc"[i % 3] * (1 + i // 3) + ">", "difficulty": i % 3, "number": i}
        for i in range(24)]  # fmt: skip
SEEN: list[int] = []


def length_reward(completions, number, **kwargs):
    SEEN.extend(number)
    return [float(len(set(text)) + n % 2) for text, n in zip(completions, number, strict=True)]


def make(folder: Path, *, own: bool = True, **options: Any):
    tokenizer = character_tokenizer("abc>")
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "num_generations": 2,
        "max_completion_length": 6,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "max_steps": 5,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "seed": 3,
    }
    extra = {name: options.pop(name) for name in ("curriculum", "category") if name in options}
    config = trl.GRPOConfig(**{**settings, **options})
    kind = CurriculumGRPOTrainer if own else trl.GRPOTrainer
    return kind(
        model=tiny_qwen2(tokenizer, seed=1),
        reward_funcs=length_reward,
        args=config,
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tokenizer,
        **extra,
    )


def weights(trainer) -> torch.Tensor:
    return torch.cat([p.detach().float().reshape(-1) for p in trainer.model.parameters()])


def test_it_trains_on_exactly_the_prompts_it_drew(tmp_path: Path) -> None:
    trainer = make(tmp_path, curriculum=Random())
    drawn: list[int] = []
    draw = trainer._shared.draw

    def note(size: int):
        indices = draw(size)
        drawn.extend(indices.repeat(2).tolist())
        return indices

    trainer._shared.draw = note
    SEEN.clear()
    trainer.train()
    assert drawn == SEEN
    assert len(drawn) == 5 * 4
    assert trainer.curriculum.step == 5


def test_the_curriculum_learns_from_every_generation(tmp_path: Path) -> None:
    trainer = make(tmp_path, curriculum={"name": "sec", "temperature": 0.2})
    trainer.train()
    assert trainer.curriculum.metrics()["observations"] == 5
    assert np.nanmax(trainer.curriculum.values()) > 0
    logged = [entry for entry in trainer.state.log_history if "curriculum/effective_arms" in entry]
    assert len(logged) == 5
    assert np.nanmax(trainer.curriculum.arm_table()["reward"]) > 0


@pytest.mark.parametrize("options", [{}, {"steps_per_generation": 2}, {"num_iterations": 2}])
def test_generations_reused_are_drawn_once(tmp_path: Path, options: dict[str, int]) -> None:
    trainer = make(tmp_path, curriculum=SEC(), max_steps=4, **options)
    trainer.train()
    assert trainer.curriculum.step == (2 if options else 4)


def test_resume_continues_with_the_same_draws(tmp_path: Path) -> None:
    def run(folder: Path, **options: Any) -> tuple[list[int], torch.Tensor]:
        trainer = make(folder, curriculum=SEC(temperature=0.2), save_strategy="steps",
                       save_steps=2, **options)  # fmt: skip
        SEEN.clear()
        resume = str(folder / "checkpoint-2") if (folder / "checkpoint-2").exists() else None
        trainer.train(resume_from_checkpoint=resume)
        return list(SEEN), weights(trainer)

    whole, expected = run(tmp_path / "whole", max_steps=4)
    first, _ = run(tmp_path / "parts", max_steps=2)
    second, found = run(tmp_path / "parts", max_steps=4)
    assert first + second == whole
    torch.testing.assert_close(found, expected)


def test_a_checkpoint_without_curriculum_is_refused(tmp_path: Path) -> None:
    trainer = make(tmp_path, curriculum=SEC(), save_strategy="steps", save_steps=2, max_steps=2)
    trainer.train()
    (tmp_path / "checkpoint-2" / STATE_FILE).unlink()
    with pytest.raises(CheckpointError, match=f"holds no {STATE_FILE}"):
        make(tmp_path, curriculum=SEC()).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "cispo"])
def test_five_steps_with_either_log_probability_give_the_same_weights(
    tmp_path: Path, loss_type: str
) -> None:
    def run(name: str, fused: bool) -> tuple[torch.Tensor, list[dict[str, float]]]:
        options = {"loss_type": loss_type, "temperature": 0.8, "num_iterations": 2}
        trainer = make(tmp_path / name, own=False, learning_rate=1e-3, **options)
        if fused:
            with use_fused_loss():
                trainer.train()
        else:
            trainer.train()
        return weights(trainer), trainer.state.log_history

    (own, own_log), (fused, fused_log) = run("own", False), run("fused", True)
    error = torch.linalg.vector_norm(fused - own) / torch.linalg.vector_norm(own)
    assert error < 1e-4
    start = weights(make(tmp_path / "start", own=False))
    assert torch.linalg.vector_norm(own - start) > 1e-3
    for one, other in zip(own_log[:5], fused_log[:5], strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-4)
        assert other["entropy"] == pytest.approx(one["entropy"], rel=1e-3)


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name must be one of"):
        make(tmp_path, curriculum="sac")
    with pytest.raises(ValueError, match="no column 'nothing'"):
        make(tmp_path, category="nothing")
    with pytest.raises(ValueError, match="curriculum must be a strategy"):
        make(tmp_path, curriculum=3)


def test_importing_the_package_does_not_import_trl() -> None:
    import subprocess
    import sys

    script = "import sec_grpo, sec_grpo.trainer, sys; print('trl' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
