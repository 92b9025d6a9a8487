"""What a program written for TRL reads from a trainer that is made, and cannot write to."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from datasets import Dataset
from transformers import Qwen2ForSequenceClassification

from sec_grpo import GRPOTrainer
from sec_grpo.trainer.trl_names import ABSENT_CONFIG, DIFFERENT_CONFIG

OPTIONS = {
    "epsilon": 0.1,
    "epsilon_high": 0.3,
    "temperature": 0.9,
    "top_p": 0.8,
    "top_k": 7,
    "num_iterations": 2,
    "loss_type": "cispo",
    "reward_weights": [0.25, 2.0],
    "chat_template_kwargs": {"enable_thinking": False},
    "entropy_coef": 0.01,
}


def length(completions, **columns):
    return [float(len(text)) for text in completions]


def variety(completions, **columns):
    return [float(len(set(text))) for text in completions]


@pytest.fixture
def pair(make_trainer, make_model, tokenizer, tmp_path):
    """Our trainer and TRL's of the same arguments."""
    trl = pytest.importorskip("trl")
    ours = make_trainer(reward_funcs=[length, variety], category=None, **OPTIONS)
    theirs = trl.GRPOTrainer(
        make_model(),
        [length, variety],
        trl.GRPOConfig(
            output_dir=str(tmp_path / "theirs"),
            use_cpu=True,
            bf16=False,
            report_to="none",
            per_device_train_batch_size=8,
            num_generations=4,
            max_completion_length=6,
            **OPTIONS,
        ),
        Dataset.from_list([{"prompt": "abc"}] * 8),
        processing_class=tokenizer,
    )
    return ours, theirs, trl


def test_settings_have_trls_names_and_values(pair):
    ours, theirs, trl = pair
    config = {f.name for f in dataclasses.fields(trl.GRPOConfig)} - set(ABSENT_CONFIG)
    # Under this name TRL keeps all that generate is called with, and not the argument.
    config -= {"generation_kwargs"}
    names = (vars(theirs).keys() & config) | {"epsilon_low", "epsilon_high", "aux_loss_enabled"}
    assert len(names) > 20
    for name in names - set(DIFFERENT_CONFIG):
        expected = getattr(theirs, name)
        if isinstance(expected, torch.Tensor):
            assert torch.equal(getattr(ours, name), expected), name
        else:
            assert getattr(ours, name) == expected, name
    for name in names & set(DIFFERENT_CONFIG):
        assert hasattr(ours, name), name


def test_rewards_have_trls_names(pair):
    ours, theirs, _ = pair
    assert ours.reward_funcs == theirs.reward_funcs == [length, variety]
    assert ours.reward_func_names == theirs.reward_func_names == ["length", "variety"]
    assert ours.reward_processing_classes == theirs.reward_processing_classes == [None, None]
    assert ours.ref_model is None


def test_upper_clip_range_follows_the_lower_one(make_trainer):
    assert make_trainer(epsilon=0.15).epsilon_high == 0.15


def test_attributes_cannot_be_set(make_trainer):
    trainer = make_trainer()
    with pytest.raises(
        AttributeError, match=r"epsilon cannot .* pass GRPOConfig\(epsilon=\.\.\.\)"
    ):
        trainer.epsilon_low = 0.5
    assert trainer.args.epsilon == 0.2
    assert not isinstance(GRPOTrainer.beta, float)


def test_reference_and_its_moves(make_trainer):
    trainer = make_trainer(
        beta=0.1, sync_ref_model=True, ref_model_sync_steps=1, ref_model_mixup_alpha=1.0
    )
    before = [p.clone() for p in trainer.ref_model.parameters()]
    trainer.train()
    after = list(trainer.ref_model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(map(torch.equal, after, trainer.model.parameters()))


def test_tokenizer_of_a_reward_model(make_trainer, make_model, tokenizer, tmp_path):
    config = make_model().config
    config.num_labels = 1
    Qwen2ForSequenceClassification(config).save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    trainer = make_trainer(reward_funcs=[length, str(tmp_path / "judge")])
    assert trainer.reward_func_names == ["length", "judge"]
    none, found = trainer.reward_processing_classes
    assert none is None
    assert found.get_vocab() == tokenizer.get_vocab()


def test_entropy_coefficient_is_the_present_one(make_trainer):
    trainer = make_trainer(
        entropy_coef=0.01, use_adaptive_entropy=True, entropy_target=50.0, entropy_coef_delta=0.25
    )
    assert trainer.entropy_coef == 0.01
    trainer.train()
    assert trainer.entropy_coef == pytest.approx(0.01 + 2 * 0.25)


def test_model_card_names_the_data_set(make_trainer, tmp_path):
    """By the argument that a script written for TRL gives to `push_to_hub`."""
    trainer = make_trainer()
    trainer.train()
    trainer.create_model_card(model_name="sorter", dataset_name="letters")
    card = (tmp_path / "run" / "README.md").read_text()
    assert "# sorter" in card
    assert "on the letters dataset" in card


def test_no_reward_function(make_model, tokenizer):
    with pytest.raises(ValueError, match="reward_funcs is empty: pass at least one"):
        GRPOTrainer(make_model(), train_dataset=[{"prompt": "a"}] * 8, processing_class=tokenizer)
