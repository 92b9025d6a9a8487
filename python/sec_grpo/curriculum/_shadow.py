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
        for_state: `load` comes next.
    """

    def __init__(
        self,
        strategy: Strategy,
        arms: tuple[Label, ...],
        sizes: NDArray[np.int64],
        *,
        for_state: bool = False,
    ) -> None:
        self._stand_in, self._engine = _stand_ins(sizes)
        self._strategy = copy.copy(strategy)
        if for_state:
            self._strategy._bind_for_state(self._engine, arms, sizes)
        else:
            self._assign(self._strategy._bind(self._engine, arms, sizes))

    def probabilities(self) -> NDArray[np.float64]:
        """(K,) of the next draw."""
        return self._engine.probabilities()

    def values(self) -> ArrayLike | None:
        """What the strategy holds of the arms."""
        return self._strategy.values()

    def before_draw(self, step: int) -> bool:
        """Forward the hook; whether it returned log-weights."""
        return self._assign(self._strategy.before_draw(step))

    def after_draw(self, step: int) -> bool:
        """Forward the hook; whether it returned log-weights."""
        return self._assign(self._strategy.after_draw(step))

    def grown(self, arms: tuple[Label, ...], sizes: NDArray[np.int64], step: int) -> Shadow:
        """The same with more arms or more prompts; this one stays as it is."""
        grown = copy.copy(self)
        before = len(self._stand_in)
        # As in a curriculum, the strategy still sees the engine that has not grown.
        grown._strategy = self._strategy._grown(arms, sizes, before, step)
        weights = grown._strategy.on_grow(step)
        # An engine as over these arms from the start, so that either takes the state of the other.
        grown._stand_in, grown._engine = _stand_ins(sizes)
        scores = np.concatenate([self._engine.scores(), np.zeros(len(arms) - before)])
        grown._engine.assign(scores, self._engine.temperature)
        object.__setattr__(grown._strategy, "_engine", grown._engine)
        grown._assign(weights)
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

    def _assign(self, weights: ArrayLike | None) -> bool:
        if weights is None:
            return False
        self._engine.assign(np.ascontiguousarray(weights, dtype=np.float64))
        return True


def _stand_ins(sizes: NDArray[np.int64]) -> tuple[NDArray[np.int64], _core.Engine]:
    """(K,) stand-in prompt of each arm, -1 without prompts, and an engine over the stand-ins."""
    present = np.flatnonzero(sizes).astype(np.int32)
    stand_in = np.full(len(sizes), -1, dtype=np.int64)
    stand_in[present] = np.arange(len(present))
    return stand_in, _core.Engine(present, len(sizes), 0, 0)
