"""The entropy bonus, the moving reference, and dropout."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import TrainerCallback

from sec_grpo import GRPOConfig
from sec_grpo.trainer.entropy import EntropyBonus
from sec_grpo.trainer.setup import disable_dropout, has_dropout

LOSS_TYPES = ("dapo", "grpo", "dr_grpo", "bnpo", "luspo", "cispo")


class Recorder(TrainerCallback):
    """Keeps generations, models and gradients."""

    __name__ = "recorder"

    def __init__(self, tokenizer, rewards):
        self.tokenizer, self.rewards = tokenizer, rewards
        self.generations, self.models, self.gradients = [], [], []

    def __call__(self, prompts, completions, completion_ids, **columns):
        if completion_ids[0]:
            ids = [self.tokenizer(p)["input_ids"] for p in prompts]
            self.generations.append((ids, completion_ids))
        return self.rewards(completions)

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.models.append(copy.deepcopy(model).eval())

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))


def equal(completions):
    return [1.0] * len(completions)


def entropy_gradient(model, generation, micro_batches, args):
    """Of the bonus alone, as documented: a mean over tokens, or of completions' means."""
    model = copy.deepcopy(model)
    entropies = []
    for prompt, completion in zip(*generation, strict=True):
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        logprobs = (logits / args.temperature).log_softmax(-1)
        entropies.append(-(logprobs.exp() * logprobs).sum(-1))
    if args.loss_type in ("grpo", "sapo"):
        mean = torch.stack([e.mean() for e in entropies]).mean()
    elif args.loss_type == "bnpo":
        parts = [torch.cat([entropies[i] for i in rows]).mean() for rows in micro_batches]
        mean = torch.stack(parts).mean()
    else:
        mean = torch.cat(entropies).mean()
    (-args.entropy_coef * mean).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("fused", [True, False])
def test_entropy_bonus(make_trainer, tokenizer, loss_type, fused):
    """Every group is dead, so that the bonus is the whole gradient: dead rows are run for it."""
    recorder = Recorder(tokenizer, equal)
    trainer = make_trainer(
        reward_funcs=recorder,
        callbacks=[recorder],
        max_steps=2,
        gradient_accumulation_steps=2,
        max_grad_norm=0.0,
        temperature=0.8,
        loss_type=loss_type,
        importance_sampling_level="sequence" if loss_type == "luspo" else "token",
        entropy_coef=0.3,
        fused_lm_head=fused,
        learning_rate=1e-2,
    )
    trainer.train()
    for model, generation, gradient in zip(
        recorder.models, recorder.generations, recorder.gradients, strict=True
    ):
        expected = entropy_gradient(model, generation, [range(8), range(8, 16)], trainer.args)
        assert expected.norm() > 1e-4
        assert (gradient - expected).norm() < 2e-5 * expected.norm()


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("fused", [True, False])
def test_the_loss_is_logged_without_the_bonus_too(
    make_trainer, read_events, tmp_path, loss_type, fused
):
    """Of the first step, which samples the same with and without it."""
    first = {}
    for coefficient in (0.0, 0.3):
        folder = tmp_path / str(coefficient)
        make_trainer(
            output_dir=str(folder),
            max_steps=1,
            gradient_accumulation_steps=2,
            beta=0.1,  # without a KL term the policy loss would be near 0 on-policy
            loss_type=loss_type,
            importance_sampling_level="sequence" if loss_type == "luspo" else "token",
            entropy_coef=coefficient,
            fused_lm_head=fused,
        ).train()
        (first[coefficient],) = read_events(folder, "step")
    without, given = first[0.0], first[0.3]
    assert given["policy_loss"] == pytest.approx(without["loss"], abs=1e-6)
    assert given["policy_loss"] - given["loss"] > 0.1
    assert "policy_loss" not in without


def test_entropy_bonus_raises_entropy(make_trainer, read_events, tmp_path):
    last = {}
    for coefficient in (0.0, 1.0):
        folder = tmp_path / str(coefficient)
        make_trainer(
            output_dir=str(folder), max_steps=15, learning_rate=1e-2, entropy_coef=coefficient
        ).train()
        events = read_events(folder, "step")
        last[coefficient] = events[-1]["entropy"]
        assert ("entropy_coef" in events[0]) == (coefficient > 0)
    assert last[1.0] > last[0.0] + 0.2


def test_fused_and_whole_bonus_of_the_most_varied_tokens(make_trainer, read_events, tmp_path):
    losses = {}
    for fused in (True, False):
        make_trainer(
            output_dir=str(tmp_path / str(fused)),
            top_entropy_quantile=0.25,
            entropy_coef=0.5,
            fused_lm_head=fused,
            learning_rate=1e-2,
        ).train()
        losses[fused] = [e["loss"] for e in read_events(tmp_path / str(fused), "step")]
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)


