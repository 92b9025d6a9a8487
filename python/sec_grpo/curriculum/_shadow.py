"""A strategy bound to an engine of its own, for strategies that wrap others.

A wrapped strategy may keep its scores in the core (`Feedback.td_update`), so the wrapper cannot
lend it the engine that it draws from.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sec_grpo import _core
from sec_grpo.curriculum._labels import Label
from sec_grpo.curriculum.strategy import Feedback, Strategy


class Shadow:
    """`strategy` over K arms, with one stand-in prompt for each arm that has prompts.

    Args:
        strategy: a copy of it is bound.
        arms: (K,) labels.
        sizes: (K,) int64 prompts of each arm.
    """

    def __init__(
        self, strategy: Strategy, arms: tuple[Label, ...], sizes: NDArray[np.int64]
    ) -> None:
        present = np.flatnonzero(sizes).astype(np.int32)
        self._stand_in = np.full(len(arms), -1, dtype=np.int64)
        self._stand_in[present] = np.arange(len(present))
        self._engine = _core.Engine(present, len(arms), 0, 0)
        self._strategy = copy.copy(strategy)
        self._assign(self._strategy._bind(self._engine, arms, sizes))

    def probabilities(self) -> NDArray[np.float64]:
        """(K,) of the next draw."""
        return self._engine.probabilities()

    def values(self) -> ArrayLike | None:
        """What the strategy holds of the arms."""
        return self._strategy.values()

    def before_draw(self, step: int) -> None:
        """Forward the hook."""
        self._assign(self._strategy.before_draw(step))

    def after_draw(self, step: int) -> None:
        """Forward the hook."""
        self._assign(self._strategy.after_draw(step))

    def grown(self, arms: tuple[Label, ...], sizes: NDArray[np.int64], step: int) -> Shadow:
        """The same with more arms or more prompts; this one stays as it is."""
        grown = copy.copy(self)
        before = len(self._stand_in)
        grown._engine = _core.Engine(
            np.flatnonzero(self._stand_in >= 0).astype(np.int32), before, 0, 0
        )
        grown._engine.restore(grown._engine.parse(self._engine.serialize("", b""), ""))
        stand_in = np.concatenate([self._stand_in, np.full(len(arms) - before, -1)])
        present = np.flatnonzero((sizes > 0) & (stand_in < 0)).astype(np.int32)
        stand_in[present] = grown._engine.num_prompts + np.arange(len(present))
        grown._stand_in = stand_in
        grown._strategy = self._strategy._grown(arms, sizes, before, step)
        object.__setattr__(grown._strategy, "_engine", grown._engine)
        grown._engine.add(present, len(arms), 0)
        grown._assign(grown._strategy.on_grow(step))
        return grown

    def observe(self, feedback: Feedback, arms: NDArray[np.int64]) -> None:
        """Forward a batch; `arms` (B,) are the arms of its prompts as this strategy counts them."""
        indices = self._stand_in[arms]
        reduction = self._engine.reduce(indices, feedback.advantages, feedback.rewards)
        inner = Feedback(
            self._engine,
            reduction,
            feedback.step,
            indices,
            feedback.advantages,
            feedback.rewards,
        )
        self._assign(self._strategy.observe(inner))

    def state(self) -> dict[str, Any]:
        """What `load` takes."""
        core = self._engine.serialize("", b"")
        return {
            "core": np.frombuffer(core, dtype=np.uint8),
            "strategy": self._strategy.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        parsed = self._engine.parse(np.asarray(state["core"], dtype=np.uint8).tobytes(), "")
        self._strategy.load_state_dict(state["strategy"])
        self._engine.restore(parsed)

    def _assign(self, weights: ArrayLike | None) -> None:
        if weights is not None:
            self._engine.assign(np.ascontiguousarray(weights, dtype=np.float64))
