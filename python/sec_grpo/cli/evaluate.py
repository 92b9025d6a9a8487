"""`sec-grpo eval`: accuracy per level of a model directory."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import sys
from collections.abc import Collection, Hashable
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

# Files, one of which a folder with a tokenizer has.
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


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
        typer.Option(
            help="A task's name, module:name or file.py:name (a reward function or a task); "
            "default: the tasks of the rows."
        ),
    ] = None,
    solved: Annotated[
        float, typer.Option(help="The least score or reward of a solved completion.")
    ] = 1.0,
    held_out: Annotated[
        str | None,
        typer.Option(
            "--held_out",
            "--held-out",
            help="Held-out levels, by commas; default: the tasks'. Where --category joins several "
            "columns, a value of one will do.",
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
    chat_template: Annotated[
        str,
        typer.Option(
            "--chat_template",
            "--chat-template",
            help="auto (the tokenizer's), none (contents of messages joined), or a Jinja file.",
        ),
    ] = "auto",
    output_dir: Annotated[
        Path | None,
        typer.Option(
            "--output_dir",
            "--output-dir",
            help="For samples.jsonl, completions.parquet and summary.json; default: a folder of "
            "runs/eval named after the settings, so that the same command continues.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option(help="Drop samples of other settings in the output folder.")
    ] = False,
) -> None:
    """Accuracy per level with 95% intervals, pass@k, and every completion in a parquet file.

    Example: sec-grpo eval runs/sec --data countdown_test.parquet --samples 4 --k 1,4
    """
    from sec_grpo.cli.callbacks import quiet_libraries
    from sec_grpo.evaluation import evaluate as run
    from sec_grpo.tasks import load_rows

    options: dict[str, Any] = {
        "category": category_of(category),
        "samples": samples,
        "ks": _numbers("--k", k),
        "temperature": temperature,
        "top_p": top_p,
        "max_completion_length": max_completion_length,
        "batch_size": batch_size,
        "seed": seed,
        "solved": solved,
    }
    rows = load_rows(data, seed, evaluation=True)
    if limit is not None:
        rows = limit_per_category(rows, options["category"], limit, "--limit")
    judge = judge_of(reward)
    apart = None if held_out is None else held_out_labels(held_out, rows, options["category"])
    quiet_libraries()
    loaded, tokenizer = load_model(model, dtype, seed)
    use_chat_template(tokenizer, chat_template)
    if output_dir is None:
        named = [model, data, dtype, chat_template, limit, sorted(map(str, options.items()))]
        output_dir = Path("runs/eval") / _folder_name(model, data, named)
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
            folder=output_dir,
            overwrite=overwrite,
            progress=show,
            **options,
        )
    _show(result, result.held_out_levels if apart is None else apart, model, output_dir, console)


def _numbers(name: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{name} must be whole numbers joined by commas, got {text!r}") from None


def _folder_name(model: str, data: str, settings: list[Any]) -> str:
    """Readable, and another one for other settings."""
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]
    parts = ["-".join(Path(model).parts[-2:]), Path(data.split(",")[0]).stem]
    words = [re.sub(r"[^A-Za-z0-9._]+", "-", part).strip("-.")[:40] for part in parts]
    return "-".join([*filter(None, words), digest])


def held_out_labels(words: str, rows: Any, category: Any) -> set[Hashable]:
    """The labels that `--held_out` names, whole or by one value of several; "" names none.

    Raises ValueError: no row has such a label.
    """
    from sec_grpo.trainer.prompts import PromptDataset

    labels = dict.fromkeys(PromptDataset(rows, category, argument="data").categories)
    found: set[Hashable] = set()
    for word in filter(None, map(str.strip, words.split(","))):
        named = {label for label in labels if word in (str(label), *_values(label))}
        if not named:
            raise ValueError(
                f"--held_out must name levels of the data, {', '.join(map(str, labels))}; got "
                f"{word!r}"
            )
        found |= named
    return found


def _values(label: Hashable) -> list[str]:
    return [str(value) for value in label] if isinstance(label, tuple) else []


def judge_of(reward: str | None) -> Any:
    """The `judge` argument of `evaluate` from the command line's words; None: the rows say."""
    from sec_grpo.rewards import reward_from

    return None if reward is None else reward_from(reward, evaluation=True)


