"""Options of transformers' Trainer that the GRPO step has to live with."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from peft import LoraConfig

from sec_grpo import Curriculum, Random
from sec_grpo.trainer import setup


def weights(trainer):
    return torch.cat([p.detach().float().flatten() for p in trainer.model.parameters()])


@pytest.mark.parametrize("fused_lm_head", [True, False])
def test_bf16(make_trainer, read_events, tmp_path, fused_lm_head):
    """The same policy samples and is updated: the first ratio is 1 up to bf16 rounding."""
    trainer = make_trainer(
        bf16=True, beta=0.1, num_iterations=2, max_steps=3, fused_lm_head=fused_lm_head
    )
    before = weights(trainer)
    trainer.train()
    assert trainer.model.dtype == torch.float32
    assert torch.isfinite(weights(trainer)).all()
    assert not torch.equal(weights(trainer), before)
    events = read_events(tmp_path / "run", "step")
    assert events[0]["ratio/mean"] == pytest.approx(1.0, abs=0.02)
    assert 0 < events[0]["grad_norm"] < 100


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(make_trainer, tmp_path, reentrant):
    options = {"max_steps": 2, "learning_rate": 1e-2}
    plain = make_trainer(output_dir=str(tmp_path / "plain"), **options)
    plain.train()
    saving = make_trainer(
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": reentrant},
        **options,
    )
    saving.train()
    torch.testing.assert_close(weights(saving), weights(plain), rtol=1e-4, atol=1e-6)


def test_low_precision_model(make_trainer, make_model):
    trainer = make_trainer(model=make_model().to(torch.bfloat16), max_steps=2, learning_rate=1e-2)
    before = weights(trainer)
    trainer.train()
    assert trainer.model.dtype == torch.bfloat16
    assert torch.isfinite(weights(trainer)).all()
    assert not torch.equal(weights(trainer), before)


@pytest.mark.parametrize("loss_type", ["cispo", "dapo"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_other_losses(make_trainer, read_events, tmp_path, loss_type, level):
    trainer = make_trainer(
        loss_type=loss_type,
        importance_sampling_level=level,
        num_iterations=2,
        scale_rewards="batch",
        max_steps=4,
        learning_rate=1e-2,
    )
    trainer.train()
    events = read_events(tmp_path / "run", "step")
    assert events[1]["ratio/max"] > 1.0
    assert all(event["grad_norm"] > 0 for event in events)


@pytest.mark.parametrize(("loss_type", "level"), [("sapo", "token"), ("luspo", "sequence")])
def test_losses_with_options_of_their_own(make_trainer, read_events, tmp_path, loss_type, level):
    def losses(name, **options):
        trainer = make_trainer(
            output_dir=str(tmp_path / name),
            loss_type=loss_type,
            importance_sampling_level=level,
            num_iterations=2,
            max_steps=2,
            learning_rate=1e-2,
            **options,
        )
        trainer.train()
        return [event["loss"] for event in read_events(tmp_path / name, "step")]

    plain = losses("plain")
    # A sharper gate changes SAPO's loss and no other.
    sharp = losses("sharp", sapo_temperature_pos=3.0)
    assert (plain != sharp) == (loss_type == "sapo")


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"loss_type": "vespo", "vespo_lambda_pos": 1.0, "vespo_lambda_neg": 1.0},
        {"beta": 0.1, "use_bias_correction_kl": False},
        {"off_policy_mask_threshold": 0.001},
        {"top_entropy_quantile": 0.3},
    ],
    ids=lambda options: list(options)[-1],
)
def test_corrections(make_trainer, read_events, tmp_path, options, fused):
    """Each option changes the loss once the policy has moved, the same with either head."""
    plain = {"loss_type": options.get("loss_type", "dapo"), "beta": options.get("beta", 0.0)}

    def losses(name, **kwargs):
        trainer = make_trainer(
            output_dir=str(tmp_path / name),
            num_iterations=2,
            max_steps=2,
            learning_rate=3e-2,
            **kwargs,
        )
        trainer.train()
        return [event["loss"] for event in read_events(tmp_path / name, "step")]

    with_option = losses("with", fused_lm_head=fused, **options)
    assert with_option != losses("without", fused_lm_head=fused, **plain)
    other_head = losses("other", fused_lm_head=not fused, **options)
    assert with_option == pytest.approx(other_head, rel=1e-4, abs=1e-6)


def test_epochs(make_trainer):
    """24 prompts, 2 of them a step: one epoch is 12 steps."""
    trainer = make_trainer(max_steps=-1, num_train_epochs=0.5, curriculum=None)
    trainer.train()
    assert trainer.state.global_step == 6
    assert trainer.state.epoch == 0.5
    assert trainer.curriculum.metrics()["epochs"] == 0.5


def test_given_curriculum_and_name(make_trainer):
    rows = [{"prompt": "abc", "level": i % 2} for i in range(8)]
    curriculum = Curriculum([i % 2 for i in range(8)], Random(), seed=11)
    trainer = make_trainer(train_dataset=rows, category="level", curriculum=curriculum)
    trainer.train()
    assert trainer.curriculum is curriculum
    assert curriculum.step == 2
    named = make_trainer(curriculum={"name": "sec", "temperature": 0.2}, category=None)
    assert named.curriculum.strategy.parameters()["temperature"] == 0.2
    assert named.curriculum.arms == ("all",)
    ordered = make_trainer(curriculum="ordered", max_steps=5, num_iterations=2)
    assert ordered.curriculum.strategy.parameters()["steps"] == 3


def test_model_by_path(make_trainer, make_model, tokenizer, tmp_path):
    make_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    trainer = make_trainer(
        model=str(tmp_path / "model"),
        processing_class=None,
        model_init_kwargs={"attn_implementation": "eager"},
    )
    assert trainer.model.config._attn_implementation == "eager"
    trainer.train()
    assert trainer.state.global_step == 2
    trainer.save_model()
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({}, torch.float32),
        ({"model_init_kwargs": {"dtype": "bfloat16"}}, torch.bfloat16),
        ({"model_init_kwargs": {"torch_dtype": torch.bfloat16}}, torch.bfloat16),
    ],
)
def test_a_named_model_is_float32_unless_asked(
    make_trainer, make_model, tokenizer, tmp_path, monkeypatch, options, dtype
):
    """As in TRL; its checkpoint's bfloat16 would lose the steps, which is warned of."""
    warnings = []
    monkeypatch.setattr(setup.logger, "warning", lambda text, *args: warnings.append(text % args))
    make_model().to(torch.bfloat16).save_pretrained(tmp_path / "model")
    make = partial(make_trainer, model=str(tmp_path / "model"), curriculum=None, **options)
    assert make(learning_rate=1e-6).model.dtype == dtype
    told = [text for text in warnings if "rounds a change" in text and "=1e-06" in text]
    assert len(told) == (dtype == torch.bfloat16)
    warnings.clear()
    make(learning_rate=1e-3)
    assert not warnings


