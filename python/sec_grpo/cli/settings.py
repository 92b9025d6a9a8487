"""The settings of `sec-grpo train`: a YAML file, flags, and every argument of GRPOConfig."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from sec_grpo.trainer import GRPOConfig

RUN_KEYS = (
    "model",
    "data",
    "eval_data",
    "eval_limit",
    "category",
    "reward",
    "strategy",
    "lora",
)
COMMAND_DEFAULTS = {"output_dir": "runs/train", "disable_tqdm": True, "report_to": "none"}


def merge_settings(
    config: Path | None, flags: dict[str, Any], extra: list[str]
) -> tuple[dict[str, Any], GRPOConfig, dict[str, Any]]:
    """The settings of a run from its YAML file, flags and extra arguments; later ones win.

    Returns:
        the settings named in RUN_KEYS, the arguments of GRPOConfig, and all that was given (with
        the arguments' parsed values), for `write_settings`.

    Raises:
        ValueError: the file is not a mapping, or a name is not known (the nearest is suggested).
    """
    from sec_grpo.trainer import GRPOConfig
    from sec_grpo.trainer.trl_names import ABSENT_CONFIG, explain_absent

    loaded = {} if config is None else read_yaml(config)
    loaded = explain_absent(ABSENT_CONFIG, loaded, str(config))
    settings = {name: loaded.pop(name, None) for name in RUN_KEYS}
    settings |= {name: value for name, value in flags.items() if value is not None}
    for name in ("strategy", "lora"):
        if isinstance(settings[name], str):
            settings[name] = parse_yaml(f"--{name}", settings[name])
    known = GRPOConfig.names()
    for name in loaded:
        if name not in known:
            raise ValueError(f"{config}: unknown key {name!r}{suggestion(name, known)}")
    for name in ("model", "data"):
        if settings[name] is None:
            raise ValueError(f"--{name} is missing: give it as a flag or in the --config file")
    args = parse_config(loaded, extra)
    given = {**loaded, **{name: getattr(args, name) for name in flag_names(extra, known)}}
    return settings, args, {**settings, **given}


def show_config(asked: bool) -> None:
    """Print GRPOConfig's own arguments, and the names of those of transformers; then exit."""
    if not asked:
        return
    from transformers import TrainingArguments

    from sec_grpo.trainer import GRPOConfig

    table = Table(box=None, pad_edge=False)
    table.add_column("argument", no_wrap=True)
    table.add_column("default", overflow="fold", max_width=20)
    table.add_column("meaning")
    inherited = []
    for field in dataclasses.fields(GRPOConfig):
        if field.name not in GRPOConfig.__annotations__:
            inherited.append(field.name)
            continue
        text = str(field.metadata.get("help", "")).replace("%%", "%")
        table.add_row(f"--{field.name}", Text(str(field.default)), Text(text))
    console = Console(highlight=False)
    console.print(table)
    names = ", ".join(f"--{name}" for name in inherited)
    console.print(f"\nand those of transformers.{TrainingArguments.__name__}: {names}")
    raise typer.Exit


def flag_names(extra: list[str], known: list[str]) -> list[str]:
    """The arguments of GRPOConfig that stand among command line words."""
    words = [word[2:].partition("=")[0].replace("-", "_") for word in extra if word[:2] == "--"]
    return [word.removeprefix("no_") if word not in known else word for word in words]


def parse_config(defaults: dict[str, Any], extra: list[str]) -> GRPOConfig:
    """GRPOConfig from a YAML file's values and command line arguments."""
    from transformers import HfArgumentParser
    from transformers.hf_argparser import string_to_bool

    from sec_grpo.trainer import GRPOConfig
    from sec_grpo.trainer.trl_names import ABSENT_CONFIG, explain_absent

    def fail(message: str) -> None:
        raise ValueError(message)

    parser = HfArgumentParser(GRPOConfig, allow_abbrev=False, add_help=False)
    parser.error = fail
    # As strings, so that YAML's values get the same conversion and checks as flags.
    as_flags = {
        name: str(value) if isinstance(value, (int, float)) else value
        for name, value in defaults.items()
    }
    parser.set_defaults(**{**COMMAND_DEFAULTS, **as_flags})
    for action in parser._actions:
        if action.type is string_to_bool and action.nargs is None:
            action.nargs, action.const = "?", True  # as other switches: the name alone turns it on
    args, rest = parser.parse_args_into_dataclasses(extra, return_remaining_strings=True)
    if rest:
        name = rest[0].lstrip("-").partition("=")[0].replace("-", "_")
        explain_absent(ABSENT_CONFIG, {name: rest[0]}, "sec-grpo train")
        raise ValueError(
            f"unknown argument {rest[0]!r}{suggestion(name, [*RUN_KEYS, *GRPOConfig.names()])}"
        )
    return args


def suggestion(name: str, known: list[str]) -> str:
    """The known name nearest to `name`, as the end of a sentence."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping."""
    if not path.is_file():
        raise ValueError(f"--config {path}: there is no such file")
    loaded = parse_yaml(str(path), path.read_text())
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} must hold 'name: value' lines, got {type(loaded).__name__}")
    return loaded


def parse_yaml(source: str, text: str) -> Any:
    """Parse YAML; errors name where it came from."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is not valid YAML: {error}") from error


def write_settings(path: Path, settings: dict[str, Any]) -> None:
    """Write what the run was started with, so that it can be repeated or resumed."""
    # An argument of GRPOConfig may have been set to None, where that is not its default.
    given = {k: v for k, v in settings.items() if v is not None or k not in RUN_KEYS}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(given, sort_keys=False))
