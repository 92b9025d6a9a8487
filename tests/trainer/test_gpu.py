"""Training on a GPU: the CPU's gradients, bfloat16, resuming, and running out of memory."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import TrainerCallback

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device"),
]


class Given:
    """In place of the sampler: completions of 2 to 6 tokens, the same on every device."""

    def sample(self, model, prompt_ids, seed):
        return [[3 + (i + j) % 9 for j in range(2 + i % 5)] for i in range(len(prompt_ids))]

    def is_finished(self, ids):
        return True


class Gradients(TrainerCallback):
    def __init__(self):
        self.found = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        self.found.append(torch.cat(gradients).double().cpu())


def given_completions(make_trainer, **options):
    recorder = Gradients()
    trainer = make_trainer(callbacks=[recorder], max_steps=1, max_grad_norm=0.0, **options)
    trainer._collector._sampler = Given()
    trainer.train()
    return recorder.found[0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss_type": "vespo", "beta": 0.1},
        {"importance_sampling_level": "sequence", "entropy_coef": 0.1},
        {"advantage_estimator": "ppo"},
        {"fused_lm_head": False},
        {"gradient_checkpointing": True, "padding_free": False},
    ],
    ids=lambda options: "-".join(map(str, options)) or "default",
)
def test_gradients_are_those_of_the_cpu(make_trainer, options):
    cpu = given_completions(make_trainer, **options)
    gpu = given_completions(make_trainer, use_cpu=False, bf16=False, **options)
    assert cpu.norm() > 1e-3
    assert (gpu - cpu).norm() < 1e-3 * cpu.norm()


@pytest.mark.parametrize("continuous", [False, True], ids=["generate", "generate_batch"])
def test_bfloat16_trains(make_trainer, continuous):
    trainer = make_trainer(
        use_cpu=False,
        bf16=True,
        gradient_checkpointing=True,
        max_steps=3,
        logging_steps=1,
        num_iterations=2,
        use_transformers_continuous_batching=continuous,
    )
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    assert len(entries) == 3
    assert all(math.isfinite(entry["grad_norm"]) for entry in entries)
    assert max(entry["grad_norm"] for entry in entries) > 0
    assert any(
        not torch.equal(a.to(p), p.detach())
        for a, p in zip(before, trainer.model.parameters(), strict=True)
    )


def test_a_resumed_run_goes_on_with_the_same_draws(make_trainer, tmp_path):
    options = {"use_cpu": False, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    options["logging_steps"] = 1
    whole = make_trainer(**options)
    whole.train()
    resumed = make_trainer(**options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    names = ("loss", "reward", "entropy", "curriculum/prompts_drawn")
    logs = [
        [[entry[name] for name in names] for entry in trainer.state.log_history if "loss" in entry]
        for trainer in (whole, resumed)
    ]
    assert len(logs[0]) == 4
    # Sums of a GPU's library need not be in the same order twice.
    for a, b in zip(*logs, strict=True):
        assert b == pytest.approx(a, rel=1e-3, abs=1e-5)


def test_out_of_memory_says_what_takes_less(make_trainer):
    trainer = make_trainer(
        use_cpu=False, max_completion_length=48, per_device_train_batch_size=1024
    )
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    room = torch.cuda.memory_reserved() + (1 << 20)
    torch.cuda.set_per_process_memory_fraction(room / total)
    try:
        with pytest.raises(torch.OutOfMemoryError) as caught:
            trainer.train()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "What takes less" in str(caught.value)
