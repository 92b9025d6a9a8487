"""Tasks: generators of problems, verifiers of answers, and the data loader.

`get("sort")` returns a built-in or registered task; `get("package.module:MyTask")` one of your
own. A task's module is imported when it is first asked for.
"""

from __future__ import annotations

import importlib

from sec_grpo.tasks.base import Task, TaskReward, Verdict
from sec_grpo.tasks.loader import load_dataset_file, task_of
from sec_grpo.tasks.mixture import OneOfSeveral, mix

__all__ = [
    "OneOfSeveral",
    "Task",
    "TaskReward",
    "Verdict",
    "get",
    "load_dataset_file",
    "mix",
    "names",
    "register",
    "task_of",
]

_registry: dict[str, str | type[Task] | Task] = {
    "arc_1d": "sec_grpo.tasks.puzzles:ARC1DTask",
    "countdown": "sec_grpo.tasks.countdown:CountdownTask",
    "math": "sec_grpo.tasks.mathematics:MathTask",
    "sort": "sec_grpo.tasks.sort:SortTask",
    "zebra": "sec_grpo.tasks.puzzles:ZebraTask",
}


def names() -> tuple[str, ...]:
    """The registered names, sorted."""
    return tuple(sorted(_registry))


def register(name: str, task: str | type[Task] | Task, *, replace: bool = False) -> None:
    """Make `get(name)` return `task`.

    Args:
        name: a non-empty name without ":".
        task: an instance, a class that needs no arguments, or a dotted path to either
            ("package.module:Name", imported when first asked for).
        replace: allow a name that is already taken.

    Raises:
        ValueError: the name is empty, holds ":" or is taken.
        TypeError: `task` is none of the above.
    """
    if not name or ":" in name:
        raise ValueError(f"a task's name must be non-empty and hold no ':'. Got {name!r}.")
    if name in _registry and not replace:
        raise ValueError(f"task {name!r} is registered already; pass replace=True to replace it.")
    if not (isinstance(task, (str, Task)) or (isinstance(task, type) and issubclass(task, Task))):
        raise TypeError(f"task must be a Task, a Task class or a dotted path. Got {task!r}.")
    _registry[name] = task


def get(name: str) -> Task:
    """The task registered as `name`, or the one at a dotted path "package.module:Name".

    Every call with the same registered name returns the same instance; a class named by a dotted
    path is instantiated anew.

    Raises:
        ValueError: no such task, module or attribute; the message lists the known names.
        TypeError: the dotted path names something that is not a task.
    """
    if ":" in name:
        return _load(name)
    if name not in _registry:
        raise ValueError(
            f"unknown task {name!r}. Known: {', '.join(names())}. "
            "A task of your own is named by its path: 'package.module:Name'."
        )
    entry = _registry[name]
    if not isinstance(entry, Task):
        entry = _load(entry) if isinstance(entry, str) else entry()
        _registry[name] = entry
    return entry


def _load(path: str) -> Task:
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ModuleNotFoundError, ValueError) as error:
        # A module that the user's own module fails to import is not ours to rename.
        missing = getattr(error, "name", None)
        if missing is not None and not f"{module_name}.".startswith(f"{missing}."):
            raise
        raise ValueError(
            f"cannot import module {module_name!r} of task {path!r}; is it installed or on "
            f"PYTHONPATH? Registered tasks: {', '.join(names())}."
        ) from error
    if not hasattr(module, attribute):
        raise ValueError(f"module {module_name!r} has no {attribute!r} (task {path!r}).")
    found = getattr(module, attribute)
    if isinstance(found, type) and issubclass(found, Task):
        found = found()
    if not isinstance(found, Task):
        raise TypeError(f"{path!r} must be a Task or a Task class. Got {found!r}.")
    return found
