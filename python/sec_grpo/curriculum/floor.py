"""A least probability for every arm, under any strategy."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sec_grpo import _core
from sec_grpo.curriculum._elementary import log
from sec_grpo.curriculum._labels import Label
from sec_grpo.curriculum._parameters import real_parameter
from sec_grpo.curriculum._shadow import Shadow
from sec_grpo.curriculum.strategy import Feedback, Strategy


def mix_floor(
    probabilities: NDArray[np.float64], floor: float, has_prompts: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """(1 - M floor) p + floor over the M arms that have prompts."""
    share = floor * int(has_prompts.sum())
    return (1.0 - share) * probabilities + floor * has_prompts


def log_weights(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """log p, -inf where p is 0."""
    return log(probabilities)


@dataclass(frozen=True)
class Floor(Strategy):
    """Another strategy with a least probability for every arm that has prompts.

    p(c) = (1 - M floor) p'(c) + floor, p' the probabilities of `strategy` and M the arms that have
    prompts. Arms that a strategy has given up are still looked at, and can come back.

    Args:
        strategy: any strategy.
        floor: the least probability of an arm, at least 0 and at most 1 / M.

    Raises TypeError or ValueError, naming the parameter, for anything else; that `floor` is at
    most 1 / M is checked when a curriculum takes the strategy.
    """

    strategy: Strategy
    floor: float
    _shadow: Shadow = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.strategy, Strategy):
            raise TypeError(f"strategy must be a Strategy such as SEC(), got {self.strategy!r:.60}")
        floor = real_parameter("floor", self.floor, "a probability in [0, 1]")
        if not 0.0 <= floor <= 1.0:
            raise ValueError(f"floor must be a probability in [0, 1], got {self.floor!r}")
        object.__setattr__(self, "floor", floor)

    @property
    def name(self) -> str:
        """Name of the strategy inside, and that it has a floor."""
        return f"{self.strategy.name} + floor"

    def parameters(self) -> dict[str, Any]:
        """The floor and the parameters of the strategy inside."""
        return {"floor": self.floor, "strategy": self.strategy.parameters()}

    def on_bind(self, arms: tuple[Label, ...], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
        """Bind the strategy inside to an engine of its own."""
        self._check_floor(sizes)
        object.__setattr__(self, "_shadow", Shadow(self.strategy, arms, sizes))
        return self._mixed()

    def _check_floor(self, sizes: NDArray[np.int64]) -> None:
        count = int(np.count_nonzero(sizes))
        # A floor of exactly 1 / M, written in decimals, may lie above it by a rounding.
        if self.floor * count > 1.0 + 1e-9:
            raise ValueError(
                f"floor must be at most 1 / {count} with {count} arms that have prompts, got "
                f"{self.floor}"
            )

    def _bind_for_state(
        self, engine: _core.Engine, arms: tuple[Label, ...], sizes: NDArray[np.int64]
    ) -> None:
        self._attach(engine, arms, sizes)
        object.__setattr__(self, "_shadow", Shadow(self.strategy, arms, sizes, for_state=True))

    def _grown(
        self, arms: tuple[Label, ...], sizes: NDArray[np.int64], num_arms_before: int, step: int
    ) -> Strategy:
        self._check_floor(sizes)
        grown = copy.copy(self)
        grown._attach(self._engine, arms, sizes)
        object.__setattr__(grown, "_shadow", self._shadow.grown(arms, sizes, step))
        return grown

    def before_draw(self, step: int) -> NDArray[np.float64] | None:
        """Forward."""
        return self._mixed() if self._shadow.before_draw(step) else None

    def after_draw(self, step: int) -> NDArray[np.float64] | None:
        """Forward."""
        return self._mixed() if self._shadow.after_draw(step) else None

    def observe(self, feedback: Feedback) -> NDArray[np.float64]:
        """Forward."""
        self._shadow.observe(feedback, feedback.arm_indices())
        return self._mixed()

    def on_grow(self, step: int) -> NDArray[np.float64]:
        """Forward."""
        return self._mixed()

    def values(self) -> ArrayLike | None:
        """Those of the strategy inside."""
        return self._shadow.values()

    def state_dict(self) -> dict[str, Any]:
        """State of the strategy inside and of its engine."""
        return self._shadow.state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._shadow.load(state)

    def _mixed(self) -> NDArray[np.float64]:
        mixed = mix_floor(self._shadow.probabilities(), min(self.floor, 1.0), self.sizes > 0)
        return log_weights(np.clip(mixed, 0.0, None))
