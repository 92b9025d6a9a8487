"""The completions of a run: a table on the console, parquet files, and trackers' tables.

Setting names and columns follow TRL's GRPOTrainer. R rows, completions of all processes.
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from sec_grpo.report.atomic import write_atomically

FOLDER = "completions"
OWN_COLUMNS = ("step", "prompt", "completion", "total_reward", "advantage", "arm")
TRACKERS = ("wandb", "trackio")  # those that have tables
SHOWN_CHARACTERS = 600  # of a prompt or completion on the console

_FILE = re.compile(r"completions_(\d+)\.parquet")
# A terminal acts on these when a model prints them.
_CONTROLS = {c: (chr(0x2400 + c) if c < 32 else "�") for c in (*range(32), *range(127, 160))}
del _CONTROLS[9], _CONTROLS[10]
_CONTROLS |= dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A)), "�")


class ExtraColumns:
    """The `log_extra` of reward functions: columns beside the completions they judge.

    Args:
        num_rows: completions of this call, so values a column must have.
    """

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows
        self.columns: dict[str, list[Any]] = {}

    def __call__(self, column: str, values: Sequence[Any]) -> None:
        """Add a column; ValueError for a name of the table's own or another number of values."""
        if column in OWN_COLUMNS:
            raise ValueError(
                f"log_extra: column must not be one of {', '.join(OWN_COLUMNS)}, got {column!r}"
            )
        if len(values) != self._num_rows:
            raise ValueError(
                f"log_extra: column {column!r} must have {self._num_rows} values, one a "
                f"completion, got {len(values)}"
            )
        self.columns[column] = list(values)


class CompletionLog:
    """Writes a parquet file for each generation batch and shows some of its completions.

    One process holds it. A file is whole or absent; those of steps that a resume rolls back are
    removed, since they are sampled again, and those of an earlier run are put aside.

    Args:
        output_dir: the run's folder; files are `completions/completions_00012.parquet` in it, by
            the optimizer step that first trains on them.
        num_to_print: completions shown at each log, spread over the batch; None for all.
        unique_prompts: show, and send to trackers, only the first completion of each prompt.
        report_to: names of trackers; wandb and trackio get the table that is shown, whole.
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        num_to_print: int | None,
        unique_prompts: bool = False,
        report_to: Sequence[str] = (),
    ) -> None:
        self._folder = Path(output_dir) / FOLDER
        self._num_to_print = num_to_print
        self._unique_prompts = unique_prompts
        self._report_to = [name for name in TRACKERS if name in report_to]
        self._latest: dict[str, list[Any]] | None = None

    def start(self, step: int, *, resumed: bool) -> None:
        """Put the folder in order for a run that goes on after `step`."""
        self._latest = None
        if not self._folder.is_dir():
            return
        if not resumed:
            self._put_aside()
            return
        for path in self._folder.iterdir():
            found = _FILE.fullmatch(path.name)
            if (found and int(found[1]) > step) or path.name.startswith(".completions_"):
                path.unlink()

    def _put_aside(self) -> None:
        number = 1
        while (target := self._folder.with_name(f"{FOLDER}.{number}")).exists():
            number += 1
        self._folder.rename(target)

    def add(
        self,
        step: int,
        *,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        rewards: Mapping[str, Sequence[float | None]],
        total_rewards: Sequence[float],
        extra: Mapping[str, Sequence[Any]],
        advantages: Sequence[float],
        arms: Sequence[str],
    ) -> None:
        """Write the R completions that optimizer step `step` is the first to train on.

        Args:
            prompts, completions: strings or lists of chat messages.
            rewards: by function, None where it does not apply.
            extra: further columns.
        """
        functions = {_free_name(name): list(values) for name, values in rewards.items()}
        self._latest = {
            "step": [step] * len(prompts),
            "prompt": list(prompts),
            "completion": list(completions),
            **functions,
            **{name: list(values) for name, values in extra.items() if name not in functions},
            "total_reward": list(total_rewards),
            "advantage": list(advantages),
            "arm": list(arms),
        }
        numbers = {*functions, "total_reward", "advantage"}
        write_atomically(
            self._folder / f"completions_{step:05d}.parquet", _parquet(self._latest, numbers)
        )

    def show(self, console: Console | None = None) -> None:
        """Print some of the latest completions and send them to the trackers; once each."""
        if self._latest is None:
            return
        columns, self._latest = self._latest, None
        rows = list(range(len(columns["prompt"])))
        if self._unique_prompts:
            first = {str(prompt): i for i, prompt in reversed(list(enumerate(columns["prompt"])))}
            rows = sorted(first.values())
        wanted = len(rows) if self._num_to_print is None else min(self._num_to_print, len(rows))
        if wanted > 0:
            chosen = [rows[i * len(rows) // wanted] for i in range(wanted)]
            (Console() if console is None else console).print(_panel(columns, chosen))
        for tracker in self._report_to:
            _send(tracker, {name: [values[i] for i in rows] for name, values in columns.items()})


def _free_name(function: str) -> str:
    return f"{function}_reward" if function in OWN_COLUMNS else function


def _parquet(columns: Mapping[str, list[Any]], numbers: set[str]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    arrays = {}
    for name, values in columns.items():
        if name in numbers:
            arrays[name] = pyarrow.array(values, type=pyarrow.float64(), from_pandas=True)
        else:
            arrays[name] = _array([_storable(value) for value in values])
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(arrays), buffer)
    return buffer.getvalue()


def _array(values: list[Any]) -> Any:
    """The values as they are where a column can hold them, else as JSON."""
    import pyarrow

    try:
        return pyarrow.array(values)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, pyarrow.ArrowNotImplementedError):
        return pyarrow.array([json.dumps(value, default=str) for value in values])


def _storable(value: Any) -> Any:
    """A value whose strings are valid UTF-8: a lone surrogate is not."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {str(key): _storable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_storable(item) for item in value]
    return value


