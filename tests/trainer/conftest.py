"""Tiny models, prompts and rewards; a run is a second or two."""

from __future__ import annotations

import copy
import json
import string
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sec_grpo import SEC, GRPOConfig, GRPOTrainer
from sec_grpo.tiny import character_tokenizer, tiny_qwen2

torch.set_num_threads(1)

LETTERS = string.ascii_lowercase[:12]


def letter_reward(completions, **columns):
    """Graded, so that most groups differ: the share of letters up to "f"."""
    return [sum(c <= "f" for c in text) / (1 + len(text)) for text in completions]


def prompt_rows(count: int = 24) -> list[dict[str, Any]]:
    """Prompts of unequal length in three categories."""
    return [
        {"prompt": LETTERS[: 2 + i % 5] + LETTERS[i % 12], "difficulty": i % 3, "answer": i}
        for i in range(count)
    ]


@pytest.fixture(scope="session")
def tokenizer():
    return character_tokenizer(LETTERS + ">")


@pytest.fixture
def make_model(tokenizer):
    def make(seed: int = 0, **changes):
        sizes = {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": 64,
        }
        model = tiny_qwen2(tokenizer, **{**sizes, **changes}, seed=seed)
        with torch.no_grad():  # peaked enough that ratios, entropies and lengths differ
            model.get_input_embeddings().weight.mul_(4)
        return model

    return make


@pytest.fixture
def make_trainer(tmp_path, tokenizer, make_model):
    """A trainer over `prompt_rows`; keywords of GRPOConfig and of GRPOTrainer alike."""
    own = (
        "model",
        "reward_funcs",
        "train_dataset",
        "eval_dataset",
        "processing_class",
        "curriculum",
        "category",
        "eval_reward_funcs",
        "peft_config",
        "callbacks",
    )

    def make(**options) -> GRPOTrainer:
        given = {name: options.pop(name) for name in own if name in options}
        config = {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 2,
            "per_device_train_batch_size": 8,
            "num_generations": 4,
            "max_completion_length": 6,
            "learning_rate": 1e-3,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "seed": 3,
        }
        trainer = {
            "reward_funcs": letter_reward,
            "train_dataset": prompt_rows(),
            "processing_class": tokenizer,
            "curriculum": SEC(temperature=0.5),
        }
        trainer.update(given)
        if "model" not in trainer:
            trainer["model"] = make_model()
        return GRPOTrainer(args=GRPOConfig(**{**config, **options}), **trainer)

    return make


@pytest.fixture
def read_events():
    def read(folder: str | Path, event: str) -> list[dict[str, Any]]:
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
        return [record for record in map(json.loads, lines) if record["event"] == event]

    return read


def sequence_logprobs(model, prompt, completion, temperature):
    logits = model(torch.tensor([prompt + completion])).logits[0].float()
    predictions = logits[len(prompt) - 1 : -1] / temperature
    logprobs = torch.log_softmax(predictions, -1)
    return torch.stack([logprobs[t, token] for t, token in enumerate(completion)])


def advantages_of(scores, num_generations):
    out = []
    for start in range(0, len(scores), num_generations):
        group = torch.tensor(scores[start : start + num_generations])
        spread = group.max() - group.min()
        normalised = (group - group.mean()) / (group.std() + 1e-4)
        out += (normalised if spread > 0 else torch.zeros(num_generations)).tolist()
    return out


def expected_gradient(model, old_model, ref_model, generation, micro_batches, args, eos):
    """The gradient of one optimizer step whose micro-batches hold these rows of a generation."""
    prompts, completions, scores = generation
    advantages = advantages_of(scores, args.num_generations)
    model = copy.deepcopy(model)
    rows = [i for micro in micro_batches for i in micro]
    left_out = {i for i in rows if args.mask_truncated_completions and completions[i][-1] != eos}
    step_tokens = sum(len(completions[i]) for i in rows if i not in left_out)
    loss = torch.zeros(())
    for micro in micro_batches:
        micro_tokens = sum(len(completions[i]) for i in micro if i not in left_out)
        for i in micro:
            if i in left_out:
                continue
            pair = (prompts[i], completions[i], args.temperature)
            logprobs = sequence_logprobs(model, *pair)
            with torch.no_grad():
                old = sequence_logprobs(old_model, *pair)
                ref = sequence_logprobs(ref_model, *pair)
            ratio = torch.exp(logprobs - old)
            clipped = ratio.clamp(1 - args.epsilon, 1 + (args.epsilon_high or args.epsilon))
            tokens = -torch.minimum(ratio * advantages[i], clipped * advantages[i])
            kl = torch.exp(ref - logprobs) - (ref - logprobs) - 1
            tokens = tokens + args.beta * (kl * ratio if args.use_bias_correction_kl else kl)
            denominator = {
                "dapo": step_tokens,
                "grpo": len(completions[i]) * len(rows),
                "dr_grpo": args.max_completion_length * len(rows),
                "bnpo": micro_tokens * len(micro_batches),
            }[args.loss_type]
            loss = loss + tokens.sum() / denominator
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.fixture(scope="session")
def oracle():
    """GRPO written out: log-probabilities, advantages and the gradient of one optimizer step."""
    return SimpleNamespace(
        logprobs=sequence_logprobs, advantages=advantages_of, gradient=expected_gradient
    )
