"""Trains slowly enough to be interrupted by test_interruption."""

import sys
import time

from sec_grpo import SEC, GRPOConfig, GRPOTrainer
from sec_grpo.tiny import character_tokenizer, tiny_qwen2

STEPS = 8


def slow_reward(completions, **columns):
    print("scoring", flush=True)
    time.sleep(0.5)
    return [float(len(text)) for text in completions]


def fast_reward(completions, **columns):
    return [float(len(text)) for text in completions]


def make_trainer(output_dir: str, reward, **options) -> GRPOTrainer:
    tokenizer = character_tokenizer("abcdefgh")
    args = GRPOConfig(
        output_dir=output_dir,
        max_steps=STEPS,
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=5,
        learning_rate=1e-2,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )
    return GRPOTrainer(
        tiny_qwen2(tokenizer, hidden_size=16, num_hidden_layers=1, intermediate_size=16),
        reward,
        args,
        train_dataset=[{"prompt": c, "difficulty": i % 2} for i, c in enumerate("abcdefgh")],
        processing_class=tokenizer,
        curriculum=SEC(),
    )


if __name__ == "__main__":
    trainer = make_trainer(sys.argv[1], slow_reward, check_reward_funcs=False)
    trainer.train()
    print("stopped", trainer.stopped_by_signal, trainer.state.global_step, flush=True)
