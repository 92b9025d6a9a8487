"""Reward functions from what a command line or a YAML file says."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from sec_grpo.rewards.weighted import WeightedReward
from sec_grpo.tasks import Task
from sec_grpo.tasks.importing import load

_PAID = ("correct", "well_formed", "malformed", "partial")
_OPTIONS = (*_PAID, "workers", "time_limit", "memory_limit", "progress")


def reward_from(spec: Any, *, evaluation: bool = False) -> Callable[..., Any]:
    """The reward function that `spec` describes.

    Args:
        spec: one of
            "countdown": the reward of that task, as `tasks.get` finds it;
            "module:name" or "file.py:name": a reward function or a task of your own;
            {"name": "countdown", "correct": 1.0, "well_formed": 0.1}: a task's with its
            parameters, those of `TaskReward`;
            [{"name": "countdown"}, {"name": "mine.py:penalty", "weight": 0.1}]: the weighted sum;
            or a mapping or a list written as YAML in a string.
        evaluation: for a task, 1 for a right answer and 0 for others whatever `spec` pays in
            training, unless it has a mapping `evaluation` with `correct`, `well_formed`,
            `malformed` and `partial`.

    Raises:
        ValueError: the text is not YAML, a key or a task is unknown, a value is out of range, or
            a function is not found.
    """
    if isinstance(spec, str) and spec.lstrip()[:1] in ("{", "["):
        spec = _parsed(spec)
    if isinstance(spec, str):
        spec = {"name": spec}
    if isinstance(spec, list):
        return _weighted(spec, evaluation)
    if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
        raise ValueError(
            "a reward must be a task's name, 'module:function', 'file.py:function', a mapping with "
            f"a 'name', or a list of mappings. Got {spec!r:.200}."
        )
    options = dict(spec)
    name = options.pop("name")
    found = _found(name)
    if not isinstance(found, Task):
        _refuse_unknown(options, (), name)
        return found
    return _task_reward(found, options, evaluation)


def rewards_for(rows: Any, spec: Any = None) -> tuple[Any, Any]:
    """The reward functions of training and of evaluation.

    Args:
        rows: the data set to be judged.
        spec: what `reward_from` takes; None: the tasks that the rows name, each its own rows.

    Raises ValueError: as `reward_from`; or the rows name no task.
    """
    from sec_grpo import tasks
    from sec_grpo.tasks.sources import tasks_of

    if spec is not None:
        return reward_from(spec), reward_from(spec, evaluation=True)
    try:
        found = {name: tasks.get(name) for name in tasks_of(rows)}
    except ValueError as error:
        raise ValueError(f"--reward is missing and the data names no task: {error}") from error
    if len(found) == 1 and "ground_truth_json" not in rows.column_names:
        (task,) = found.values()
        return task.reward, task.accuracy
    return (
        [tasks.OneOfSeveral(task.reward, name) for name, task in found.items()],
        [tasks.OneOfSeveral(task.accuracy, name) for name, task in found.items()],
    )


def _parsed(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"reward {text!r:.200} is not valid YAML: {error}") from error


def _found(name: str) -> Any:
    """The task or the function of that name or path."""
    from sec_grpo import tasks

    if ":" not in name:
        return tasks.get(name)
    found = load(name, "reward", "function")
    if isinstance(found, Task) or (isinstance(found, type) and issubclass(found, Task)):
        return tasks.get(name)
    if not callable(found):
        raise ValueError(f"reward {name!r} must be a function or a task. Got {found!r:.80}.")
    return found


def _task_reward(task: Any, options: dict[str, Any], evaluation: bool) -> Any:
    from sec_grpo.tasks import TaskReward

    paid = options.pop("evaluation", None) or {}
    if not isinstance(paid, Mapping):
        raise ValueError(
            f"'evaluation' of a reward must be a mapping with {', '.join(_PAID)}. Got {paid!r}."
        )
    _refuse_unknown(options, (*_OPTIONS, "evaluation"), task.name)
    _refuse_unknown(paid, _PAID, f"{task.name}: evaluation")
    if evaluation:
        options |= {"correct": 1.0, "well_formed": 0.0, "malformed": 0.0, "partial": False, **paid}
        options["name"] = task.accuracy.__name__
    else:
        options.setdefault("well_formed", task.well_formed_reward)
    try:
        return TaskReward(task, **options)
    except TypeError as error:
        raise ValueError(f"reward {task.name!r} with {options}: {error}") from error


def _weighted(spec: list[Any], evaluation: bool) -> WeightedReward:
    parts: dict[Any, float] = {}
    for entry in spec:
        weight = 1.0
        if isinstance(entry, Mapping):
            entry = dict(entry)
            weight = entry.pop("weight", 1.0)
        parts[reward_from(entry, evaluation=evaluation)] = weight
    return WeightedReward(parts)


def _refuse_unknown(options: Mapping[str, Any], known: tuple[str, ...], name: str) -> None:
    for key in options:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            allowed = ", ".join(known) or "'name' only"
            raise ValueError(f"reward {name!r} takes {allowed}. Got {key!r}{hint}")
