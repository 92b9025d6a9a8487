"""When the device runs out of memory the error says which settings take less."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch

from sec_grpo import GRPOConfig
from sec_grpo.cli import main

MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB."


def run_out(*args, **kwargs):
    raise torch.OutOfMemoryError(MESSAGE)


def refused(trainer, call=None):
    with pytest.raises(torch.OutOfMemoryError) as caught:
        (call or trainer.train)()
    message = str(caught.value)
    assert message.startswith(MESSAGE)  # what auto_find_batch_size looks for
    assert len(caught.value.args) == 1
    assert message.count("What takes less") == 1
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    return message


def test_update(make_trainer, monkeypatch):
    trainer = make_trainer(gradient_accumulation_steps=2, bf16=False)
    monkeypatch.setattr(torch.Tensor, "backward", run_out)
    message = refused(trainer)
    assert "out of memory in the update at step 1." in message
    assert (
        "per_device_train_batch_size=4 with gradient_accumulation_steps=4, now 8 and 2" in message
    )
    assert "max_tokens_per_micro_batch, now what a micro-batch holds on average" in message
    assert "gradient_checkpointing=True" in message
    assert "bf16=True" in message
    assert "max_completion_length, now 6" in message
    assert "peft_config" in message
    assert "fused_lm_head" not in message  # is on
    assert "rollout_batch_size" not in message
    assert "FSDP2" not in message  # one process


def test_what_is_at_its_least_is_not_suggested(make_trainer, monkeypatch):
    trainer = make_trainer(
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4,
        gradient_checkpointing=True,
        fused_lm_head=False,
        beta=0.1,
    )
    monkeypatch.setattr(trainer._update, "add_logprobs", run_out)
    message = refused(trainer)
    assert "in the update" in message
    for name in ("per_device_train_batch_size", "max_tokens_per_micro", "gradient_checkpointing"):
        assert name not in message
    assert "fused_lm_head=True" in message
    assert "beta=0, now 0.1" in message


def test_sampling(make_trainer, monkeypatch):
    trainer = make_trainer(rollout_batch_size=6)
    monkeypatch.setattr(trainer.model, "generate", run_out)
    message = refused(trainer)
    assert "out of memory in sampling at step 1." in message
    assert "rollout_batch_size=3: 6 are sampled together now" in message
    assert "per_device_train_batch_size" not in message


def test_evaluation(make_trainer, monkeypatch):
    rows = [{"prompt": "abc", "difficulty": 0}]
    trainer = make_trainer(eval_dataset=rows, per_device_eval_batch_size=8)
    monkeypatch.setattr(trainer.model, "generate", run_out)
    message = refused(trainer, trainer.evaluate)
    assert "out of memory in evaluation" in message
    assert "per_device_eval_batch_size=4, now 8" in message


def test_optimizer(make_trainer, monkeypatch):
    monkeypatch.setattr(torch.optim.AdamW, "step", run_out)
    message = refused(make_trainer())
    assert "out of memory in the optimizer at step 1." in message
    assert re.search(r"optim='adafactor' .* now 'adamw_torch", message)


def test_the_settings_that_are_named_exist(make_trainer, monkeypatch):
    """Every name before "=" in a suggestion is an argument."""
    trainer = make_trainer(fused_lm_head=False, beta=0.1)
    for attribute in ("add_logprobs", "loss"):
        monkeypatch.setattr(trainer._update, attribute, run_out)
    message = refused(trainer)
    suggestions = re.findall(r"^- (\w+)(?:=|, now)", message, re.M)
    assert len(suggestions) >= 6
    known = {field.name for field in dataclasses.fields(GRPOConfig)}
    assert set(suggestions) - known == {"peft_config"}


def test_command_line_shows_it_without_a_traceback(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.optim.AdamW, "step", run_out)
    options = {
        "model": "tiny",
        "data": "sort",
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 4,
        "learning_rate": 1e-3,
        "report_to": "none",
        "output_dir": tmp_path / "run",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr("sys.argv", ["sec-grpo", "train", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    shown = capsys.readouterr().err
    assert "out of memory in the optimizer at step 1" in shown
    assert "Traceback" not in shown
