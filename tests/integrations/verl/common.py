"""Data, configuration and stand-ins for runs of verl's own loops on a CPU without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from hydra import compose, initialize_config_module

ROWS = [
    {
        "prompt": [{"role": "user", "content": "abc"[i % 3] * (1 + i // 3)}],
        "data_source": "letters",
        "reward_model": {"style": "rule", "ground_truth": str(i)},
        "extra_info": {"index": 7, "difficulty": i % 3, "number": i},
    }
    for i in range(24)
]
GROUP = 4


def write_inputs(folder: Path) -> None:
    """The rows as parquet, and a model folder with a tokenizer and a configuration."""
    from sec_grpo.tiny import character_tokenizer, tiny_qwen2

    tokenizer = character_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    model = tiny_qwen2(tokenizer, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    pd.DataFrame(ROWS).to_parquet(folder / "rows.parquet")


def make_config(folder: Path, name: str, *overrides: str) -> Any:
    """verl's configuration with a curriculum over the rows."""
    settings = [
        f"data.train_files={folder / 'rows.parquet'}",
        f"data.val_files={folder / 'rows.parquet'}",
        "data.train_batch_size=6",
        "+data.curriculum.seed=3",
        "data.max_prompt_length=16",
        "data.max_response_length=8",
        "++data.dataloader_num_workers=0",
        "+data.curriculum.name=sec",
        "+data.curriculum.temperature=0.2",
        "+data.curriculum.category=extra_info.difficulty",
        f"actor_rollout_ref.model.path={folder / 'model'}",
        f"actor_rollout_ref.rollout.n={GROUP}",
        "actor_rollout_ref.rollout.name=vllm",
        "actor_rollout_ref.rollout.calculate_log_probs=True",
        "actor_rollout_ref.actor.ppo_mini_batch_size=6",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=6",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=6",
        "algorithm.adv_estimator=grpo",
        "trainer.logger=[console]",
        "trainer.val_before_train=False",
        "trainer.device=cpu",
        "trainer.n_gpus_per_node=1",
        f"trainer.default_local_dir={folder / name}",
        "trainer.save_freq=1",
        "trainer.total_training_steps=4",
    ]
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=[*settings, *overrides])


class Answers:
    """Stands for the model: rewards that depend on the row and on the number of the generation."""

    def __init__(self, generations_before: int = 0) -> None:
        self.before = generations_before
        self.asked: list[list[int]] = []
        self.rewards: list[list[list[float]]] = []

    def answer(self, numbers: list[int]) -> list[list[float]]:
        """GROUP rewards of each row; those of difficulty 0 are all equal."""
        generator = torch.Generator().manual_seed(self.before + len(self.asked))
        noise = torch.rand((len(numbers), GROUP), generator=generator)
        scores = [
            [0.5] * GROUP if number % 3 == 0 else (row * (1 + number % 3)).tolist()
            for number, row in zip(numbers, noise, strict=True)
        ]
        self.asked.append(numbers)
        self.rewards.append(scores)
        return scores


class Workers:
    """Stands for every worker group and manager: updates nothing, saves nothing."""

    _dispatch_info = {"actor": [0]}  # noqa: RUF012
    world_size = 1
    reward_loop_worker_handles = ()

    def __init__(self) -> None:
        self.updates = 0

    def update_actor(self, batch: Any) -> Any:
        self.updates += 1
        return {"metrics": {"mfu": [0.0], "grad_norm": [1.0]}}

    def get_n_gpus(self) -> int:
        return 1

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "async_calls_finalize_fn_exec":
            raise AttributeError(name)
        return lambda *args, **kwargs: None
