"""Tasks: generators of problems, verifiers of answers, and the data loader.

`get("sort")` returns a built-in or registered task, `get("package.module:MyTask")` or
`get("file.py:MyTask")` one of your own. A task's module is imported when it is first asked for.
"""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from sec_grpo.tasks import importing
from sec_grpo.tasks.base import Task, Verdict
from sec_grpo.tasks.loader import GYM_PREFIX, load_dataset_file, task_of
from sec_grpo.tasks.mixture import OneOfSeveral, mix
from sec_grpo.tasks.numbered import NumberedTask
from sec_grpo.tasks.reward import TaskReward
from sec_grpo.tasks.sources import load_rows

__all__ = [
    "NumberedTask",
    "OneOfSeveral",
    "Task",
    "TaskReward",
    "Verdict",
    "get",
    "load_dataset_file",
    "load_rows",
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
# What `get` returns without options: the first that was asked for, or `prefer` said.
_instances: dict[str, Task] = {}


def names() -> tuple[str, ...]:
    """The registered names, sorted."""
    return tuple(sorted(_registry))


def register(name: str, task: str | type[Task] | Task, *, replace: bool = False) -> None:
    """Make `get(name)` return `task`.

    Args:
        name: a non-empty name without ":".
        task: an instance, a class, or a path to either ("package.module:Name" or "file.py:Name",
            imported when first asked for).
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
    _instances.pop(name, None)


def get(name: str, **options: Any) -> Task:
    """The task registered as `name`, or the one at a path.

    Args:
        name: a registered name; "reasoning_gym/" and the name of one of its data sets; or
            "package.module:Name" or "file.py:Name", where Name is a Task class or an instance.
        options: arguments of the task's class. Without any, every call with the same registered
            name returns the same instance; otherwise, and for a class named by its path, the task
            is made anew.

    Raises:
        ValueError: no such task, module, file or attribute (the message lists the known names), or
            options that the class does not take.
        TypeError: the path names something that is not a task.
    """
    if ":" in name:
        return _made(importing.load(name, "task", "class"), name, options)
    if name in _instances and not options:
        return _instances[name]
    if name.startswith(GYM_PREFIX):
        task = _gym_task(name, options)
        if not options:
            _instances[name] = task
        return task
    if name not in _registry:
        near = difflib.get_close_matches(name, _registry, n=1)
        raise ValueError(
            f"unknown task {name!r}{f'; did you mean {near[0]!r}?' if near else '.'} "
            f"Known: {', '.join(names())}, and reasoning_gym/... for its data sets. "
            "A task of your own is named by its path: 'package.module:Name' or 'file.py:Name'."
        )
    entry = _registry[name]
    if isinstance(entry, str):
        entry = importing.load(entry, "task", "class")
    task = _made(entry, name, options)
    if not options:
        _instances[name] = task
    return task


def prefer(task: Task) -> None:
    """Make `get(task.name)` without options return `task`; the name stays what it was."""
    _instances[task.name] = task


def _gym_task(name: str, options: dict[str, Any]) -> Task:
    from sec_grpo.tasks.gym import GymTask

    return GymTask(name.removeprefix(GYM_PREFIX), **options)


def _made(found: Any, name: str, options: dict[str, Any]) -> Task:
    """The task that a class or an instance stands for."""
    if isinstance(found, type) and issubclass(found, Task):
        try:
            inspect.signature(found).bind(**options)
        except TypeError as error:
            raise ValueError(f"task {name!r} with the options {options}: {error}") from error
        return found(**options)
    if not isinstance(found, Task):
        raise TypeError(f"{name!r} must be a Task or a Task class. Got {found!r}.")
    if options:
        raise ValueError(
            f"task {name!r} is an instance already and takes no options. Got {', '.join(options)}."
        )
    return found
