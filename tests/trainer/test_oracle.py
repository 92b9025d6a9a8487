"""Gradients of optimizer steps against GRPO written out in plain torch, sequence by sequence."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import pytest
import torch
from transformers import TrainerCallback

from sec_grpo.ops import group_advantages

MAX_LENGTH = 6
G = 4


@dataclass
class Recorder(TrainerCallback):
    """Scores completions and keeps them, and the model and gradients of every optimizer step."""

    tokenizer: object
    rewards: object
    generations: list = field(default_factory=list)
    models: list = field(default_factory=list)
    gradients: list = field(default_factory=list)

    __name__ = "recorder"

    def __call__(self, prompts, completions, completion_ids, **columns):
        scores = self.rewards(completions)
        if completion_ids[0]:  # not the check before training
            ids = [self.tokenizer(p)["input_ids"] for p in prompts]
            self.generations.append((ids, completion_ids, scores))
        return scores

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.models.append(copy.deepcopy(model).eval())

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))


def graded(completions):
    return [sum(c <= "f" for c in text) / (1 + len(text)) for text in completions]


def relative_error(got, expected):
    assert expected.norm() > 1e-4, "the case has no gradient to compare"
    return float((got - expected).norm() / expected.norm())


@pytest.fixture
def run_against_oracle(make_trainer, make_model, tokenizer, oracle):
    """Train and compare every step's gradient; the trainer and its recorder."""

    def run(rewards=graded, **options):
        recorder = Recorder(tokenizer, rewards)
        initial = make_model()
        trainer = make_trainer(
            model=make_model(),
            reward_funcs=recorder,
            callbacks=[recorder],
            max_grad_norm=0.0,
            max_completion_length=MAX_LENGTH,
            num_generations=G,
            **options,
        )
        trainer.train()
        args = trainer.args
        steps = args.steps_per_generation // args.gradient_accumulation_steps
        size, count = args.per_device_train_batch_size, args.gradient_accumulation_steps
        assert len(recorder.gradients) == args.max_steps
        for step, gradient in enumerate(recorder.gradients):
            generation, position = divmod(step, steps * args.num_iterations)
            first = (position % steps) * count
            micro_batches = [
                list(range(i * size, (i + 1) * size)) for i in range(first, first + count)
            ]
            expected = oracle.gradient(
                recorder.models[step],
                recorder.models[generation * steps * args.num_iterations],
                initial,
                recorder.generations[generation],
                micro_batches,
                args,
                tokenizer.eos_token_id,
            )
            assert relative_error(gradient, expected) < 2e-5
        return trainer, recorder

    return run


LOSS_TYPES = ("dapo", "grpo", "dr_grpo", "bnpo")


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.6},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
        {"fused_lm_head": False, "temperature": 1.5},
    ],
    ids=["plain", "temperature", "accumulation", "unfused"],
)
def test_on_policy_gradient(run_against_oracle, loss_type, options):
    run_against_oracle(loss_type=loss_type, max_steps=2, **options)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("fused_lm_head", [True, False])
