"""`sec-grpo train`: GRPO on a data set, from YAML and flags."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from sec_grpo.cli.settings import merge_settings, show_config

if TYPE_CHECKING:
    from sec_grpo.trainer import GRPOConfig, GRPOTrainer

TINY_MODEL = "tiny"


def train(
    ctx: typer.Context,
    config: Annotated[
        Path | None, typer.Option(help="YAML file with any of the settings; flags win over it.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A folder written by save_pretrained, a Hub name, or 'tiny' (a small random "
            "Qwen2-architecture model that reads characters, for dry runs)."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="A .parquet, .jsonl, .json or .csv file, a folder of save_to_disk, a Hub name, "
            "or a task (sort, countdown, zebra, arc_1d) to generate prompts; "
            "several joined by commas are mixed: --category type,difficulty."
        ),
    ] = None,
    eval_data: Annotated[
        str | None,
        typer.Option(
            "--eval_data",
            "--eval-data",
            help="Rows to evaluate on; a task adds its held-out levels.",
        ),
    ] = None,
    eval_limit: Annotated[
        int | None,
        typer.Option(
            "--eval_limit", "--eval-limit", help="Evaluate at most this many rows of each category."
        ),
    ] = None,
    category: Annotated[
        str | None,
        typer.Option(help="Column of the curriculum's arms, several joined by commas, or 'none'."),
    ] = None,
    reward: Annotated[
        str | None,
        typer.Option(
            help="A task's name, or module:function or file.py:function. Default: the task that "
            "the data names."
        ),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="sec (default), random, ordered, dump, ...; with parameters: '{name: sec, "
            "temperature: 0.2}'."
        ),
    ] = None,
    lora: Annotated[
        str | None, typer.Option(help="LoRA settings of peft.LoraConfig, as '{r: 16}'.")
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(help="Checkpoint folder to resume from, or 'last' for the newest."),
    ] = None,
    help_config: Annotated[
        bool,
        typer.Option(
            "--help_config",
            "--help-config",
            is_eager=True,
            callback=show_config,
            help="Show the arguments of GRPOConfig and exit.",
        ),
    ] = False,
) -> None:
    """Train with GRPO. Every other --name value sets that argument of GRPOConfig.

    Example: sec-grpo train --model tiny --data countdown_train.parquet --strategy sec
    --max_steps 20 --per_device_train_batch_size 16 --num_generations 4 --output_dir runs/countdown
    """
    flags = {
        "model": model,
        "data": data,
        "eval_data": eval_data,
        "eval_limit": eval_limit,
        "category": category,
        "reward": reward,
        "strategy": strategy,
        "lora": lora,
    }
    from sec_grpo.cli.callbacks import KeepSettings, quiet_libraries

    settings, args, given = merge_settings(config, flags, ctx.args)
    quiet_libraries()
    refuse_to_mix(Path(args.output_dir), resume)
    trainer = make_trainer(settings, args)
    trainer.add_callback(KeepSettings(given))
    console = Console(quiet=not trainer.is_world_process_zero())
    run(trainer, resume, console)


def run(trainer: GRPOTrainer, resume: str | None, console: Console) -> None:
    """Train, save the model, and say where everything is."""
    from sec_grpo.cli.callbacks import show_progress

    output_dir = trainer.args.output_dir
    name = type(trainer.curriculum.strategy).__name__
    progress = show_progress(trainer, console, f"GRPO {name}")
    try:
        trainer.train(resume_from_checkpoint=True if resume == "last" else resume)
    finally:
        progress.close()
    if trainer.stopped_by_signal:
        console.print(
            f"stopped after step {trainer.state.global_step}; continue with: sec-grpo train "
            f"--config {output_dir}/config.yaml --resume last",
            soft_wrap=True,
            highlight=False,
        )
        raise typer.Exit(130)
    trainer.save_model()
    if trainer.eval_dataset is not None:
        metrics = trainer.evaluate()
        console.print(f"evaluation reward {metrics['eval_reward']:.3f}")
    console.print(
        f"model and log: {output_dir}   plots: sec-grpo report {output_dir}",
        soft_wrap=True,
        highlight=False,
    )


def refuse_to_mix(output_dir: Path, resume: str | None) -> None:
    """Refuse to start a new run in a folder that holds another's checkpoints."""
    if resume is None and any(output_dir.glob("checkpoint-*")):
        raise ValueError(
            f"{output_dir} holds checkpoints of an earlier run: continue it with --resume last, or "
            "choose another --output_dir"
        )


def make_trainer(settings: dict[str, Any], args: GRPOConfig) -> GRPOTrainer:
    """The trainer that the settings describe."""
    from sec_grpo.rewards import rewards_for
    from sec_grpo.tasks import load_rows
    from sec_grpo.trainer import GRPOTrainer

    train_rows = load_rows(settings["data"], args.seed, evaluation=False)
    eval_rows = None
    if settings["eval_data"] is not None:
        eval_rows = load_rows(settings["eval_data"], args.seed, evaluation=True)
    category = category_of(settings["category"])
    if eval_rows is not None and settings["eval_limit"] is not None:
        eval_rows = limit_per_category(eval_rows, category, int(settings["eval_limit"]))
    rewards, eval_rewards = rewards_for(train_rows, settings["reward"])
    model, tokenizer = settings["model"], None
    if model.startswith(("/", "./", "../", "~")) and not Path(model).expanduser().is_dir():
        raise ValueError(f"--model {model}: there is no such folder")
    if model == TINY_MODEL:
        from sec_grpo.tiny import character_tokenizer, tiny_qwen2

        tokenizer = character_tokenizer()
        model = tiny_qwen2(tokenizer, seed=args.seed)
    peft_config = None
    if settings["lora"] is not None:
        from peft import LoraConfig

        peft_config = LoraConfig(task_type="CAUSAL_LM", **settings["lora"])
    return GRPOTrainer(
        model,
        rewards,
        args,
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        processing_class=tokenizer,
        curriculum=settings["strategy"] or "sec",
        category=category,
        eval_reward_funcs=eval_rewards,
        peft_config=peft_config,
    )


def category_of(value: str | list[str] | None) -> str | list[str] | None:
    """The `category` argument of the trainer from its setting."""
    if value is None:
        return "difficulty"
    if isinstance(value, str):
        if value.lower() == "none":
            return None
        return value if "," not in value else [part.strip() for part in value.split(",")]
    return value


def limit_per_category(rows: Any, category: Any, limit: int, option: str = "--eval_limit") -> Any:
    """The first `limit` rows of every category."""
    from sec_grpo.trainer.prompts import PromptDataset

    if limit < 1:
        raise ValueError(f"{option} must be at least 1, got {limit}")
    counts: dict[object, int] = {}
    kept = []
    for i, label in enumerate(PromptDataset(rows, category, argument="eval_data").categories):
        counts[label] = counts.get(label, 0) + 1
        if counts[label] <= limit:
            kept.append(i)
    return rows.select(kept)
