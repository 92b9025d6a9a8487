"""Rows from what a command line or a YAML file says: a file, a data set, a task, or several."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sec_grpo.tasks.base import Row, Task
from sec_grpo.tasks.loader import GYM_PREFIX, load_dataset_file, task_of
from sec_grpo.tasks.mixture import mix
from sec_grpo.tasks.numbered import NumberedTask

if TYPE_CHECKING:
    import datasets

# Added to the seed of problems to evaluate on, so that they differ from those trained on.
_EVALUATION_SEED = 1_000_000


def load_rows(source: Any, seed: int = 0, *, evaluation: bool = False) -> datasets.Dataset:
    """The rows that `source` names.

    Args:
        source: one of
            a file, a folder of `save_to_disk` or a Hub name, as `load_dataset_file` takes them;
            a task that generates problems, by its name or path;
            a mapping with the `name` of either and further arguments: `split`, `config` and
            `columns` of a data set; `n_per_level`, `levels` and the options of a task, as
            {"name": "zebra", "n_per_level": 50, "levels": [3, 4]};
            several joined by commas or in a list, which are mixed (see `mix`);
            or a mapping or a list written as YAML in a string.
            An existing path wins over a name.
        seed: of generated problems.
        evaluation: of a task, fewer problems and the held-out levels too, none of which training
            with the same seed has (where the level is not smaller than both together).

    Raises:
        ValueError, FileNotFoundError: as `load_dataset_file`, `get` and `mix` raise them.
    """
    if isinstance(source, str):
        source = _parsed(source)
    if isinstance(source, list):
        return mix([load_rows(part, seed, evaluation=evaluation) for part in source])
    options = dict(source) if isinstance(source, Mapping) else {"name": source}
    name = options.pop("name", None)
    if not isinstance(name, (str, Path)) or not str(name).strip():
        raise ValueError(
            "data must be a file, a data set's or a task's name, a mapping with a 'name', or a "
            f"list of those. Got {source!r:.200}."
        )
    if Path(name).exists() or not _is_task(str(name)):
        unknown = options.keys() - {"split", "config", "columns"}
        if unknown:
            raise ValueError(
                f"data {str(name)!r} is no task and takes split, config and columns. Got "
                f"{', '.join(sorted(unknown))}."
            )
        return load_dataset_file(name, **options)
    return _generated(str(name), options, seed, evaluation)


def tasks_of(rows: datasets.Dataset) -> list[str]:
    """The names of the tasks that verify the rows, sorted.

    Raises ValueError: the rows do not say, or no registered task fits.
    """
    column = next((name for name in ("task", "data_source") if name in rows.column_names), None)
    if column is None:
        return [task_of(rows[0])]
    return sorted({task_of({column: value}) for value in rows.unique(column)})


def _parsed(source: str) -> Any:
    if source.lstrip()[:1] in ("{", "[") and not Path(source).exists():
        import yaml

        try:
            return yaml.safe_load(source)
        except yaml.YAMLError as error:
            raise ValueError(f"data {source!r:.200} is not valid YAML: {error}") from error
    if "," in source and not Path(source).exists():
        return [part.strip() for part in source.split(",") if part.strip()]
    return source


def _is_task(name: str) -> bool:
    from sec_grpo import tasks

    return ":" in name or name in tasks.names() or name.startswith(GYM_PREFIX)


def _generated(name: str, options: dict[str, Any], seed: int, evaluation: bool) -> datasets.Dataset:
    from sec_grpo import tasks

    chosen = {key: options.pop(key) for key in ("n_per_level", "levels") if key in options}
    task = tasks.get(name, **options)
    if not task.name.startswith(GYM_PREFIX):
        _make_known(task, name, changed=bool(options))
    if not evaluation:
        count = chosen.get("n_per_level", task.prompts_per_level)
        levels = chosen.get("levels", task.levels)
        return task.dataset(count, seed, levels, cache=True, progress=True)
    count = chosen.get("n_per_level", task.eval_prompts_per_level)
    levels = chosen.get("levels", (*task.levels, *task.held_out_levels))
    return task.dataset(
        count,
        seed + _EVALUATION_SEED,
        levels,
        exclude=_trained_on(task, count, seed),
        cache=True,
        progress=True,
    )


def _make_known(task: Task, name: str, *, changed: bool) -> None:
    """See to it that rows with the task's name are judged by it, with the options it was given."""
    from sec_grpo import tasks

    if task.name not in tasks.names():
        tasks.register(task.name, task)
    known = type(tasks.get(task.name))
    if known is not type(task):
        raise ValueError(
            f"data {name!r}: the task's name {task.name!r} is that of {known.__module__}."
            f"{known.__qualname__}, which would judge its rows; give it another `name`"
        )
    if changed:
        tasks.prefer(task)


def _trained_on(task: Task, count: int, seed: int) -> list[Row]:
    """The problems of training, of the levels that have more than those and `count` others.

    Where problems take long to make, there are too many for two seeds to share one.
    """
    if isinstance(task, NumberedTask):
        return []
    trained = task.prompts_per_level
    known: list[Row] = []
    for level in task.levels:
        rows = task.generate(level, trained + count, seed)
        if len({task.key(row) for row in rows}) == trained + count:
            known += rows[:trained]
    return known
