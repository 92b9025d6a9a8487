"""`sec-grpo eval`: accuracy per level of a model directory."""

from __future__ import annotations

import dataclasses
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from sec_grpo.cli.train import TINY_MODEL, category_of, limit_per_category

if TYPE_CHECKING:
    from sec_grpo.evaluation import EvaluationResult
    from sec_grpo.evaluation.evaluate import Judge


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            help="A folder of save_pretrained, a checkpoint, a folder with a PEFT adapter, a Hub "
            "name, or 'tiny'."
        ),
    ],
    data: Annotated[
        str,
        typer.Option(help="A file, a folder of save_to_disk, a Hub name, or a task; or several."),
    ],
    category: Annotated[
        str, typer.Option(help="Column of the levels, several joined by commas, or 'none'.")
    ] = "difficulty",
    reward: Annotated[
        str | None,
        typer.Option(help="module:function or file.py:function; default: the tasks of the rows."),
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option(
            "--held_out", "--held-out", help="Held-out levels, by commas; default: the task's."
        ),
    ] = None,
    samples: Annotated[int, typer.Option(help="Completions of a prompt.")] = 1,
    k: Annotated[str, typer.Option(help="The k of pass@k, by commas.")] = "1",
    temperature: Annotated[
        float | None, typer.Option(help="Default: greedy for one sample, 0.6 for several.")
    ] = None,
    top_p: Annotated[float, typer.Option("--top_p", "--top-p")] = 1.0,
    max_completion_length: Annotated[
        int, typer.Option("--max_completion_length", "--max-completion-length", help="Tokens.")
    ] = 512,
    batch_size: Annotated[
        int, typer.Option("--batch_size", "--batch-size", help="Completions at once.")
    ] = 16,
    limit: Annotated[int | None, typer.Option(help="At most this many rows of each level.")] = None,
    seed: Annotated[int, typer.Option(help="Of generated problems and of sampling.")] = 0,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    output_dir: Annotated[
        Path, typer.Option("--output_dir", "--output-dir", help="completions.parquet, summary.json")
    ] = Path("runs/eval"),
) -> None:
    """Accuracy per level with 95% intervals, pass@k, and every completion in a parquet file.

    Example: sec-grpo eval runs/sec --data countdown_test.parquet --samples 4 --k 1,4
    """
    from sec_grpo.cli.callbacks import quiet_libraries
    from sec_grpo.evaluation import evaluate as run
    from sec_grpo.tasks import load_rows

    ks = _numbers("--k", k)
    rows = load_rows(data, seed, evaluation=True)
    labels = category_of(category)
    if limit is not None:
        rows = limit_per_category(rows, labels, limit)
    judge, own_held_out = judge_of(reward, rows)
    quiet_libraries()
    loaded, tokenizer = load_model(model, dtype, seed)
    console = Console()
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("completions", total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        result = run(
            loaded,
            tokenizer,
            rows,
            judge,
            category=labels,
            samples=samples,
            ks=ks,
            temperature=temperature,
            top_p=top_p,
            max_completion_length=max_completion_length,
            batch_size=batch_size,
            seed=seed,
            completions=output_dir / "completions.parquet",
            progress=show,
        )
    apart = own_held_out if held_out is None else set(held_out.split(","))
    _show(result, apart, model, output_dir, console)


def _numbers(name: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{name} must be whole numbers joined by commas, got {text!r}") from None


def judge_of(reward: str | None, rows: Any) -> tuple[Judge, set[str]]:
    """How completions are judged, and the held-out levels of the tasks that judge."""
    from sec_grpo import tasks
    from sec_grpo.evaluation.evaluate import Judgement
    from sec_grpo.rewards import reward_from
    from sec_grpo.tasks.sources import tasks_of

    if reward is not None and ":" in reward:
        function = reward_from(reward)

        def by_function(text: str, row: dict[str, Any]) -> Judgement:
            columns = {name: [value] for name, value in row.items() if name != "prompt"}
            is_text = isinstance(row["prompt"], str)
            completion: Any = text if is_text else [{"role": "assistant", "content": text}]
            (score,) = function(prompts=[row["prompt"]], completions=[completion], **columns)
            return Judgement(0.0 if score is None else float(score), "", True)

        return by_function, set()
    names = [reward] if reward is not None else tasks_of(rows)
    judges = {name: tasks.get(name) for name in names}
    held_out = {str(level) for task in judges.values() for level in task.held_out_levels}

    def by_task(text: str, row: dict[str, Any]) -> Judgement:
        name = names[0] if len(names) == 1 else tasks.task_of(row)
        truth = row.get("ground_truth")
        if truth is None:
            truth = json.loads(row["ground_truth_json"])
        verdict = judges[name].verify(text, truth)
        return Judgement(verdict.score, verdict.reason, verdict.well_formed)

    return by_task, held_out


def load_model(name: str, dtype: str, seed: int) -> tuple[Any, Any]:
    """The model, on the GPU where there is one, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtypes = ("auto", "float32", "bfloat16", "float16")
    if dtype not in dtypes:
        raise ValueError(f"--dtype must be one of {', '.join(dtypes)}, got {dtype!r}")
    if name == TINY_MODEL:
        from sec_grpo.tiny import character_tokenizer, tiny_qwen2

        tokenizer = character_tokenizer()
        return tiny_qwen2(tokenizer, seed=seed), tokenizer
    folder = Path(name).expanduser()
    looks_local = name.startswith(("/", "./", "../", "~")) or folder.exists()
    if looks_local and not folder.is_dir():
        raise ValueError(f"model {name}: there is no such folder")
    adapter = folder / "adapter_config.json"
    if looks_local and not adapter.is_file() and not (folder / "config.json").is_file():
        raise ValueError(
            f"model {name}: the folder holds neither config.json nor adapter_config.json; name one "
            "written by save_pretrained, such as a run's output folder or a checkpoint"
        )
    chosen = dtype if dtype == "auto" else getattr(torch, dtype)
    if adapter.is_file():
        from peft import AutoPeftModelForCausalLM

        model = AutoPeftModelForCausalLM.from_pretrained(str(folder), torch_dtype=chosen)
    else:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=chosen)
    tokenizer = AutoTokenizer.from_pretrained(name)
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def _show(
    result: EvaluationResult, held_out: set[str], model: str, folder: Path, console: Console
) -> None:
    """Print the table; write summary.json."""
    from sec_grpo.report.atomic import write_atomically

    ks = sorted(result.levels[0].pass_at)
    title = f"{model}: accuracy"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", padding=(0, 1, 0, 0))
    table.add_column("level", no_wrap=True, min_width=13)
    for name in ("prompts", "accuracy", "95%", *(f"pass@{k}" for k in ks if k > 1)):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("format", "ended", "tokens"):
        table.add_column(name, justify="right", no_wrap=True)
    apart = [level.label for level in result.levels if str(level.label) in held_out]
    for level in result.levels:
        name = f"{level.label} (held out)" if level.label in apart else str(level.label)
        table.add_row(
            name,
            str(level.prompts),
            f"{level.accuracy:.3f}",
            f"{level.low:.2f} to {level.high:.2f}",
            *(f"{level.pass_at[k]:.3f}" for k in ks if k > 1),
            f"{level.well_formed:.2f}",
            f"{level.finished:.2f}",
            f"{level.mean_tokens:.0f}",
        )
    console.print(table)
    trained = [level.label for level in result.levels if level.label not in apart]
    means = {"mean_trained": result.mean(trained), "mean_held_out": result.mean(apart)}
    shown = [f"{name.replace('_', ', ', 1)}: {value:.3f}" for name, value in means.items()
             if value == value]  # fmt: skip
    console.print("   ".join(shown).replace("_", " "), highlight=False)
    if result.failures:
        console.print(
            f"{result.failures} completions could not be judged and score 0; the column `reason` "
            "says why",
            style="yellow",
        )
    summary = {
        "command": " ".join(["sec-grpo", *sys.argv[1:]]),
        "version": version("sec-grpo"),
        "model": model,
        "samples": result.samples,
        "failures": result.failures,
        "held_out": [str(label) for label in apart],
        **{name: None if value != value else value for name, value in means.items()},
        "levels": [
            {**dataclasses.asdict(level), "label": str(level.label)} for level in result.levels
        ],
    }
    path = write_atomically(
        folder / "summary.json", (json.dumps(summary, indent=1) + "\n").encode()
    )
    for written in (result.completions, path):
        console.print(f"  {written}", markup=False, highlight=False, soft_wrap=True)
