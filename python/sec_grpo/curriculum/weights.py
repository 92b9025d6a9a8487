"""Fixed shares of the arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sec_grpo.curriculum._labels import Label, listed
from sec_grpo.curriculum._parameters import real_parameter
from sec_grpo.curriculum.floor import log_weights
from sec_grpo.curriculum.strategy import Strategy

_MUST = "finite numbers of at least 0, one for each arm"


@dataclass(frozen=True)
class StaticWeights(Strategy):
    """A hand-made mixture that never changes: p(c) = w(c) / sum_i w(i).

    Args:
        weights: (K,) one weight for each arm, in the order of the arms, or a mapping from every
            label to its weight; 0 leaves an arm out.

    Raises TypeError or ValueError, naming the parameter, for anything else; that the weights are
    those of the arms, and that an arm with prompts has one above 0, is checked when a curriculum
    takes the strategy.
    """

    weights: Sequence[float] | Mapping[Label, float]

    def __post_init__(self) -> None:
        given = self.weights
        if not hasattr(given, "__len__") or isinstance(given, str):
            raise TypeError(f"weights must be {_MUST}, got {given!r}")
        values = given.values() if isinstance(given, Mapping) else given
        weights = tuple(real_parameter("weights", weight, _MUST) for weight in values)
        if any(weight < 0 for weight in weights):
            raise ValueError(f"weights must be {_MUST}, got {given!r}")
        if isinstance(given, Mapping):
            object.__setattr__(self, "weights", dict(zip(given, weights, strict=True)))
        else:
            object.__setattr__(self, "weights", weights)

    def __hash__(self) -> int:
        return hash(repr(self.parameters()))

    def parameters(self) -> dict[str, Any]:
        """The weights; of a mapping as pairs in the order of the labels' text."""
        if isinstance(self.weights, Mapping):
            pairs = ([repr(label), weight] for label, weight in self.weights.items())
            return {"weights": sorted(pairs, key=lambda pair: str(pair[0]))}
        return {"weights": self.weights}

    def on_bind(self, arms: tuple[Label, ...], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
        """log w(c)."""
        weights = np.asarray(self._in_order(arms), dtype=np.float64)
        if not weights[sizes > 0].any():
            raise ValueError("weights must be above 0 for at least one arm that has prompts")
        return log_weights(weights)

    def on_grow(self, step: int) -> NDArray[np.float64]:
        """log w(c): the weights must be those of the new arms too."""
        return self.on_bind(self.arms, self.sizes)

    def _in_order(self, arms: tuple[Label, ...]) -> Sequence[float]:
        shown = listed(arms)
        if not isinstance(self.weights, Mapping):
            if len(self.weights) != len(arms):
                raise ValueError(
                    f"weights must be one for each of the {len(arms)} arms ({shown}), got "
                    f"{len(self.weights)}"
                )
            return self.weights
        known = set(arms)
        if unknown := [label for label in self.weights if label not in known]:
            raise ValueError(f"weights must name arms ({shown}), got {unknown[0]!r}")
        if missing := [arm for arm in arms if arm not in self.weights]:
            raise ValueError(f"weights must name every arm ({shown}), {missing[0]!r} is missing")
        return [self.weights[arm] for arm in arms]
