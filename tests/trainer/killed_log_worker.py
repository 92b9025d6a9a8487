"""Trains, resuming where it can; test_killed_log kills it at random moments."""

import sys
from pathlib import Path

import torch

from sec_grpo import SEC, GRPOConfig, GRPOTrainer
from sec_grpo.tiny import character_tokenizer, tiny_qwen2

STEPS = 30


def reward(completions, log_extra, **columns):
    log_extra("length", [len(text) for text in completions])
    return [len(text) + 0.5 * (text[-1:] < "d") for text in completions]


def train(folder: Path) -> None:
    torch.set_num_threads(1)
    tokenizer = character_tokenizer("abcdefgh")
    trainer = GRPOTrainer(
        tiny_qwen2(tokenizer, hidden_size=16, num_hidden_layers=1, intermediate_size=16),
        reward,
        GRPOConfig(
            output_dir=str(folder),
            max_steps=STEPS,
            per_device_train_batch_size=4,
            num_generations=2,
            max_completion_length=5,
            num_iterations=2,
            learning_rate=1e-2,
            logging_steps=3,
            save_steps=2,
            save_total_limit=2,
            log_completions=True,
            num_completions_to_print=0,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=[{"prompt": c, "difficulty": i % 2} for i, c in enumerate("abcdefgh")],
        processing_class=tokenizer,
        curriculum=SEC(),
    )
    print("ready", flush=True)
    trainer.train(resume_from_checkpoint=any(folder.glob("checkpoint-*")))


if __name__ == "__main__":
    train(Path(sys.argv[1]))
