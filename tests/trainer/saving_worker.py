"""Trains with a checkpoint a step, resuming where there is one; killed by test_checkpoint."""

import sys
from pathlib import Path

from transformers import TrainerCallback

from sec_grpo import SEC, GRPOConfig, GRPOTrainer
from sec_grpo.tiny import character_tokenizer, tiny_qwen2


class Report(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        print("step", state.global_step, flush=True)


def main(run: str, once: bool) -> None:
    tokenizer = character_tokenizer("abcdefgh")
    found = [int(p.name[11:]) for p in Path(run).glob("checkpoint-*") if p.name[11:].isdigit()]
    print("resumed", max(found, default=0), flush=True)
    args = GRPOConfig(
        output_dir=run,
        max_steps=max(found, default=0) + 1 if once else 100_000,
        per_device_train_batch_size=4,
        num_generations=2,
        num_iterations=2,
        max_completion_length=3,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = GRPOTrainer(
        tiny_qwen2(tokenizer, hidden_size=16, num_hidden_layers=1, intermediate_size=16),
        lambda completions, **columns: [float(len(text)) for text in completions],
        args,
        train_dataset=[{"prompt": c, "difficulty": i % 2} for i, c in enumerate("abcdefgh")],
        processing_class=tokenizer,
        curriculum=SEC(),
        callbacks=[Report()],
    )
    trainer.train(resume_from_checkpoint=bool(found))


if __name__ == "__main__":
    main(sys.argv[1], once="once" in sys.argv)
