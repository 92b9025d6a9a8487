"""Stages that are written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sec_grpo.curriculum._labels import Label, listed
from sec_grpo.curriculum._parameters import count_parameter
from sec_grpo.curriculum.floor import log_weights
from sec_grpo.curriculum.strategy import Strategy

_FORM = "a number of draws, or a list of {'arms': [labels], 'steps': draws}"


@dataclass(frozen=True)
class Staged(Strategy):
    """So many draws from these arms, then so many from those.

    Args:
        stages: a number of draws that each arm gets, one arm after the other; or the stages, a
            list of ``{"arms": [labels], "steps": draws}``. A stage draws its prompts equally
            often; the last one goes on for ever, and may leave out "steps".

    Raises TypeError or ValueError, naming the parameter, for anything else; that the labels are
    arms and have prompts is checked when a curriculum takes the strategy.
    """

    stages: int | Sequence[Mapping[str, Any]]

    def __post_init__(self) -> None:
        if isinstance(self.stages, (int, np.integer)):
            object.__setattr__(self, "stages", count_parameter("stages", self.stages))
            return
        if isinstance(self.stages, (str, Mapping)) or not isinstance(self.stages, Sequence):
            raise TypeError(f"stages must be {_FORM}, got {self.stages!r:.60}")
        if not self.stages:
            raise ValueError(f"stages must be {_FORM}, got an empty list")
        last = len(self.stages) - 1
        checked = tuple(_stage(i, stage, i == last) for i, stage in enumerate(self.stages))
        object.__setattr__(self, "stages", checked)

    def parameters(self) -> dict[str, Any]:
        """The stages, labels by their representation."""
        if isinstance(self.stages, int):
            return {"stages": self.stages}
        return {"stages": [[list(map(repr, arms)), steps] for arms, steps in self.stages]}

    def on_bind(self, arms: tuple[Label, ...], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
        """Log-weights of the first stage."""
        self.cache["stages"] = self._stages(arms, sizes)
        return self._weights(0)

    def after_draw(self, step: int) -> NDArray[np.float64] | None:
        """Log-weights of the stage of draw `step` when it is another than that of the last."""
        stage = self._stage(step)
        return None if stage == self._stage(step - 1) else self._weights(stage)

    def on_grow(self, step: int) -> NDArray[np.float64]:
        """The stages by now."""
        return self._weights(self._stage(step))

    def _stage(self, step: int) -> int:
        if isinstance(self.stages, int):
            return min(step // self.stages, len(self.cache["stages"]) - 1)
        ends = np.cumsum([stage[1] for stage in self.stages[:-1]])  # type: ignore[index]
        return int(np.searchsorted(ends, step, side="right"))

    def _stages(
        self, arms: tuple[Label, ...], sizes: NDArray[np.int64]
    ) -> NDArray[Any] | list[Any]:
        """The arm numbers of each stage."""
        if isinstance(self.stages, int):
            return np.flatnonzero(sizes)
        number_of = {label: number for number, label in enumerate(arms)}
        stages = []
        for number, (labels, _) in enumerate(self.stages):
            if unknown := [label for label in labels if label not in number_of]:
                raise ValueError(
                    f"stages[{number}] must name arms of the curriculum ({listed(arms)}), got "
                    f"{unknown[0]!r}"
                )
            stages.append([number_of[label] for label in labels])
            if not sizes[stages[-1]].any():
                raise ValueError(
                    f"stages[{number}] must name an arm that has prompts, got "
                    f"{', '.join(map(repr, labels))}"
                )
        return stages

    def _weights(self, stage: int) -> NDArray[np.float64]:
        weights = np.zeros(len(self.sizes))
        chosen = self.cache["stages"][stage]
        weights[chosen] = self.sizes[chosen]
        return log_weights(weights)


def _stage(number: int, stage: Any, is_last: bool) -> tuple[tuple[Label, ...], int]:
    """(labels, draws); 0 draws stand for an open end."""
    if not isinstance(stage, Mapping) or not set(stage) <= {"arms", "steps"} or "arms" not in stage:
        raise ValueError(
            f"stages[{number}] must be {{'arms': [labels], 'steps': draws}}, got {stage!r:.60}"
        )
    arms = stage["arms"]
    if isinstance(arms, (str, bytes, Mapping)) or not isinstance(arms, Sequence) or not arms:
        raise ValueError(f"stages[{number}]['arms'] must be a list of labels, got {arms!r:.60}")
    if "steps" not in stage and is_last:
        return tuple(arms), 0
    return tuple(arms), count_parameter(f"stages[{number}]['steps']", stage.get("steps"))
