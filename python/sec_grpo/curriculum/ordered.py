"""Fixed schedules through the arms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sec_grpo.curriculum._parameters import count_parameter
from sec_grpo.curriculum.strategy import Strategy


@dataclass(frozen=True)
class Ordered(Strategy):
    """The arms one after the other, the hand-made baseline of arXiv 2505.14970.

    Draw t, from 0, takes all prompts from arm min(floor(t M / steps), M - 1) of the M arms that
    have prompts, in the order of the arms: `steps` draws split evenly, then the last arm for
    ever.

    Args:
        steps: total number of draws of the schedule, at least M.

    Raises TypeError or ValueError, naming the parameter, for anything else; that `steps` is at
    least M is checked when a curriculum takes the strategy.
    """

    steps: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", count_parameter("steps", self.steps))

    def on_bind(self, arms: tuple[object, ...], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
        """Log-weights of the first arm."""
        self.cache["stages"] = self._stages()
        num_stages = len(self.cache["stages"])
        if self.steps < num_stages:
            raise ValueError(
                f"steps must be at least {num_stages}, one draw for each arm that has prompts, "
                f"got {self.steps}"
            )
        return self._weights(0)

    def after_draw(self, step: int) -> NDArray[np.float64] | None:
        """Log-weights of the arm of draw `step` when it is another than that of the last draw."""
        stage = self._stage(step)
        return None if stage == self._stage(step - 1) else self._weights(stage)

    def on_grow(self, step: int) -> NDArray[np.float64]:
        """The steps are split anew over the arms there are."""
        return self._weights(self._stage(step))

    def _stages(self) -> NDArray[np.int64]:
        return np.flatnonzero(self.sizes)

    def _stage(self, step: int) -> int:
        num_stages = len(self.cache["stages"])
        return min(step * num_stages // self.steps, num_stages - 1)

    def _weights(self, stage: int) -> NDArray[np.float64]:
        weights = np.full(len(self.sizes), -np.inf)
        weights[self.cache["stages"][stage]] = 0.0
        return weights


@dataclass(frozen=True)
class Reverse(Ordered):
    """`Ordered` from the last arm to the first, the reverse baseline of arXiv 2505.14970."""

    def _stages(self) -> NDArray[np.int64]:
        return super()._stages()[::-1]
