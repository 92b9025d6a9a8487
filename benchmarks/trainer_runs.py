"""Our trainer and TRL's on the same model, prompts, completions and rewards, timed step by step.

An optimizer step's *update* is the step without what comes before its first forward: sampling,
scoring and advantages. Both trainers run it as users do, through `train()`; completions are given
instead of sampled: to TRL by its `rollout_func`, to ours in place of the sampler.

Axes: B rows a generation batch, which is one optimizer step, of G a prompt.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, Qwen2Config, Qwen2ForCausalLM, TrainerCallback

from sec_grpo import SEC, GRPOConfig, GRPOTrainer
from sec_grpo.tiny import character_tokenizer, tiny_qwen2

G = 8
LENGTHS = ("equal", "log-normal", "log-normal, 40% dead")
TRAINERS = ("sec-grpo", "trl")


@dataclass(frozen=True)
class Shape:
    """A model of Qwen2's architecture with random weights, and the batch it is trained on."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    prompt: int
    """tokens of every prompt"""
    completion: int
    """most tokens of a completion"""
    rows: int
    """B"""

    def model(self, device: str) -> Qwen2ForCausalLM:
        config = Qwen2Config(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            intermediate_size=self.intermediate,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
        )
        torch.manual_seed(0)
        with torch.device(device):
            model = Qwen2ForCausalLM(config)
        return model.to(torch.bfloat16 if device == "cuda" else torch.float32)


SHAPES = {
    shape.name: shape
    for shape in (
        # Vocabulary to hidden size as in Qwen2.5-0.5B.
        Shape("scaled", 64, 4, 4, 2, 352, 10848, prompt=16, completion=64, rows=40),
        Shape("qwen2.5-0.5b", 896, 24, 14, 2, 4864, 151936, prompt=256, completion=2048, rows=40),
        Shape("qwen2.5-1.5b", 1536, 28, 12, 2, 8960, 151936, prompt=256, completion=2048, rows=40),
    )
}


@dataclass(frozen=True)
class Batch:
    """What a step is given: B completions of one prompt, B / G groups."""

    prompt: str
    completion_ids: list[list[int]]
    rewards: list[float]

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.completion_ids))


def make_batch(shape: Shape, lengths: str, seed: int = 0) -> Batch:
    """Completions of one of LENGTHS; the median of the log-normal ones is a quarter of the most."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.full((shape.rows,), shape.completion)
    if lengths != "equal":
        drawn = torch.exp(torch.randn(shape.rows, generator=generator) * 0.8)
        sizes = (drawn * shape.completion / 4).long().clamp(1, shape.completion)
    groups = shape.rows // G
    num_dead = 2 * groups // 5 if "dead" in lengths else 0
    dead = torch.randperm(groups, generator=generator)[:num_dead].tolist()
    # Half of each group succeeds; token 1 ends a completion.
    rewards = [0.0 if row // G in dead else float(row % 2) for row in range(shape.rows)]
    completions = [
        torch.randint(3, shape.vocab, (int(size),), generator=generator).tolist() for size in sizes
    ]
    return Batch("x" * shape.prompt, [[*ids[:-1], 1] for ids in completions], rewards)


@dataclass
class Measured:
    """What some steps took."""

    update_seconds: list[float] = field(default_factory=list)
    """of each step but the first"""
    step_seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    """on a GPU: most that was allocated during these steps"""
    resident_bytes: int = 0
    """and what was when they began: weights, gradients, optimizer"""
    gradient: Tensor | None = None
    """of the first step, on the CPU"""
    log: list[dict[str, float]] = field(default_factory=list)


class Clock(TrainerCallback):
    """Time between the ends of steps, and of it that which `excluded` calls took."""

    def __init__(self, keep_gradient: bool) -> None:
        self.measured = Measured()
        self._keep_gradient = keep_gradient
        self._excluded = 0.0
        self._last: float | None = None

    def excluded(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = now()
            result = call(*args, **kwargs)
            self._excluded += now() - started
            return result

        return timed

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        if self._keep_gradient and self.measured.gradient is None:
            grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
            self.measured.gradient = torch.cat(grads).cpu()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        ended = now()
        if self._last is None:
            self.measured.resident_bytes = begin_peak()
        else:
            self.measured.step_seconds.append(ended - self._last)
            self.measured.update_seconds.append(ended - self._last - self._excluded)
        self._excluded = 0.0
        self._last = now()

    def on_train_end(self, args, state, control, **kwargs) -> None:
        # Linux counts a process's pages in batches: the peak may lag a little behind.
        self.measured.peak_bytes = max(read_peak(), self.measured.resident_bytes)
        self.measured.log = [entry for entry in state.log_history if "loss" in entry]


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def begin_peak() -> int:
    """Start to watch the memory, and return what is in use: of the GPU, else of the process."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return _process_bytes("VmRSS")


