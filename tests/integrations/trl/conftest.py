"""A run of TRL's trainer on a tiny random model, and what its reward function saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

# Two threads for matrices of 16 columns take four times as long on a busy machine.
torch.set_num_threads(1)

ROWS = [
    {"prompt": "abc"[i % 3] * (1 + i // 3) + ">", "difficulty": i % 3, "number": i}
    for i in range(24)
]


class Reward:
    """Rewards that depend on the row and the completion; keeps what it was called with."""

    __name__ = "reward"

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(self, prompts, completions, number=None, **columns):
        rewards = [len(set(text)) + 0.5 * ("a" in text) for text in completions]
        self.calls.append(
            {
                "prompts": list(prompts),
                "completions": list(completions),
                "numbers": number,
                "rewards": rewards,
                "columns": sorted(columns),
            }
        )
        return rewards

    @property
    def numbers(self) -> list[int]:
        """Rows in the order of the completions."""
        return [number for call in self.calls for number in call["numbers"]]


def make_tokenizer() -> Any:
    from sec_grpo.tiny import character_tokenizer

    return character_tokenizer("abc>")


def make_model(tokenizer: Any) -> Any:
    """A random model of two layers."""
    from sec_grpo.tiny import tiny_qwen2

    return tiny_qwen2(tokenizer, seed=1, hidden_size=16, num_hidden_layers=2, intermediate_size=32)


def make_trainer(
    folder: Path,
    *,
    kind: Any = None,
    reward: Any = None,
    rows: Any = None,
    tokenizer: Any = None,
    **options: Any,
) -> Any:
    """A trainer; `options` are GRPOConfig's, or the trainer's where it has none of that name."""
    import trl
    from datasets import Dataset

    from sec_grpo.integrations.trl import CurriculumGRPOTrainer

    tokenizer = make_tokenizer() if tokenizer is None else tokenizer
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "num_generations": 2,
        "max_completion_length": 6,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "max_steps": 5,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "seed": 3,
    }
    names = trl.GRPOConfig.__dataclass_fields__
    config = {name: value for name, value in options.items() if name in names}
    arguments = {name: value for name, value in options.items() if name not in names}
    if "model" not in arguments:
        model = make_model(tokenizer)
        if options.get("beta"):  # TRL loads the reference model from where the model is from
            model.save_pretrained(folder / "model")
            model = str(folder / "model")
        arguments["model"] = model
    torch.manual_seed(0)  # older TRL makes LoRA's weights before it sets the seed
    return (CurriculumGRPOTrainer if kind is None else kind)(
        reward_funcs=Reward() if reward is None else reward,
        args=trl.GRPOConfig(**{**settings, **config}),
        train_dataset=Dataset.from_list(ROWS) if rows is None else rows,
        processing_class=tokenizer,
        **arguments,
    )


def flat_weights(trainer: Any) -> torch.Tensor:
    """All parameters of the unwrapped model in one vector."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    return torch.cat([p.detach().float().reshape(-1) for p in model.parameters()])


@pytest.fixture
def make() -> Any:
    return make_trainer


@pytest.fixture
def weights() -> Any:
    return flat_weights


@pytest.fixture
def rows() -> Any:
    return [dict(row) for row in ROWS]


@pytest.fixture(scope="module")
def save_model() -> Any:
    """A function that writes the random model to a folder."""
    return lambda folder: make_model(make_tokenizer()).save_pretrained(folder)