def test_adaptive_coefficient():
    """Skywork-OR1's rule, step by step."""
    config = GRPOConfig(
        output_dir="unused",
        use_cpu=True,
        use_adaptive_entropy=True,
        entropy_coef=0.1,
        entropy_coef_min=0.05,
        entropy_coef_max=0.3,
        entropy_coef_delta=0.1,
        entropy_target=1.0,
    )
    bonus = EntropyBonus(config)
    assert (bonus.coefficient, bonus.applied) == (0.1, 0.0)
    seen = []
    for entropy in (0.9, 1.0, 0.5, 1.1, 2.0, 2.0, 2.0):
        bonus.observe(entropy)
        seen.append((round(bonus.coefficient, 6), round(bonus.applied, 6)))
    assert seen == [(0.2, 0.2), (0.3, 0.3), (0.3, 0.3), (0.2, 0), (0.1, 0), (0.05, 0), (0.05, 0)]
    other = EntropyBonus(config)
    bonus.observe(0.5)
    other.load_state_dict(bonus.state_dict())
    assert (other.coefficient, other.applied) == (bonus.coefficient, bonus.applied)


def test_adaptive_bonus_follows_the_steps_entropy(make_trainer, read_events, tmp_path):
    options = {
        "use_adaptive_entropy": True,
        "entropy_coef_delta": 0.1,
        "entropy_target": 1.8,
        "max_steps": 6,
        "num_iterations": 2,
        "learning_rate": 2e-2,
        "max_tokens_per_micro_batch": 30,
        "save_strategy": "steps",
        "save_steps": 3,
    }
    make_trainer(output_dir=str(tmp_path / "a"), **options).train()
    events = read_events(tmp_path / "a", "step")
    # Logged before the step's own entropy is taken in.
    coefficient = 0.0
    for event in events:
        assert event["entropy_coef"] == pytest.approx(coefficient, abs=1e-6)
        step = 0.1 if event["entropy"] <= 1.8 else -0.1
        coefficient = min(max(coefficient + step, 0.0), 1.0)
    assert len({round(event["entropy_coef"], 3) for event in events}) > 1
    resumed = make_trainer(output_dir=str(tmp_path / "b"), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    again = read_events(tmp_path / "b", "step")
    assert [e["loss"] for e in again] == [e["loss"] for e in events[3:]]
    assert [e["entropy_coef"] for e in again] == [e["entropy_coef"] for e in events[3:]]


def test_moving_reference(make_trainer, tmp_path, read_events):
    policies = []

    class Snapshot(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            policies.append([p.detach().clone() for p in model.parameters()])

    options = {
        "beta": 0.1,
        "sync_ref_model": True,
        "ref_model_mixup_alpha": 0.25,
        "ref_model_sync_steps": 2,
        "max_steps": 5,
        "learning_rate": 1e-2,
        "save_strategy": "steps",
        "save_steps": 3,
    }
    trainer = make_trainer(output_dir=str(tmp_path / "a"), callbacks=[Snapshot()], **options)
    expected = [p.detach().clone() for p in trainer._reference.parameters()]
    trainer.train()
    for number in (1, 3):  # after steps 2 and 4
        pairs = zip(expected, policies[number], strict=True)
        expected = [0.75 * ref + 0.25 * policy for ref, policy in pairs]
    for got, want in zip(trainer._reference.parameters(), expected, strict=True):
        torch.testing.assert_close(got, want)
    resumed = make_trainer(output_dir=str(tmp_path / "b"), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    for a, b in zip(resumed._reference.parameters(), trainer._reference.parameters(), strict=True):
        assert torch.equal(a, b)
    kl = [event["kl"] for event in read_events(tmp_path / "b", "step")]
    assert kl == [event["kl"] for event in read_events(tmp_path / "a", "step")][3:]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"sync_ref_model": True}, "sync_ref_model must be False with beta=0"),
        ({"ref_model_mixup_alpha": 1.5}, r"ref_model_mixup_alpha must be in \[0, 1\]"),
        ({"ref_model_sync_steps": 0}, "ref_model_sync_steps must be at least 1"),
        ({"entropy_coef": -0.1}, "entropy_coef must be 0 or above"),
        ({"entropy_coef_min": 2.0}, "entropy_coef_min must be at most entropy_coef_max"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_refused_settings(tmp_path, options, match):
    with pytest.raises(ValueError, match=match):
        GRPOConfig(output_dir=str(tmp_path), use_cpu=True, **options)


def test_sync_of_a_peft_reference_is_refused(make_trainer):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match="sync_ref_model must be False with peft_config"):
        make_trainer(peft_config=config, beta=0.1, sync_ref_model=True)


def test_disable_dropout(make_trainer, make_model):
    model = make_model()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.3
        layer.mlp.down_proj = torch.nn.Sequential(layer.mlp.down_proj, torch.nn.Dropout(0.2))
    assert has_dropout(model)
    model.train()
    ids = torch.tensor([[3, 4, 5, 6]])
    assert not torch.equal(model(ids).logits, model(ids).logits)
    disable_dropout(model)
    assert not has_dropout(model)
    assert torch.equal(model(ids).logits, model(ids).logits)
    assert not has_dropout(make_model())
    dropping = make_model()
    dropping.model.layers[0].self_attn.attention_dropout = 0.3
    trainer = make_trainer(model=dropping, disable_dropout=True)
    assert not has_dropout(trainer.model)