def test_an_adapter_begins_with_the_seed(make_trainer):
    def first_weights(seed):
        torch.seed()
        config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
        return weights(make_trainer(peft_config=config, seed=seed))

    assert torch.equal(first_weights(1), first_weights(1))
    assert not torch.equal(first_weights(1), first_weights(2))


def test_rows_without_categories_train_without_a_curriculum(make_trainer):
    rows = [{"prompt": "abc"}, {"prompt": "de"}, {"prompt": "f"}]
    trainer = make_trainer(train_dataset=rows, eval_dataset=rows[:1], curriculum=None, max_steps=1)
    trainer.train()
    assert list(trainer.curriculum.arms) == ["all"]
    assert {"eval_reward", "eval_reward/all"} <= trainer.evaluate().keys()
    with pytest.raises(ValueError, match="no column 'difficulty' for category='difficulty'"):
        make_trainer(train_dataset=rows, curriculum="sec")
    with pytest.raises(ValueError, match="no column 'level' for category='level'"):
        make_trainer(train_dataset=rows, curriculum=None, category="level")


def test_torch_compile_runs_the_update(make_trainer, read_events, tmp_path):
    """And not the sampling: the same losses, by a few graphs of the decoder."""
    graphs = torch._dynamo.utils.counters["stats"]
    losses, compiled, while_sampling = {}, {}, []
    for name, options in (("plain", {}), ("compiled", {"torch_compile_backend": "eager"})):
        torch._dynamo.reset()
        folder = tmp_path / name
        trainer = make_trainer(output_dir=str(folder), max_steps=4, beta=0.1, **options)
        sample = trainer._collector.collect

        def collect(*args, sample=sample):
            before = graphs["unique_graphs"]
            result = sample(*args)
            while_sampling.append(graphs["unique_graphs"] - before)
            return result

        trainer._collector.collect = collect
        before = graphs["unique_graphs"]
        trainer.train()
        compiled[name] = graphs["unique_graphs"] - before
        losses[name] = [
            number
            for event in read_events(folder, "step")
            for number in (event["loss"], event["grad_norm"])
        ]
    assert compiled["plain"] == 0
    assert 1 <= compiled["compiled"] < 8
    assert while_sampling == [0] * 8
    assert losses["compiled"] == pytest.approx(losses["plain"], rel=1e-4, abs=1e-6)


def test_torch_compile_needs_the_fused_head(make_trainer):
    with pytest.raises(ValueError, match="leave fused_lm_head on"):
        make_trainer(torch_compile=True, fused_lm_head=False)