def test_several_updates_of_a_generation(run_against_oracle, read_events, loss_type, fused_lm_head):
    trainer, _ = run_against_oracle(
        loss_type=loss_type,
        fused_lm_head=fused_lm_head,
        max_steps=8,
        num_iterations=2,
        steps_per_generation=4,
        gradient_accumulation_steps=2,
        learning_rate=2e-2,
        epsilon=0.1,
        epsilon_high=0.15,
        temperature=0.8,
    )
    clipped = [e["clip_ratio/region_mean"] for e in read_events(trainer.args.output_dir, "step")]
    assert clipped[0] == 0.0  # the first update is on-policy
    assert max(clipped[1:4]) > 0.05


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("corrected", [True, False])
def test_kl_term(run_against_oracle, read_events, oracle, loss_type, corrected):
    trainer, recorder = run_against_oracle(
        loss_type=loss_type,
        beta=0.5,
        use_bias_correction_kl=corrected,
        max_steps=3,
        learning_rate=2e-2,
        temperature=0.7,
    )
    kl = [event["kl"] for event in read_events(trainer.args.output_dir, "step")]
    assert kl[0] == pytest.approx(0.0, abs=1e-6)
    model, first = recorder.models[2], recorder.models[0]
    prompts, completions, _ = recorder.generations[2]
    terms = []
    with torch.no_grad():
        for pair in zip(prompts, completions, strict=True):
            delta = oracle.logprobs(first, *pair, 0.7) - oracle.logprobs(model, *pair, 0.7)
            terms.append(delta.exp() - delta - 1)
    assert kl[2] == pytest.approx(float(torch.cat(terms).mean()), rel=1e-3)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_truncated_completions_masked(run_against_oracle, tokenizer, loss_type, beta):
    _, recorder = run_against_oracle(
        loss_type=loss_type,
        beta=beta,
        mask_truncated_completions=True,
        per_device_train_batch_size=16,
        max_steps=2,
    )
    ended = [ids[-1] == tokenizer.eos_token_id for _, c, _ in recorder.generations for ids in c]
    assert 0 < sum(ended) < len(ended)


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo"])
def test_micro_batches_add_up(make_trainer, make_model, tokenizer, loss_type):
    gradients = []
    for size, count in [(16, 1), (4, 4), (2, 8)]:
        recorder = Recorder(tokenizer, graded)
        make_trainer(
            reward_funcs=recorder,
            callbacks=[recorder],
            loss_type=loss_type,
            max_grad_norm=0.0,
            max_steps=1,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=count,
        ).train()
        gradients.append(recorder.gradients[0])
    assert relative_error(gradients[1], gradients[0]) < 1e-5
    assert relative_error(gradients[2], gradients[0]) < 1e-5


def one_group_alive(completions):
    """Graded in the first group of each eight completions, equal in the others."""
    return [score if i < G else 0.5 for i, score in enumerate(graded(completions))]


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_dropping_dead_groups_changes_nothing(run_against_oracle, monkeypatch, loss_type):
    from sec_grpo.trainer.batch import Rollouts

    seen = []
    learnable = Rollouts.learnable

    def spy(self, rows, *, skip_zero_advantages):
        chosen = learnable(self, rows, skip_zero_advantages=skip_zero_advantages)
        seen.append(len(chosen))
        return chosen

    monkeypatch.setattr(Rollouts, "learnable", spy)
    options = {"loss_type": loss_type, "max_steps": 1, "per_device_train_batch_size": 16}
    _, dropped = run_against_oracle(one_group_alive, **options)
    assert seen == [G]

    def keep_all(self, rows, *, skip_zero_advantages):
        return learnable(self, rows, skip_zero_advantages=False)

    monkeypatch.setattr(Rollouts, "learnable", keep_all)
    _, kept = run_against_oracle(one_group_alive, **options)
    assert relative_error(dropped.gradients[0], kept.gradients[0]) < 1e-6


def test_dead_step_has_no_gradient_and_counts(make_trainer, tokenizer, read_events):
    recorder = Recorder(tokenizer, lambda completions: [1.0] * len(completions))
    trainer = make_trainer(
        reward_funcs=recorder,
        callbacks=[recorder],
        max_steps=2,
        weight_decay=0.0,
        gradient_accumulation_steps=2,
    )
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    assert [float(g.abs().max()) for g in recorder.gradients] == [0.0, 0.0]
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name])
    events = read_events(trainer.args.output_dir, "step")
    assert [e["step"] for e in events] == [1, 2]
    assert [e["frac_reward_zero_std"] for e in events] == [1.0, 1.0]
    assert trainer.curriculum.step == 2


@pytest.mark.parametrize(
    "options", [{}, {"beta": 0.1}, {"beta": 0.1, "steps_per_generation": 2, "num_iterations": 2}]
)
def test_all_completions_masked_is_a_zero_step(make_trainer, tokenizer, options):
    recorder = Recorder(tokenizer, graded)
    trainer = make_trainer(
        reward_funcs=recorder,
        callbacks=[recorder],
        max_steps=4,
        **options,
        max_completion_length=1,
        mask_truncated_completions=True,
        generation_kwargs={"suppress_tokens": [tokenizer.eos_token_id]},
    )
    trainer.train()
    assert len(recorder.gradients) == 4
    assert all(float(gradient.abs().max()) == 0.0 for gradient in recorder.gradients)


def test_hand_advantages_are_the_trainers(oracle):
    scores = [0.1, 0.4, 0.4, 0.9, 0.3, 0.3, 0.3, 0.3]
    ours = group_advantages(torch.tensor(scores), num_generations=G).advantages
    torch.testing.assert_close(ours, torch.tensor(oracle.advantages(scores, G)))
