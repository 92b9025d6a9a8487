"""A weighted sum of reward functions that is itself one, and logs each part apart."""

from __future__ import annotations

import asyncio
import inspect
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from sec_grpo.errors import RewardError

RewardFunc = Callable[..., Any]


class WeightedReward:
    """sum_k weight_k * reward_k as one reward function in TRL's signature.

    A part that returns None for a row does not count there; a row where none counts gets None.
    With `log_metric`, the mean and the standard deviation of each part, over the rows where it
    counts and before its weight, are logged as `rewards/{part}/mean` and `rewards/{part}/std`.

    With a coroutine function among the parts the sum is one too: those are awaited together,
    while the others run in a thread.

    Args:
        parts: weights by part: a task's name (its training reward) or a reward function.
        name: becomes `__name__`, under which trainers log the sum.

    Raises:
        ValueError: no part, an unknown task, or a weight that is not a finite number.
        TypeError: a part is neither a string nor callable.
    """

    def __new__(cls, parts: Mapping[Any, float], name: str = "weighted_reward") -> WeightedReward:
        # A type of its own, because whether a function is async is asked of its type.
        is_async = isinstance(parts, Mapping) and any(map(_is_async, parts))
        return super().__new__(_AsyncWeightedReward if is_async else cls)

    def __init__(
        self, parts: Mapping[str | RewardFunc, float], name: str = "weighted_reward"
    ) -> None:
        if not isinstance(parts, Mapping) or not parts:
            raise ValueError(
                "parts must map at least one task's name or reward function to its weight. "
                f"Got {parts!r:.80}."
            )
        self._parts: list[tuple[str, RewardFunc, float]] = []
        for part, weight in parts.items():
            func = _function(part)
            if isinstance(weight, bool) or not isinstance(weight, (int, float)):
                raise ValueError(f"the weight of {part!r} must be a number. Got {weight!r}.")
            if not math.isfinite(weight):
                raise ValueError(f"the weight of {part!r} must be finite. Got {weight!r}.")
            self._parts.append((self._unused_name(func), func, float(weight)))
        self.__name__ = name

    @property
    def names(self) -> list[str]:
        """The names under which the parts are logged."""
        return [name for name, _, _ in self._parts]

    def __call__(
        self, prompts: Any, completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """The sum for each completion.

        Raises RewardError: a part raised, or did not return one finite number or None for each.
        """
        found = []
        for name, func, _ in self._parts:
            with _blame(name):
                found.append(func(prompts=prompts, completions=completions, **columns))
        return self._sum(found, completions, columns.get("log_metric"))

    def _unused_name(self, func: RewardFunc) -> str:
        base = name = str(getattr(func, "__name__", type(func).__name__))
        copies = 2
        while name in self.names:
            name, copies = f"{base}_{copies}", copies + 1
        return name

    def _sum(
        self, found: Sequence[Any], completions: Sequence[Any], log_metric: Any
    ) -> list[float | None]:
        totals: list[float | None] = [None] * len(completions)
        for (name, _, weight), returned in zip(self._parts, found, strict=True):
            rewards = _checked(name, returned, len(completions))
            counted = [reward for reward in rewards if reward is not None]
            if log_metric is not None and counted:
                log_metric(f"rewards/{name}/mean", statistics.fmean(counted))
                log_metric(f"rewards/{name}/std", statistics.pstdev(counted))
            for i, reward in enumerate(rewards):
                if reward is not None:
                    totals[i] = (totals[i] or 0.0) + weight * reward
        return totals

    def __repr__(self) -> str:
        parts = ", ".join(f"{name}: {weight:g}" for name, _, weight in self._parts)
        return f"WeightedReward({{{parts}}})"


class _AsyncWeightedReward(WeightedReward):
    async def __call__(  # type: ignore[override]
        self, prompts: Any, completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        async def one(name: str, func: RewardFunc) -> Any:
            call = partial(func, prompts=prompts, completions=completions, **columns)
            with _blame(name):
                return await (call() if _is_async(func) else asyncio.to_thread(call))

        found = await asyncio.gather(*(one(name, func) for name, func, _ in self._parts))
        return self._sum(found, completions, columns.get("log_metric"))


class _blame:
    """Turns an exception into a RewardError that names the part."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception):
            raise RewardError(
                f"part {self._name!r} of a weighted reward raised {type(error).__name__}: {error}"
            ) from error


def _function(part: Any) -> RewardFunc:
    if isinstance(part, str):
        from sec_grpo import tasks

        return tasks.get(part).reward
    if not callable(part):
        raise TypeError(
            f"a part must be a task's name or a reward function. Got {type(part).__name__}."
        )
    return part


def _is_async(part: Any) -> bool:
    while isinstance(part, partial):
        part = part.func
    return inspect.iscoroutinefunction(part) or inspect.iscoroutinefunction(
        getattr(type(part), "__call__", None)  # noqa: B004 - its kind is asked for
    )


def _checked(name: str, rewards: Any, count: int) -> list[float | None]:
    if hasattr(rewards, "tolist"):
        rewards = rewards.tolist()
    if not isinstance(rewards, (list, tuple)) or len(rewards) != count:
        what = f"{len(rewards)}" if isinstance(rewards, (list, tuple)) else type(rewards).__name__
        raise RewardError(
            f"part {name!r} of a weighted reward must return a list of {count} numbers, one per "
            f"completion. Got {what}."
        )
    out: list[float | None] = []
    for i, reward in enumerate(rewards):
        if hasattr(reward, "item"):
            reward = reward.item()
        if reward is not None and not (isinstance(reward, (int, float)) and math.isfinite(reward)):
            raise RewardError(
                f"part {name!r} of a weighted reward returned {reward!r} for completion {i}; "
                "rewards must be finite numbers, or None where the function does not apply"
            )
        out.append(None if reward is None else float(reward))
    return out
