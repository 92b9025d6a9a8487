"""Reward functions from what a command line or a YAML file says."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sec_grpo.rewards.weighted import WeightedReward

_OPTIONS = ("correct", "well_formed", "workers", "time_limit", "memory_limit", "progress")


def reward_from(spec: Any, *, evaluation: bool = False) -> Callable[..., Any]:
    """The reward function that `spec` describes.

    Args:
        spec: one of
            "countdown": the reward of that task, as `tasks.get` finds it;
            "module:function" or "file.py:function": a reward function of your own;
            {"name": "countdown", "correct": 1.0, "well_formed": 0.1}: a task's with its
            parameters, those of `TaskReward`;
            [{"name": "countdown"}, {"name": "mine.py:penalty", "weight": 0.1}]: the weighted sum;
            or a mapping or a list written as YAML in a string.
        evaluation: for a task, 1 for a right answer and 0 for others whatever `spec` pays in
            training, unless it has a mapping `evaluation` with `correct` and `well_formed`.

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
    task = _task(name)
    if task is None:
        _refuse_unknown(options, (), name)
        return load_function(name)
    return _task_reward(task, options, evaluation)


def load_function(spec: str) -> Callable[..., Any]:
    """The function named `module:function` or `file.py:function`.

    Raises ValueError: it cannot be imported, or is not there.
    """
    source, _, name = spec.rpartition(":")
    try:
        if source.endswith(".py"):
            found = importlib.util.spec_from_file_location(Path(source).stem, source)
            if found is None or found.loader is None or not Path(source).is_file():
                raise ImportError(f"there is no file {source}")
            module = importlib.util.module_from_spec(found)
            found.loader.exec_module(module)
        else:
            module = importlib.import_module(source)
    except ImportError as error:
        raise ValueError(f"reward {spec!r} cannot be imported: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"reward {spec!r}: {source} has no function {name!r}")
    return function


def _parsed(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"reward {text!r:.200} is not valid YAML: {error}") from error


def _task(name: str) -> Any:
    """The task of that name or path; None where the path names another thing."""
    from sec_grpo import tasks

    source, _, attribute = name.rpartition(":")
    if not source:
        return tasks.get(name)
    if source.endswith(".py"):
        return None
    found = getattr(_imported(source, name), attribute, None)
    if isinstance(found, tasks.Task) or (isinstance(found, type) and issubclass(found, tasks.Task)):
        return tasks.get(name)
    return None


def _imported(source: str, spec: str) -> Any:
    try:
        return importlib.import_module(source)
    except ImportError as error:
        raise ValueError(f"reward {spec!r} cannot be imported: {error}") from error


def _task_reward(task: Any, options: dict[str, Any], evaluation: bool) -> Any:
    from sec_grpo.tasks import TaskReward

    paid = options.pop("evaluation", None) or {}
    if not isinstance(paid, Mapping):
        raise ValueError(
            "'evaluation' of a reward must be a mapping with 'correct' and 'well_formed'. "
            f"Got {paid!r}."
        )
    _refuse_unknown(options, (*_OPTIONS, "evaluation"), task.name)
    _refuse_unknown(paid, ("correct", "well_formed"), f"{task.name}: evaluation")
    if evaluation:
        options |= {"correct": 1.0, "well_formed": 0.0, **paid}
        options["name"] = f"{task.name}_accuracy"
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