def _panel(columns: Mapping[str, list[Any]], rows: Sequence[int]) -> Panel:
    """Prompt, completion, and beside them what was made of it, one name a line."""
    table = Table(show_lines=True)
    for name in ("prompt", "completion"):
        table.add_column(name, overflow="fold", min_width=len(name))
    table.add_column("rewards", overflow="fold", min_width=16)
    judged = [name for name in columns if name not in ("step", "prompt", "completion")]
    for i in rows:
        lines = [Text.assemble((f"{n} ", "dim"), _cell(columns[n][i])) for n in judged]
        cells = (_cell(columns["prompt"][i]), _cell(columns["completion"][i]))
        table.add_row(*cells, Text("\n").join(lines))
    return Panel(table, title=f"step {columns['step'][0]}", expand=False)


def _cell(value: Any) -> Text:
    """Text, never markup or terminal commands: completions are the model's."""
    if value is None:
        return Text("-")
    if isinstance(value, float):
        return Text(f"{value:.2f}")
    if isinstance(value, list) and all(isinstance(m, Mapping) and "role" in m for m in value):
        value = "\n".join(f"{m['role']}: {m.get('content', '')}" for m in value)
    text = str(value)
    if len(text) > SHOWN_CHARACTERS:
        half = SHOWN_CHARACTERS // 2
        text = f"{text[:half]} [{len(text) - 2 * half:,} characters] {text[-half:]}"
    return Text(text.translate(_CONTROLS))


def _send(tracker: str, columns: Mapping[str, list[Any]]) -> None:
    """The rows to a tracker that is running; the integrations of transformers start it."""
    import pandas

    module = sys.modules.get(tracker)
    if module is None or (tracker == "wandb" and module.run is None):
        return
    table = module.Table(dataframe=pandas.DataFrame(columns))
    module.log({"completions": table})
