"""Fixed shares of the arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sec_grpo.curriculum._parameters import real_parameter
from sec_grpo.curriculum.strategy import Strategy

_MUST = "finite numbers of at least 0, one for each arm"


@dataclass(frozen=True)
class StaticWeights(Strategy):
    """A hand-made mixture that never changes: p(c) = w(c) / sum_i w(i).

    Args:
        weights: (K,) one weight for each arm, in the order of the arms; 0 leaves an arm out.

    Raises TypeError or ValueError, naming the parameter, for anything else; their number, and
    that an arm with prompts has a weight, is checked when a curriculum takes the strategy.
    """

    weights: Sequence[float]

    def __post_init__(self) -> None:
        ordered = hasattr(self.weights, "__len__") and not isinstance(self.weights, (str, Mapping))
        if not ordered:
            raise TypeError(f"weights must be {_MUST}, got {self.weights!r}")
        weights = tuple(real_parameter("weights", weight, _MUST) for weight in self.weights)
        if any(weight < 0 for weight in weights):
            raise ValueError(f"weights must be {_MUST}, got {self.weights!r}")
        object.__setattr__(self, "weights", weights)

    def on_bind(self, arms: tuple[object, ...], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
        """log w(c)."""
        weights = np.asarray(self.weights, dtype=np.float64)
        if len(weights) != len(arms):
            raise ValueError(
                f"weights must be one for each of the {len(arms)} arms ("
                f"{', '.join(map(str, arms[:8]))}{', ...' if len(arms) > 8 else ''}), got "
                f"{len(weights)}"
            )
        if not weights[sizes > 0].any():
            raise ValueError("weights must be above 0 for at least one arm that has prompts")
        with np.errstate(divide="ignore"):  # log 0 = -inf is probability 0
            return np.log(weights)
