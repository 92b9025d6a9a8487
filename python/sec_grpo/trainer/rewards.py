"""Reward functions in TRL's signature: calling them, and refusing what they must not return."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from sec_grpo.errors import RewardError

RewardFunc = Callable[..., Sequence[float | None]]

# Rewards are gathered and normalised in float32.
_LARGEST = float(np.finfo(np.float32).max)


class RewardFunctions:
    """Several reward functions and their weights.

    Each is called as `f(prompts=..., completions=..., completion_ids=..., <columns>,
    trainer_state=..., log_metric=...)` with lists of equal length B and returns B numbers; None
    means that the function does not apply to that row. Coroutine functions (`async def`, or an
    object with an async `__call__`) are awaited together, in an event loop of their own.

    Args:
        reward_funcs: one function or several.
        weights: one weight a function; default 1 each.

    Raises:
        ValueError: no function, something that cannot be called, or weights of a wrong number or
            not finite.
    """

    def __init__(
        self, reward_funcs: RewardFunc | Sequence[RewardFunc], weights: Sequence[float] | None
    ) -> None:
        funcs = [reward_funcs] if callable(reward_funcs) else list(reward_funcs or [])
        if not funcs:
            raise ValueError("reward_funcs is empty: pass at least one reward function")
        for func in funcs:
            if not callable(func):
                raise ValueError(
                    f"reward_funcs must be functions (prompts, completions, **columns) -> rewards, "
                    f"got {func!r}"
                )
        if weights is not None and len(weights) != len(funcs):
            raise ValueError(
                f"reward_weights must hold one weight per reward function: {len(funcs)} functions, "
                f"{len(weights)} weights"
            )
        if weights is not None and not all(math.isfinite(weight) for weight in weights):
            raise ValueError(f"reward_weights must be finite numbers, got {list(weights)}")
        self._funcs = funcs
        self.names = _unique_names(funcs)
        self._weights = np.ones(len(funcs)) if weights is None else np.asarray(weights, float)

    def __call__(
        self,
        prompts: list[Any],
        completions: list[Any],
        completion_ids: list[list[int]],
        columns: dict[str, list[Any]],
        trainer_state: Any = None,
        log_metric: Callable[[str, float], None] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rewards of B completions.

        Returns:
            total (B,) float64: the weighted sum over the functions that apply; each (B, F)
            float64: every function's own reward, NaN where it does not apply.

        Raises:
            RewardError: a function raised or returned a wrong number of rewards, NaN, an infinity
                or a non-number; or no function applies to a row.
        """
        arguments = {
            "prompts": prompts,
            "completions": completions,
            "completion_ids": completion_ids,
            "trainer_state": trainer_state,
            "log_metric": log_metric or _ignore_metric,
            **columns,
        }
        waiting = [k for k, func in enumerate(self._funcs) if _is_async(func)]
        results: dict[int, Any] = dict(
            zip(waiting, _await_all([self._funcs[k] for k in waiting], arguments), strict=True)
        )
        each = np.empty((len(prompts), len(self._funcs)))
        for k, (name, func) in enumerate(zip(self.names, self._funcs, strict=True)):
            try:
                rewards = results[k] if k in results else func(**arguments)
                if isinstance(rewards, Exception):
                    raise rewards
            except Exception as error:
                raise RewardError(
                    f"reward function {name!r} raised {type(error).__name__}: {error} (called "
                    f"with {len(prompts)} completions and the columns {', '.join(columns)}; a "
                    "reward function must accept **kwargs for those it does not use)"
                ) from error
            each[:, k] = _checked(name, rewards, completions)
        unscored = np.flatnonzero(np.isnan(each).all(axis=1))
        if unscored.size:
            raise RewardError(
                f"every reward function returned None for completion {unscored[0]}: at least one "
                "must apply to each row"
            )
        return np.nansum(each * self._weights, axis=1), each


def _is_async(func: Any) -> bool:
    return inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(
        getattr(func, "__call__", None)  # noqa: B004 - its kind is asked for, not whether it is
    )


def _await_all(funcs: Sequence[Any], arguments: dict[str, Any]) -> list[Any]:
    """What each coroutine function returns, or the exception that it raises."""
    if not funcs:
        return []

    async def one(func: Any) -> Any:
        return await func(**arguments)

    async def together() -> list[Any]:
        return await asyncio.gather(*map(one, funcs), return_exceptions=True)

    # In a thread of its own: this one may be running a loop already, as a notebook's does.
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="rewards") as thread:
        return thread.submit(asyncio.run, together()).result()


def _checked(name: str, rewards: Any, completions: list[Any]) -> np.ndarray:
    """The returned rewards as (B,) float64, None as NaN."""
    if hasattr(rewards, "tolist"):
        rewards = rewards.tolist()
    if not isinstance(rewards, (list, tuple)):
        raise RewardError(
            f"reward function {name!r} must return a list of {len(completions)} numbers, got "
            f"{type(rewards).__name__}"
        )
    if len(rewards) != len(completions):
        raise RewardError(
            f"reward function {name!r} returned {len(rewards)} rewards for {len(completions)} "
            "completions; it must return one per completion, in order"
        )
    out = np.empty(len(rewards))
    for i, reward in enumerate(rewards):
        if hasattr(reward, "item"):
            reward = reward.item()
        if reward is None:
            out[i] = math.nan
        elif not isinstance(reward, (int, float)) or not abs(reward) <= _LARGEST:
            raise RewardError(
                f"reward function {name!r} returned {reward!r} for completion {i} "
                f"({_excerpt(completions[i])}); rewards must be finite numbers (float32), or "
                "None where the function does not apply"
            )
        else:
            out[i] = reward
    return out


def _excerpt(completion: Any, length: int = 80) -> str:
    text = repr(completion)
    return text if len(text) <= length else text[:length] + "..."


def _unique_names(funcs: Sequence[Any]) -> list[str]:
    names: list[str] = []
    for func in funcs:
        base = name = str(getattr(func, "__name__", type(func).__name__))
        copies = 2
        while name in names:
            name, copies = f"{base}_{copies}", copies + 1
        names.append(name)
    return names


def _ignore_metric(name: str, value: float) -> None:
    """Stand-in for `log_metric` where nothing is logged."""
