"""Reward functions in TRL's signature: calling them, and refusing what they must not return."""

from __future__ import annotations

import asyncio
import copy
import inspect
import math
import os
import threading
import traceback
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np

from sec_grpo.errors import RewardError

RewardFunc = Callable[..., Sequence[float | None]]

# Room for advantages, which the curriculum takes up to 1e30.
_LARGEST = 1e29


def as_reward_functions(reward_funcs: Any, tokenizers: Any = None) -> list[Any]:
    """Reward functions one by one, with reward models, or their names, in `RewardModel`.

    Args:
        reward_funcs: a function, a model, a name, or several.
        tokenizers: of the reward models, one for each of reward_funcs; None loads them.

    Raises:
        ValueError: another number of tokenizers than functions, or a tokenizer for a function.
    """
    single = _is_model(reward_funcs) or callable(reward_funcs)
    single = single or isinstance(reward_funcs, (str, Mapping))
    funcs: list[Any] = [reward_funcs] if single else list(reward_funcs or [])
    if tokenizers is None:
        tokenizers = [None] * len(funcs)
    elif not isinstance(tokenizers, (list, tuple)):
        tokenizers = [tokenizers]
    if len(tokenizers) != len(funcs):
        raise ValueError(
            f"reward_processing_classes must hold one tokenizer for each of the {len(funcs)} "
            f"reward_funcs (None for a function), got {len(tokenizers)}"
        )
    return [_with_model(*pair) for pair in zip(funcs, tokenizers, strict=True)]


def _with_model(func: Any, tokenizer: Any) -> Any:
    if not isinstance(func, str) and not _is_model(func):
        return func
    from huggingface_hub.errors import HFValidationError

    from sec_grpo.rewards.model import RewardModel

    try:
        return RewardModel(func, tokenizer)
    except (OSError, HFValidationError) as error:
        raise ValueError(
            f"reward_funcs: {func!r} cannot be loaded as a reward model ({error}); for a task pass "
            "sec_grpo.rewards.reward_from(name)"
        ) from error


def _is_model(func: Any) -> bool:
    """Whether it is a model of transformers."""
    return hasattr(func, "forward") and hasattr(getattr(func, "config", None), "num_labels")


class RewardFunctions:
    """Several reward functions and their weights.

    Each is called as `f(prompts=..., completions=..., completion_ids=..., <columns>,
    trainer_state=..., log_metric=..., log_extra=...)` with lists of equal length B and returns B
    numbers; None means that the function does not apply to that row. Coroutine functions (`async
    def`, an object with an async `__call__`, and whatever returns an awaitable) are awaited
    together while the others run, in an event loop that stays the same from call to call, so that
    clients may keep their connections.

    Args:
        reward_funcs: one function or several; a reward model or its name stands for one.
        weights: one weight a function; default 1 each.
        tokenizers: of the reward models; see `as_reward_functions`.

    Raises:
        ValueError: no function, something that cannot be called, or weights of a wrong number or
            not finite.
    """

    def __init__(
        self,
        reward_funcs: RewardFunc | Sequence[RewardFunc] | None,
        weights: Sequence[float] | None,
        tokenizers: Any = None,
    ) -> None:
        funcs = as_reward_functions(reward_funcs, tokenizers)
        if not funcs:
            raise ValueError("reward_funcs is empty: pass at least one reward function")
        for func in funcs:
            _check_function(func)
        if weights is not None and len(weights) != len(funcs):
            raise ValueError(
                f"reward_weights must hold one weight per reward function: {len(funcs)} functions, "
                f"{len(weights)} weights"
            )
        if weights is not None and not all(math.isfinite(weight) for weight in weights):
            raise ValueError(f"reward_weights must be finite numbers, got {list(weights)}")
        self.funcs = funcs
        self._loop = _EventLoop()
        self.names = _unique_names(funcs)
        self.weights = np.ones(len(funcs)) if weights is None else np.asarray(weights, float)

    def __call__(
        self,
        prompts: list[Any],
        completions: list[Any],
        completion_ids: list[list[int]],
        columns: dict[str, list[Any]],
        trainer_state: Any = None,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, Sequence[Any]], None] | None = None,
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
            "log_metric": log_metric or _ignore,
            "log_extra": log_extra or _ignore,
            **columns,
        }
        each = np.empty((len(prompts), len(self.funcs)))
        for k, rewards in enumerate(self._results(arguments, columns)):
            each[:, k] = _checked(self.names[k], rewards, completions)
        unscored = np.flatnonzero(np.isnan(each).all(axis=1))
        if unscored.size:
            raise RewardError(
                f"every reward function returned None for completion {unscored[0]}: at least one "
                "must apply to each row"
            )
        total = np.nansum(each * self.weights, axis=1)
        if (too_large := np.flatnonzero(np.abs(total) > _LARGEST)).size:
            raise RewardError(
                f"the weighted sum of the rewards of completion {too_large[0]} is "
                f"{total[too_large[0]]:g}; it must be at most {_LARGEST:g} in size"
            )
        return total, each

    def _results(self, arguments: dict[str, Any], columns: Mapping[str, Any]) -> list[Any]:
        """What each function returned, unchecked."""
        waiting: dict[int, Future[Any]] = {}
        results: list[Any] = [None] * len(self.funcs)
        # Those that wait for others start first; the rest computes meanwhile.
        order = sorted(range(len(self.funcs)), key=lambda k: not _is_async(self.funcs[k]))
        try:
            for k in order:
                with _named(self.names[k], arguments["completions"], columns):
                    results[k] = self.funcs[k](**_own(arguments))
                    if inspect.isawaitable(results[k]):
                        waiting[k] = self._loop.submit(results[k])
            for k in sorted(waiting):
                with _named(self.names[k], arguments["completions"], columns):
                    results[k] = waiting[k].result()
        finally:
            for future in waiting.values():
                future.cancel()
        return results