def read_peak() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return _process_bytes("VmHWM")


def _process_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def settings(rows: int, micro_batch: int, steps: int, completion: int) -> dict[str, Any]:
    """The arguments that both trainers get; everything else is as each of them has it."""
    return {
        "max_steps": steps,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": rows // micro_batch,
        "num_generations": G,
        "max_completion_length": completion,
        "learning_rate": 0.0,  # every step is the first one again
        "bf16": torch.cuda.is_available(),
        "gradient_checkpointing": torch.cuda.is_available(),
        "use_cpu": not torch.cuda.is_available(),
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


class GivenCompletions:
    """In place of our sampler."""

    def __init__(self, completion_ids: list[list[int]]) -> None:
        self._completion_ids = completion_ids

    def sample(self, model: Any, prompt_ids: list[list[int]], seed: int) -> list[list[int]]:
        assert len(prompt_ids) == len(self._completion_ids)
        return [list(ids) for ids in self._completion_ids]

    def is_finished(self, ids: list[int]) -> bool:
        return ids[-1] == 1


def measure_update(
    trainer_name: str,
    shape: Shape,
    batch: Batch,
    *,
    micro_batch: int,
    steps: int,
    keep_gradient: bool = False,
) -> Measured:
    """Steps of one of TRAINERS on a new model, the first of them to warm up."""
    tokenizer = character_tokenizer()
    clock = Clock(keep_gradient)
    with tempfile.TemporaryDirectory() as folder:
        config = {
            "output_dir": folder,
            **settings(shape.rows, micro_batch, steps, shape.completion),
        }
        given = {
            "model": shape.model("cuda" if torch.cuda.is_available() else "cpu"),
            "reward_funcs": lambda completions, **columns: batch.rewards,
            "train_dataset": _dataset([{"prompt": batch.prompt}] * (shape.rows // G)),
            "processing_class": tokenizer,
            "callbacks": [clock],
        }
        if trainer_name == "sec-grpo":
            trainer: Any = GRPOTrainer(
                args=GRPOConfig(**config, check_reward_funcs=False), category=None, **given
            )
            trainer._collector._sampler = GivenCompletions(batch.completion_ids)
            trainer._collect = clock.excluded(trainer._collect)
        else:
            prompt_ids = tokenizer(batch.prompt)["input_ids"]
            trainer = trl_trainer(
                config,
                rollout_func=lambda prompts, trainer: {
                    "prompt_ids": [prompt_ids for _ in prompts],
                    "completion_ids": [list(ids) for ids in batch.completion_ids],
                    "logprobs": None,
                },
                **given,
            )
            trainer._generate_and_score_completions = clock.excluded(
                trainer._generate_and_score_completions
            )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock.measured


def measure_step(trainer_name: str, *, steps: int) -> Measured:
    """Whole steps of one of TRAINERS, with sampling, on the quickstart's tiny model.

    `log` has our share of each part; for TRL, `step_seconds` less `update_seconds` is sampling,
    rewards and advantages together.
    """
    tokenizer = character_tokenizer()
    clock = Clock(keep_gradient=False)
    with tempfile.TemporaryDirectory() as folder:
        config = {"output_dir": folder, **settings(32, 32, steps, 32)}
        rows = [{"prompt": "sort: " + "dcba"[: 2 + i % 3], "difficulty": i % 3} for i in range(96)]
        given = {
            "model": tiny_qwen2(tokenizer),
            "reward_funcs": lambda completions, **columns: [t.count("a") / 9 for t in completions],
            "train_dataset": _dataset(rows),
            "processing_class": tokenizer,
            "callbacks": [clock],
        }
        if trainer_name == "sec-grpo":
            trainer: Any = GRPOTrainer(args=GRPOConfig(**config), curriculum=SEC(), **given)
            trainer._collect = clock.excluded(trainer._collect)
        else:
            trainer = trl_trainer(config, **given)
            trainer._generate_and_score_completions = clock.excluded(
                trainer._generate_and_score_completions
            )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock.measured


def trl_trainer(config: dict[str, Any], **given: Any) -> Any:
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    import trl

    return trl.GRPOTrainer(args=trl.GRPOConfig(**config), **given)


def _dataset(rows: list[dict[str, Any]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(rows)
