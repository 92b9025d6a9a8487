"""What differs from TRL or from the paper is said when the trainer is made."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from sec_grpo.trainer import setup


@pytest.fixture
def warnings(monkeypatch):
    seen = []
    monkeypatch.setattr(setup.logger, "warning", lambda text, *args: seen.append(text % args))
    return seen


@pytest.mark.parametrize(
    ("loss_type", "told"),
    [("dapo", True), ("bnpo", True), ("dr_grpo", True), ("cispo", True), ("grpo", False)],
)
def test_sequence_ratio_under_a_sum_of_tokens(make_trainer, warnings, loss_type, told):
    make_trainer(importance_sampling_level="sequence", loss_type=loss_type)
    found = [text for text in warnings if "weights every completion by its length" in text]
    assert len(found) == told
    assert all(f"loss_type='{loss_type}'" in text for text in found)
    warnings.clear()
    make_trainer(loss_type=loss_type)
    assert not warnings


def mixture(tokenizer, **changes):
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=32,
        moe_intermediate_size=16,
        num_experts=4,
        num_experts_per_tok=2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **changes,
    )
    return Qwen3MoeForCausalLM(config)


def test_load_balancing_loss_of_a_mixture(make_trainer, warnings, tokenizer):
    trainer = make_trainer(model=mixture(tokenizer, router_aux_loss_coef=0.02))
    (text,) = warnings
    assert "router_aux_loss_coef=0.02 of the model's config has no effect" in text
    assert not trainer.aux_loss_enabled
    trainer.train()
    assert "aux_loss" not in trainer.state.log_history[0]
    warnings.clear()
    make_trainer(model=mixture(tokenizer, router_aux_loss_coef=0.0))
    assert not warnings
