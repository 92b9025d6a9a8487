"""The hooks through which every strategy, built in or one's own, steers a curriculum.

K arms, D arms that occur in a batch, B prompts a batch, G rollouts a prompt.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sec_grpo import _core
from sec_grpo.curriculum._elementary import log
from sec_grpo.curriculum._labels import Label


class Feedback:
    """What the rollouts of one batch say, as given and reduced per arm.

    Attributes:
        step: number of draws made so far.
        indices: (B,) int64 prompts of the batch.
        advantages: (B, G) float32 or float64, or None.
        rewards: (B, G) float32 or float64, or None.
    """

    __slots__ = ("_engine", "_reduction", "advantages", "indices", "rewards", "step")

    def __init__(
        self,
        engine: _core.Engine,
        reduction: _core.Reduction,
        step: int,
        indices: NDArray[np.int64],
        advantages: NDArray[Any] | None,
        rewards: NDArray[Any] | None,
    ) -> None:
        self._engine = engine
        self._reduction = reduction
        self.step = step
        self.indices = indices
        self.advantages = advantages
        self.rewards = rewards

    @property
    def arms(self) -> NDArray[np.int64]:
        """(D,) int64 numbers of the arms in the batch, in order of first occurrence."""
        return self._reduction.arms

    @property
    def groups(self) -> NDArray[np.int64]:
        """(D,) int64 number of prompts of each of `arms` in the batch."""
        return self._reduction.groups

    @property
    def abs_advantage(self) -> NDArray[np.float64] | None:
        """(D,) float64 mean |A| over all rollouts of each of `arms`; None without advantages."""
        return self._reduction.abs_advantage

    @property
    def reward(self) -> NDArray[np.float64] | None:
        """(D,) float64 mean reward over all rollouts of each of `arms`; None without rewards."""
        return self._reduction.reward

    @property
    def dead_groups(self) -> NDArray[np.float64]:
        """(D,) float64 share of the groups of each of `arms` that teach nothing.

        A group does when all its rewards are equal or, without rewards, all advantages are zero.
        """
        return self._reduction.dead_groups

    def arm_indices(self) -> NDArray[np.int64]:
        """(B,) int64 arm number of each prompt of the batch."""
        return self._engine.arm_indices(self.indices)

    def td_update(self, *, alpha: float, temperature: float, undrawn: str = "keep") -> None:
        """Update the scores Q in the core and draw from softmax(Q / temperature).

        Q(c) <- alpha r(c) + (1 - alpha) Q(c), r(c) the mean |A| of the arm in this batch; arms
        outside the batch keep Q ("keep") or take r = 0 ("decay"). Only the drawn arms cost time
        with "keep". Raises ValueError without advantages or for parameters out of range.
        """
        self._engine.td_update(self._reduction, alpha, temperature, undrawn == "decay")


class Strategy:
    """Base class: override the hooks that the strategy needs; none is mandatory.

    A hook that returns log-weights, a (K,) array of finite numbers or -inf, sets the
    probabilities of the next draws to p(c) = exp(w(c)) / sum_i exp(w(i)) over the arms that have
    prompts; -inf gives probability 0. A hook that returns None leaves them as they are. Until a
    hook returns some, all arms that have prompts are equally likely.

    Parameters belong to the constructor; a frozen dataclass gives them for nothing, and they are
    compared when a state is loaded. What changes while training belongs into `self.memory`,
    which is saved and restored with the curriculum. A curriculum binds a copy of the strategy,
    so one object can be given to several curricula.

    A strategy that prefers the arms with the fewest dead groups::

        @dataclass(frozen=True)
        class FewestDead(Strategy):
            sharpness: float = 4.0

            def on_bind(self, arms, sizes):
                self.memory["dead"] = np.zeros(len(arms))

            def observe(self, feedback):
                self.memory["dead"][feedback.arms] = feedback.dead_groups
                return -self.sharpness * self.memory["dead"]

            def values(self):
                return self.memory["dead"]
    """

    _engine: _core.Engine
    _arms: tuple[Label, ...]
    _sizes: NDArray[np.int64]
    _memory: dict[str, Any]
    _cache: dict[str, Any]
    _sizes_before: NDArray[np.int64]

    @property
    def name(self) -> str:
        """Name under which states and messages know the strategy."""
        return type(self).__name__

    def parameters(self) -> dict[str, Any]:
        """What distinguishes two strategies of this class; the fields of a dataclass."""
        if not dataclasses.is_dataclass(self):
            return {}
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @property
    def arms(self) -> tuple[Label, ...]:
        """Labels of the arms, once bound."""
        return self._arms

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(K,) int64 number of prompts of each arm, once bound."""
        return self._sizes

    @property
    def seed(self) -> int:
        """Seed of the curriculum, once bound."""
        return self._engine.seed

    @property
    def memory(self) -> dict[str, Any]:
        """What the strategy keeps between steps, once bound: saved with the curriculum."""
        return self._memory

    @property
    def cache(self) -> dict[str, Any]:
        """What follows from the arms and their sizes, for `on_bind` to fill: not saved.

        It is empty whenever `on_bind` is called, which is also when prompts were added.
        """
        return self._cache

    def scores(self) -> NDArray[np.float64]:
        """(K,) float64 scores in the core: Q after `Feedback.td_update`, else log-weights."""
        return self._engine.scores()

    def on_bind(self, arms: tuple[Label, ...], sizes: NDArray[np.int64]) -> ArrayLike | None:
        """Called when a curriculum takes the strategy; returns the first log-weights or None."""
        return None

    def before_draw(self, step: int) -> ArrayLike | None:
        """Called before draw number `step` (from 0); returns its log-weights or None."""
        return None

    def after_draw(self, step: int) -> ArrayLike | None:
        """Called when `step` draws have been made; returns the next log-weights or None."""
        return None

    def observe(self, feedback: Feedback) -> ArrayLike | None:
        """Called with the rollouts of a batch; returns the next log-weights or None.

        An exception raised here refuses the batch: the curriculum records nothing of it.
        """
        return None

    def on_grow(self, step: int) -> ArrayLike | None:
        """Called when prompts were added, after `step` draws; returns log-weights or None.

        `arms` and `sizes` hold the new arms already, which come last, and so does the memory:
        its arrays with one row an arm have kept theirs and got those of a new arm from
        `on_bind`. By default the new arms weigh as much as those that are drawn do on average,
        until the next log-weights come. An exception raised here refuses the prompts.
        """
        return self._mean_for_new()

    def values(self) -> ArrayLike | None:
        """The (K,) numbers that the strategy holds of the arms, or None when it holds none."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """What to save: plain objects and numeric numpy arrays, by default the memory."""
        return self.memory

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave, on a freshly bound copy of the strategy.

        By default into the memory. Raises ValueError for a state that lacks what `on_bind` put
        there, or holds arrays of another kind or for another number of arms.
        """
        num_arms = len(self._arms)
        for name, fresh in self.memory.items():
            if name not in state:
                raise ValueError(f"the memory must hold {name!r}, which is missing")
            saved = state[name]
            if not isinstance(fresh, np.ndarray):
                continue
            if not isinstance(saved, np.ndarray) or saved.dtype.kind != fresh.dtype.kind:
                raise ValueError(
                    f"memory[{name!r}] must be an array of {fresh.dtype}, got {saved!r:.60}"
                )
            one_an_arm = fresh.shape[:1] == (num_arms,)
            if fresh.ndim != saved.ndim or (one_an_arm and fresh.shape != saved.shape):
                raise ValueError(
                    f"memory[{name!r}] must have shape {fresh.shape}, got {saved.shape}"
                )
        self.memory.clear()
        self.memory.update(state)

    def _mean_for_new(self) -> NDArray[np.float64]:
        """(K,) log-weights as they are, arms new or without prompts before at their mean weight."""
        known = np.flatnonzero(self._sizes_before)
        probabilities = self._engine.probabilities()[known]
        weights = np.full(len(self._arms), -float(log(np.count_nonzero(probabilities))))
        weights[known] = log(probabilities)
        return weights

    def _grown(
        self, arms: tuple[Label, ...], sizes: NDArray[np.int64], num_arms_before: int, step: int
    ) -> Strategy:
        """A copy over the grown arms, its memory carried over; this one stays as it is."""
        grown = copy.copy(self)
        grown._bind(self._engine, arms, sizes)
        fresh = grown._memory
        for name, old in self._memory.items():
            new = fresh.get(name)
            if not isinstance(old, np.ndarray):
                fresh[name] = copy.deepcopy(old)
            elif isinstance(new, np.ndarray) and (
                new.shape == (len(arms), *old.shape[1:]) and len(old) == num_arms_before
            ):
                new[:num_arms_before] = old
            else:
                fresh[name] = old.copy()
        object.__setattr__(grown, "_sizes_before", self._sizes)
        return grown

    def _bind(
        self, engine: _core.Engine, arms: tuple[Label, ...], sizes: NDArray[np.int64]
    ) -> ArrayLike | None:
        self._attach(engine, arms, sizes)
        return self.on_bind(arms, sizes)

    def _bind_for_state(
        self, engine: _core.Engine, arms: tuple[Label, ...], sizes: NDArray[np.int64]
    ) -> None:
        """`_bind` before `load_state_dict`: the first log-weights do not matter."""
        self._bind(engine, arms, sizes)

    def _attach(
        self, engine: _core.Engine, arms: tuple[Label, ...], sizes: NDArray[np.int64]
    ) -> None:
        # object.__setattr__: the dataclass of a strategy may be frozen.
        object.__setattr__(self, "_engine", engine)
        object.__setattr__(self, "_arms", arms)
        object.__setattr__(self, "_sizes", sizes)
        object.__setattr__(self, "_memory", {})
        object.__setattr__(self, "_cache", {})