def _own(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of one function, which may edit its lists and messages in place.

    What it edits reaches neither another function nor the tokens that are trained on.
    """
    own = {name: list(v) if isinstance(v, list) else v for name, v in arguments.items()}
    own["completion_ids"] = [list(ids) for ids in arguments["completion_ids"]]
    for name in ("prompts", "completions"):
        own[name] = copy.deepcopy(arguments[name])
    return own


class _EventLoop:
    """An event loop in a thread of its own: the calling thread may be running one already."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def submit(self, awaitable: Awaitable[Any]) -> Future[Any]:
        """Start awaiting in the loop."""
        return asyncio.run_coroutine_threadsafe(_awaited(awaitable), self._running())

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._pid != os.getpid():
            # A forked process has none of the parent's threads, and perhaps a lock one held.
            self._loop, self._lock, self._pid = None, threading.Lock(), os.getpid()
        with self._lock:
            if self._loop is None:
                loop = asyncio.new_event_loop()
                thread = threading.Thread(
                    target=_run_until_stopped, args=(loop,), name="async rewards", daemon=True
                )
                thread.start()
                weakref.finalize(self, _stop, loop, thread, self._pid)
                self._loop = loop
            return self._loop


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _run_until_stopped(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.close()


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread, owner: int) -> None:
    if os.getpid() == owner and thread.is_alive() and thread is not threading.current_thread():
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=5)


class _named:
    """Turns an exception of a reward function into a RewardError that says whose it is, and where.

    Which row was at fault only the function knows: it judges all of them in one call.
    """

    def __init__(self, name: str, completions: list[Any], columns: Mapping[str, Any]) -> None:
        self._name, self._completions, self._columns = name, completions, columns

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, Exception) and not isinstance(error, asyncio.CancelledError):
            return
        count = len(self._completions)
        first = f", the first {_excerpt(self._completions[0])}," if count else ""
        raise RewardError(
            f"reward function {self._name!r} raised {type(error).__name__}: {error}"
            f"{_place(error)} (called with {count} completions{first} and the columns "
            f"{', '.join(self._columns) or '(none)'}; a reward function must accept **kwargs for "
            "what it does not use)"
        ) from error


def _place(error: BaseException) -> str:
    """Where it was raised, if not already in the call itself."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or frames[-1].filename == __file__:
        return ""
    return f", at {frames[-1].filename}:{frames[-1].lineno}"


def _check_function(func: Any) -> None:
    is_module = hasattr(func, "forward") and hasattr(func, "parameters")
    if not callable(func) or is_module:
        raise ValueError(
            "reward_funcs must be functions (prompts, completions, **columns) -> rewards, or "
            "sequence classifiers of transformers or their names, got "
            f"{type(func).__name__ if is_module else repr(func)}"
        )


def _unwrapped(func: Any) -> Any:
    while isinstance(func, partial):
        func = func.func
    return func


def _is_async(func: Any) -> bool:
    func = _unwrapped(func)
    return inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(
        getattr(func, "__call__", None)  # noqa: B004 - its kind is asked for, not whether it is
    )


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
        if hasattr(reward, "tolist"):
            reward = reward.tolist()
            reward = reward[0] if isinstance(reward, list) and len(reward) == 1 else reward
        if reward is None:
            out[i] = math.nan
        elif not isinstance(reward, (int, float)) or not abs(reward) <= _LARGEST:
            raise RewardError(
                f"reward function {name!r} returned {_excerpt(reward)} for completion {i} "
                f"({_excerpt(completions[i])}); rewards must be finite numbers, at most "
                f"{_LARGEST:g} in size, or None where the function does not apply"
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
        func = _unwrapped(func)
        base = name = str(getattr(func, "__name__", type(func).__name__))
        copies = 2
        while name in names:
            name, copies = f"{base}_{copies}", copies + 1
        names.append(name)
    return names


def _ignore(name: str, value: Any) -> None:
    """Stand-in for `log_metric` and `log_extra` where nothing is logged."""
