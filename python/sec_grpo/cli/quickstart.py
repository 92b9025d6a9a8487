"""`sec-grpo quickstart`: a small language model learns, and the curriculum moves by itself.

The recipe: a tiny Qwen2-architecture model learns to sort letters. A supervised warm start teaches
it up to 3 letters; GRPO then trains it on 2 to 16, once with prompts in random order and once with
SEC, from the same weights, with the same budget and seed. 18 and 20 letters are only tested.
"""

from __future__ import annotations

import os
import random
import string
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

WARM_START_LEVELS = (1, 2, 3)
WARM_START_STEPS = 150
WARM_START_BATCH = 128
TRAIN_PROMPTS_PER_LEVEL = 400
EVAL_PROMPTS_PER_LEVEL = 48
EVALUATIONS = 4
TEMPERATURE_OF_SEC = 0.2


def quickstart(
    output_dir: Annotated[
        Path,
        typer.Option(
            "--output_dir", "--output-dir", help="Folder for logs, models and the report."
        ),
    ] = Path("runs/quickstart"),
    steps: Annotated[int, typer.Option(min=4, help="GRPO steps of each run.")] = 80,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything.")] = 0,
) -> None:
    """Watch a tiny model learn with GRPO: random order against SEC, in under three minutes."""
    started = time.perf_counter()
    console = Console()
    console.print("A tiny model learns to sort letters: dacb> abcd", style="bold")
    # Below the first line: importing takes seconds.
    import torch

    from sec_grpo import SEC, Random
    from sec_grpo.cli.callbacks import quiet_libraries
    from sec_grpo.cli.report import show_report

    quiet_libraries()
    if "OMP_NUM_THREADS" not in os.environ:
        # A model this small gains little from a second thread, and waits for it on busy cores.
        torch.set_num_threads(1)
    model, tokenizer = warm_start(output_dir / "warm_start", seed, console)
    runs = {"random": Random(), "sec": SEC(alpha=0.5, temperature=TEMPERATURE_OF_SEC)}
    for name, strategy in runs.items():
        train_with(
            strategy, model, tokenizer, output_dir / name, steps=steps, seed=seed, console=console
        )
    show_report([output_dir / name for name in runs], output_dir / "report", console)
    console.print(
        "Random order is slower here, not incapable: with more steps it catches up, and where "
        "every level is in reach from the start SEC barely helps. SEC trains on more groups per "
        "step, so compare the seconds too. One seed is one draw: try --seed 1.",
        style="dim",
    )
    console.print(f"{time.perf_counter() - started:.0f} s in all")


def warm_start(output_dir: Path, seed: int, console: Console) -> tuple[Any, Any]:
    """Supervised training on up to 3 letters: the model and its tokenizer.

    GRPO needs answers that are sometimes right; a random model's never are.
    """
    from transformers import Trainer, TrainingArguments

    from sec_grpo.cli.callbacks import show_progress
    from sec_grpo.tasks import get
    from sec_grpo.tiny import character_tokenizer, tiny_qwen2

    tokenizer = character_tokenizer(string.ascii_lowercase + ">")
    model = tiny_qwen2(tokenizer, seed=seed)
    count = WARM_START_STEPS * WARM_START_BATCH // len(WARM_START_LEVELS)
    rows = [row for n in WARM_START_LEVELS for row in get("sort").generate(n, count, seed)]
    random.Random(seed).shuffle(rows)
    args = TrainingArguments(
        output_dir=str(output_dir),
        max_steps=WARM_START_STEPS,
        per_device_train_batch_size=WARM_START_BATCH,
        learning_rate=2e-3,
        adam_beta2=0.98,
        weight_decay=0.01,
        warmup_steps=20,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        seed=seed,
    )
    trainer = Trainer(
        model,
        args,
        train_dataset=rows,
        data_collator=lambda batch: supervised_batch(batch, tokenizer),
    )
    progress = show_progress(trainer, console, "warm start")
    try:
        trainer.train()
    finally:
        progress.close()
    return model, tokenizer


def supervised_batch(rows: list[dict[str, Any]], tokenizer: Any) -> dict[str, Any]:
    """Token ids (B, L) of prompt and answer, right-padded; only the answer has labels."""
    import torch

    prompts = [tokenizer(row["prompt"])["input_ids"] for row in rows]
    answers = [
        [*tokenizer(row["ground_truth"])["input_ids"], tokenizer.eos_token_id] for row in rows
    ]
    width = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    input_ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels = torch.full((len(rows), width), -100)
    mask = torch.zeros((len(rows), width), dtype=torch.int64)
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        input_ids[i, :end] = torch.tensor(prompt + answer)
        labels[i, len(prompt) : end] = torch.tensor(answer)
        mask[i, :end] = 1
    return {"input_ids": input_ids, "labels": labels, "attention_mask": mask}


def train_with(
    strategy: Any,
    model: Any,
    tokenizer: Any,
    output_dir: Path,
    *,
    steps: int,
    seed: int,
    console: Console,
) -> None:
    """GRPO from a copy of `model` with one curriculum strategy; the log is in `output_dir`."""
    import copy

    from sec_grpo import GRPOConfig, GRPOTrainer
    from sec_grpo.cli.callbacks import show_progress
    from sec_grpo.tasks import get

    task = get("sort")
    levels = (*task.levels, *task.held_out_levels)
    test = task.dataset(EVAL_PROMPTS_PER_LEVEL, seed=seed + 1_000_000, levels=levels)
    tested = set(test["prompt"])
    train = task.dataset(TRAIN_PROMPTS_PER_LEVEL, seed=seed)
    train = train.filter(lambda row: row["prompt"] not in tested)
    args = GRPOConfig(
        output_dir=str(output_dir),
        max_steps=steps,
        per_device_train_batch_size=256,
        num_generations=8,
        max_completion_length=max(levels) + 1,
        learning_rate=4e-4,
        adam_beta2=0.98,
        weight_decay=0.0,
        warmup_steps=5,
        eval_strategy="steps",
        eval_steps=max(1, steps // EVALUATIONS),
        eval_on_start=True,
        per_device_eval_batch_size=len(test),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=seed,
    )
    trainer = GRPOTrainer(
        copy.deepcopy(model),
        task.reward,
        args,
        train_dataset=train,
        eval_dataset=test,
        processing_class=tokenizer,
        curriculum=strategy,
        category="difficulty",
        eval_reward_funcs=task.accuracy,
    )
    progress = show_progress(trainer, console, f"GRPO {output_dir.name}")
    try:
        trainer.train()
    finally:
        progress.close()
    if trainer.stopped_by_signal:
        raise typer.Exit(130)
    trainer.save_model()
