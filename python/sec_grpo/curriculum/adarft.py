"""A target difficulty that follows the reward."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sec_grpo.curriculum._elementary import tanh
from sec_grpo.curriculum._labels import Label
from sec_grpo.curriculum._parameters import real_parameter
from sec_grpo.curriculum.floor import log_weights
from sec_grpo.curriculum.signals import rewards_of
from sec_grpo.curriculum.strategy import Feedback, Strategy


@dataclass(frozen=True)
class AdaRFT(Strategy):
    """Prompts of the difficulty at which half the rollouts succeed (arXiv 2504.05520).

    T <- clip(T + step_size tanh(sensitivity (mean reward - target_reward)), 0, 100) after each
    batch, from T = 0; the next batch comes from the arms whose difficulty is nearest to T.

    Departures: 1. the nearest arm, not the B nearest prompts; arms equally near share the batch by
    their number of prompts; 2. difficulties are scaled so that those of the arms span 0 to 100.

    Args:
        step_size: the paper's eta, above 0, in the units of T.
        sensitivity: the paper's alpha, above 0.
        target_reward: the paper's beta.
        difficulties: label -> difficulty; None takes labels that are numbers themselves, or the
            place in the order of the arms where some are not.

    Raises TypeError or ValueError, naming the parameter, for anything else; that `difficulties`
    names every arm is checked when a curriculum takes the strategy.
    """

    step_size: float = 50.0
    sensitivity: float = 2.0
    target_reward: float = 0.5
    difficulties: Mapping[Label, float] | None = None

    def __post_init__(self) -> None:
        for name in ("step_size", "sensitivity", "target_reward"):
            must = "a finite number" if name == "target_reward" else "a finite number above 0"
            value = real_parameter(name, getattr(self, name), must)
            if value <= 0.0 and name != "target_reward":
                raise ValueError(f"{name} must be {must}, got {value!r}")
            object.__setattr__(self, name, value)
        if self.difficulties is not None and not isinstance(self.difficulties, Mapping):
            raise TypeError(
                f"difficulties must map labels to numbers, got {self.difficulties!r:.60}"
            )

    def parameters(self) -> dict[str, object]:
        """The parameters, difficulties as pairs."""
        pairs = None
        if self.difficulties is not None:
            pairs = [[repr(label), float(d)] for label, d in self.difficulties.items()]
        return {
            "step_size": self.step_size,
            "sensitivity": self.sensitivity,
            "target_reward": self.target_reward,
            "difficulties": pairs,
        }

    def on_bind(self, arms: tuple[Label, ...], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
        """T = 0: the easiest arms."""
        self.cache["difficulty"] = self._difficulty()
        self.memory["target"] = 0.0
        return self._weights()

    def observe(self, feedback: Feedback) -> NDArray[np.float64]:
        """Move T by the batch's mean reward."""
        reward = float(rewards_of(feedback, "strategy AdaRFT").mean(dtype=np.float64))
        move = self.step_size * tanh(self.sensitivity * (reward - self.target_reward))
        self.memory["target"] = min(max(self.memory["target"] + move, 0.0), 100.0)
        return self._weights()

    def on_grow(self, step: int) -> NDArray[np.float64]:
        """Weigh the new arms too."""
        return self._weights()

    def values(self) -> NDArray[np.float64]:
        """(K,) minus the distance of each arm's difficulty from T."""
        return -np.abs(self.cache["difficulty"] - self.memory["target"])

    def _difficulty(self) -> NDArray[np.float64]:
        """(K,) in [0, 100]."""
        if self.difficulties is not None:
            if missing := [arm for arm in self.arms if arm not in self.difficulties]:
                raise ValueError(
                    f"difficulties must name every arm, got none for {missing[0]!r}"
                    + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
                )
            must = "finite numbers, one for each label"
            raw = [real_parameter("difficulties", self.difficulties[a], must) for a in self.arms]
        elif all(isinstance(a, numbers.Real) and math.isfinite(a) for a in self.arms):
            raw = [float(arm) for arm in self.arms]  # type: ignore[arg-type]
        else:
            raw = list(map(float, range(len(self.arms))))
        values = np.asarray(raw)
        low, high = values.min(), values.max()
        return np.zeros(len(values)) if high == low else (values - low) / (high - low) * 100.0

    def _weights(self) -> NDArray[np.float64]:
        nearness = self.values()
        nearest = nearness == nearness[self.sizes > 0].max()
        return log_weights(np.where(nearest, self.sizes, 0).astype(np.float64))
