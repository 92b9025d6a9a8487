"""PPO's critic: advantages from values, the clipped value loss, and the step they make."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback

from sec_grpo.trainer.critic import (
    ValueHead,
    add_value_head,
    generalized_advantages,
    value_head,
    value_loss,
    whitened,
)

EPS = 1e-4


def gae_by_sums(values, reward, gamma, lam):
    """A_t = sum_k (gamma lam)^k delta_{t+k}, term by term."""
    length = len(values)
    rewards = [0.0] * (length - 1) + [reward]
    following = [*values[1:], 0.0]
    delta = [rewards[t] + gamma * following[t] - values[t] for t in range(length)]
    return [
        sum((gamma * lam) ** (u - t) * delta[u] for u in range(t, length)) for t in range(length)
    ]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.8), (1.0, 0.0), (0.5, 1.0)])
def test_generalized_advantages(gamma, lam):
    values = torch.tensor([0.3, -0.2, 0.7, 0.1, 0.4])
    advantages, returns = generalized_advantages(values, 1.5, gamma=gamma, lam=lam)
    expected = gae_by_sums(values.double().tolist(), 1.5, gamma, lam)
    assert advantages.tolist() == pytest.approx(expected, rel=1e-6)
    assert returns.tolist() == pytest.approx((np.array(expected) + values.numpy()).tolist())
    if gamma == lam == 1:  # Monte Carlo: the reward less the value
        assert advantages.tolist() == pytest.approx((1.5 - values).tolist())
    one, _ = generalized_advantages(values[:1], 1.5, gamma=gamma, lam=lam)
    assert one.tolist() == pytest.approx([1.2])


class OneProcess:
    size = 1

    def gather(self, tensor):
        return tensor


class TwoProcesses:
    """The other process has the numbers that `other` is asked for in turn."""

    size = 2

    def __init__(self, other):
        self._other = iter(other)

    def gather(self, tensor):
        return torch.cat([tensor, torch.tensor(next(self._other), dtype=tensor.dtype)])


def test_whitened_over_all_tokens():
    parts = [torch.tensor([1.0, 2.0]), torch.tensor([-3.0, 0.5, 4.0])]
    everything = np.concatenate([p.numpy().astype(np.float64) for p in parts])
    expected = (everything - everything.mean()) / (everything.std(ddof=1) + EPS)
    got = whitened(parts, OneProcess())
    assert [len(p) for p in got] == [2, 3]
    assert torch.cat(got).tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    # The second part belongs to another process.
    other = everything[2:]
    squares = float(((other - everything.mean()) ** 2).sum())
    processes = TwoProcesses([[3.0, float(other.sum())], [squares]])
    assert whitened(parts[:1], processes)[0].tolist() == pytest.approx(expected[:2].tolist())


@pytest.mark.parametrize("clip", [0.2, None])
def test_value_loss_against_a_loop(clip):
    values = torch.tensor([0.5, 0.1, 2.0, -1.0], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([0.4, 0.6, 1.0, -1.1], dtype=torch.float64)
    returns = torch.tensor([1.0, 0.0, 0.9, -0.5], dtype=torch.float64)
    total, clipped = 0.0, 0
    for v, o, r in zip(values.tolist(), old.tolist(), returns.tolist(), strict=True):
        terms = [(v - r) ** 2]
        if clip is not None:
            terms.append((o + min(max(v - o, -clip), clip) - r) ** 2)
            clipped += terms[1] > terms[0]
        total += 0.5 * max(terms)
    out = value_loss(values, old, returns, clip_range=clip, num_items_in_batch=7)
    assert float(out.loss) == pytest.approx(total / 7)
    assert float(out.metrics["value_loss"]) == pytest.approx(total / 4)
    assert float(out.metrics["value_clip_ratio"]) == clipped / 4
    assert clipped == (1 if clip else 0)
    out.loss.backward()
    # Where the clipped term is the larger one there is no gradient.
    assert (values.grad == 0).sum() == clipped


def test_value_head_is_float32_under_autocast():
    head = ValueHead(8)
    torch.nn.init.normal_(head.linear.weight)
    hidden = torch.randn(5, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = head(hidden.bfloat16())
    expected = hidden.bfloat16().float() @ head.linear.weight[0] + head.linear.bias
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, expected)


class Recorder(TrainerCallback):
    """Scores, and keeps generations, models, and gradients by name."""

    __name__ = "recorder"

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.generations, self.models, self.gradients = [], [], []

    def __call__(self, prompts, completions, completion_ids, **columns):
        scores = [sum(c <= "f" for c in text) / (1 + len(text)) for text in completions]
        if completion_ids[0]:
            ids = [self.tokenizer(p)["input_ids"] for p in prompts]
            self.generations.append((ids, completion_ids, scores))
        return scores

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.models.append(copy.deepcopy(model).eval())

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})


def states_and_logprobs(model, prompt, completion):
    ids = torch.tensor([prompt + completion])
    hidden = model.model(input_ids=ids).last_hidden_state[0, len(prompt) - 1 : -1]
    logprobs = (hidden @ model.lm_head.weight.T).log_softmax(-1)
    return value_head(model)(hidden), logprobs[range(len(completion)), completion]


def expected_gradient(model, old_model, generation, args):
    prompts, completions, rewards = generation
    model = copy.deepcopy(model)
    with torch.no_grad():
        pairs = zip(prompts, completions, strict=True)
        old = [states_and_logprobs(old_model, prompt, ids) for prompt, ids in pairs]
    raw = [
        gae_by_sums(values.double().tolist(), r, args.gamma, args.lam)
        for (values, _), r in zip(old, rewards, strict=True)
    ]
    flat = np.concatenate(raw)
    mean, std = flat.mean(), flat.std(ddof=1)
    tokens = len(flat)
    loss = torch.zeros(())
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        values, logprobs = states_and_logprobs(model, prompt, completion)
        old_values, old_logprobs = old[i]
        for t in range(len(completion)):
            advantage = (raw[i][t] - mean) / (std + EPS)
            ratio = torch.exp(logprobs[t] - old_logprobs[t])
            bounded = ratio.clamp(1 - args.epsilon, 1 + args.epsilon)
            loss = loss - torch.minimum(ratio * advantage, bounded * advantage) / tokens
            target = raw[i][t] + float(old_values[t])
            moved = (values[t] - old_values[t]).clamp(-args.cliprange_value, args.cliprange_value)
            squared = torch.maximum(
                (values[t] - target) ** 2, (old_values[t] + moved - target) ** 2
            )
            loss = loss + args.vf_coef * 0.5 * squared / tokens
    loss.backward()
    return {n: p.grad for n, p in model.named_parameters()}


OPTIONS = {
    "advantage_estimator": "ppo",
    "num_generations": 2,
    "gamma": 0.98,
    "lam": 0.9,
    "vf_coef": 0.3,
    "cliprange_value": 0.05,
    "learning_rate": 3e-2,
    "value_learning_rate": 0.1,
}


def test_the_step_is_ppos(make_trainer, tokenizer, read_events):
    """Every gradient of four updates of two generations, packed or not, against plain loops."""
    recorder = Recorder(tokenizer)
    trainer = make_trainer(
        reward_funcs=recorder,
        callbacks=[recorder],
        max_steps=4,
        num_iterations=2,
        max_grad_norm=0.0,
        gradient_accumulation_steps=2,
        max_tokens_per_micro_batch=40,
        **OPTIONS,
    )
    head = value_head(trainer.model)
    assert float(head.linear.weight.abs().sum()) == 0.0
    torch.nn.init.normal_(head.linear.weight, std=0.5)
    trainer.train()
    for step, gradients in enumerate(recorder.gradients):
        expected = expected_gradient(
            recorder.models[step],
            recorder.models[step // 2 * 2],
            recorder.generations[step // 2],
            trainer.args,
        )
        assert gradients.keys() == expected.keys()
        largest = max(float(g.abs().max()) for g in expected.values())
        for name, gradient in gradients.items():
            torch.testing.assert_close(
                gradient, expected[name], rtol=2e-4, atol=2e-5 * largest, msg=name
            )
    events = read_events(trainer.args.output_dir, "step")
    assert max(event["value_clip_ratio"] for event in events) > 0.05
    assert events[0]["value_clip_ratio"] == 0.0
    assert all(event["value_loss"] > 0 for event in events)


def test_curriculum_learns_from_token_advantages(make_trainer):
    observed = []
    trainer = make_trainer(max_steps=1, **OPTIONS)
    observe = trainer.curriculum.observe

    def noting(indices, *, advantages, rewards):
        observed.append(advantages.copy())
        observe(indices, advantages=advantages, rewards=rewards)

    trainer.curriculum.observe = noting
    trainer.train()
    tokens = trainer._rollouts.token_advantages
    expected = [float(a.abs().mean()) for a in tokens]
    assert observed[0].flatten().tolist() == pytest.approx(expected, rel=1e-5)
    flat = torch.cat(tokens)
    assert float(flat.mean()) == pytest.approx(0, abs=1e-5)
    assert float(flat.std()) == pytest.approx(1, abs=1e-3)
    assert trainer._rollouts.advantages.tolist() == pytest.approx(
        [float(a.mean()) for a in tokens], rel=1e-5
    )


def test_values_learn_the_reward(make_trainer, read_events):
    trainer = make_trainer(
        reward_funcs=lambda completions, **_: [0.7] * len(completions),
        max_steps=30,
        **{**OPTIONS, "learning_rate": 1e-4, "cliprange_value": None, "vf_coef": 1.0},
    )
    trainer.train()
    events = read_events(trainer.args.output_dir, "step")
    assert events[0]["value_loss"] > 0.15
    assert events[-1]["value_loss"] < 0.2 * events[0]["value_loss"]


def test_resume_and_export(make_trainer, make_model, tmp_path):
    options = {**OPTIONS, "max_steps": 4, "num_iterations": 2, "save_strategy": "steps"}
    straight = make_trainer(output_dir=str(tmp_path / "straight"), save_steps=3, **options)
    straight.train()
    resumed = make_trainer(output_dir=str(tmp_path / "resumed"), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-3"))
    for (name, a), b in zip(
        straight.model.named_parameters(), resumed.model.parameters(), strict=True
    ):
        assert torch.equal(a, b), name
    assert float(value_head(resumed.model).linear.weight.abs().sum()) > 0
    for folder in ("straight/checkpoint-3", "exported"):
        if folder == "exported":
            straight.save_model(str(tmp_path / folder))
        saved = load_file(tmp_path / folder / "model.safetensors")
        assert not any("value_head" in name for name in saved)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    assert torch.equal(again.model.norm.weight, straight.model.model.norm.weight)


def test_value_head_has_its_own_learning_rate(make_trainer):
    trainer = make_trainer(**OPTIONS, weight_decay=0.1)
    optimizer = trainer.create_optimizer()
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in trainer.model.named_parameters():
        assert rates[id(parameter)] == (0.1 if "value_head" in name else 3e-2), name
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(rates)
    plain = make_trainer(**{**OPTIONS, "value_learning_rate": None}).create_optimizer()
    assert {g["lr"] for g in plain.param_groups} == {3e-2}


def test_lora_with_a_critic(make_trainer, tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    trainer = make_trainer(peft_config=config, max_steps=2, **OPTIONS)
    trainer.train()
    assert float(value_head(trainer.model).linear.weight.abs().sum()) > 0
    trainer.save_model(str(tmp_path / "adapter"))
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert saved
    assert all("lora_" in name for name in saved)


def test_head_is_part_of_the_model(make_model):
    model = make_model()
    add_value_head(model, 16)
    assert "value_head.linear.weight" in dict(model.named_parameters())
    assert value_head(make_model()) is None