def load_model(name: str, dtype: str, seed: int) -> tuple[Any, Any]:
    """The model, on the GPU where there is one, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM

    dtypes = ("auto", "float32", "bfloat16", "float16")
    if dtype not in dtypes:
        raise ValueError(f"--dtype must be one of {', '.join(dtypes)}, got {dtype!r}")
    if name == TINY_MODEL:
        from sec_grpo.tiny import character_tokenizer, tiny_qwen2

        tokenizer = character_tokenizer()
        return tiny_qwen2(tokenizer, seed=seed), tokenizer
    folder = Path(name).expanduser()
    is_folder = folder.is_dir()
    if not is_folder and (name.startswith(("/", "./", "../", "~")) or folder.exists()):
        raise ValueError(f"model {name}: there is no such folder")
    if is_folder:
        _check_folder(folder)
        name = str(folder)
    chosen = dtype if dtype == "auto" else getattr(torch, dtype)
    if is_folder and (folder / "adapter_config.json").is_file():
        model = _with_adapter(folder, chosen)
    else:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=chosen)
    tokenizer = _tokenizer(name, model)
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def _check_folder(folder: Path) -> None:
    if (folder / "adapter_config.json").is_file() or (folder / "config.json").is_file():
        return
    checkpoints = sorted(path.name for path in folder.glob("checkpoint-*"))
    hint = (
        f"it holds checkpoints: name one of them, as {folder / checkpoints[-1]}"
        if checkpoints
        else "name one written by save_pretrained, such as a run's output folder or a checkpoint"
    )
    raise ValueError(
        f"model {folder}: the folder holds neither config.json nor adapter_config.json; {hint}"
    )


def _with_adapter(folder: Path, dtype: Any) -> Any:
    try:
        from peft import AutoPeftModelForCausalLM
    except ImportError as error:
        raise ValueError(
            f"model {folder} is a PEFT adapter: pip install 'sec-grpo[peft]'"
        ) from error
    return AutoPeftModelForCausalLM.from_pretrained(str(folder), dtype=dtype)


def _tokenizer(name: str, model: Any) -> Any:
    """The tokenizer beside the model, or that of an adapter's base model."""
    from transformers import AutoTokenizer

    adapters = getattr(model, "peft_config", {})
    for source in (name, *(config.base_model_name_or_path for config in adapters.values())):
        # transformers makes up an empty tokenizer for a folder without one.
        if not Path(source).is_dir() or any((Path(source) / file).is_file() for file in _TOKENIZER):
            return AutoTokenizer.from_pretrained(source)
    raise ValueError(
        f"model {name}: the folder holds no tokenizer; save it there with tokenizer.save_pretrained"
    )


def use_chat_template(tokenizer: Any, template: str) -> None:
    """Set the tokenizer's template from the command line's word."""
    if template == "none":
        tokenizer.chat_template = None
    elif template != "auto":
        path = Path(template)
        if not path.is_file():
            raise ValueError(
                f"--chat_template must be auto, none or a Jinja file; there is no file {template!r}"
            )
        tokenizer.chat_template = path.read_text()


def _show(
    result: EvaluationResult,
    held_out: Collection[Hashable],
    model: str,
    folder: Path,
    console: Console,
) -> None:
    """Print the table; write summary.json."""
    from sec_grpo.report.atomic import write_atomically

    apart = [level.label for level in result.levels if level.label in held_out]
    trained = [level.label for level in result.levels if level.label not in apart]
    console.print(_table(result, apart, model))
    means: dict[str, Any] = {}
    for name, labels in (("trained", trained), ("held_out", apart)):
        low, high = result.mean_interval(labels)
        means |= {
            f"mean_{name}": _finite(result.mean(labels)),
            f"mean_{name}_interval": [_finite(low), _finite(high)],
        }
        if labels:
            console.print(
                f"mean, {name.replace('_', ' ')}: {result.mean(labels):.3f} "
                f"({low:.2f} to {high:.2f})",
                highlight=False,
            )
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
        **means,
        "levels": [_numbers_of(level) for level in result.levels],
        "sampling": result.settings,
    }
    content = (json.dumps(summary, indent=1) + "\n").encode()
    for written in (result.completions, write_atomically(folder / "summary.json", content)):
        console.print(f"  {written}", markup=False, highlight=False, soft_wrap=True)


def _table(result: EvaluationResult, held_out: list[Any], model: str) -> Table:
    ks = [k for k in sorted(result.levels[0].pass_at) if k > 1]
    title = f"{model}: accuracy"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", padding=(0, 1, 0, 0))
    table.add_column("level", no_wrap=True, min_width=13)
    for name in ("prompts", "accuracy", "95%", *(f"pass@{k}" for k in ks)):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("format", "ended", "tokens"):
        table.add_column(name, justify="right", no_wrap=True)
    for level in result.levels:
        name = " ".join(_values(level.label)) or str(level.label)
        if level.label in held_out:
            name += " (held out)"
        table.add_row(
            name,
            str(level.prompts),
            f"{level.accuracy:.3f}",
            f"{level.low:.2f} to {level.high:.2f}",
            *(f"{level.pass_at[k]:.3f}" for k in ks),
            "" if level.well_formed is None else f"{level.well_formed:.2f}",
            f"{level.finished:.2f}",
            f"{level.mean_tokens:.0f}",
        )
    return table


def _numbers_of(level: Any) -> dict[str, Any]:
    numbers = dataclasses.asdict(level)
    del numbers["solved"]
    return {**numbers, "label": str(level.label)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
