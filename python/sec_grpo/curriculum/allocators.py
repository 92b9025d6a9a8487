"""How scores become probabilities: the third part of a composed strategy. Axes: K arms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sec_grpo.curriculum._elementary import log
from sec_grpo.curriculum._parameters import real_parameter
from sec_grpo.curriculum.floor import log_weights
from sec_grpo.curriculum.thompson import gaussian_wins, log_wins

Values = NDArray[np.float64]


class Allocator(Protocol):
    """Log-weights of the arms from what is believed of them."""

    def log_weights(
        self, scores: Values, deviations: Values, seen: NDArray[np.int64], usable: NDArray[np.bool_]
    ) -> Values:
        """(K,) log-weights; `seen` are the prompts observed, `usable` arms have prompts."""


def ucb_bonus(seen: NDArray[np.int64]) -> Values:
    """(K,) sqrt(2 ln(N + 1) / (n + 1)), n prompts of the arm and N of all."""
    return np.sqrt(2.0 * log(seen.sum() + 1.0) / (seen + 1.0))


def temperature_parameter(value: Any) -> float:
    """The value as a finite float above 0."""
    must = "a finite number above 0"
    temperature = real_parameter("temperature", value, must)
    if temperature <= 0.0:
        raise ValueError(f"temperature must be {must}, got {value!r}")
    return temperature


@dataclass(frozen=True)
class Softmax:
    """p = softmax(score / temperature).

    Args:
        temperature: in units of the score, above 0.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "temperature", temperature_parameter(self.temperature))

    def log_weights(
        self, scores: Values, deviations: Values, seen: NDArray[np.int64], usable: NDArray[np.bool_]
    ) -> Values:
        return scores / self.temperature


@dataclass(frozen=True)
class UCB:
    """p = softmax((score + c sqrt(2 ln(N + 1) / (n + 1))) / temperature), UCB1 made soft.

    Args:
        c: weight of the bonus, at least 0; 1 is DUMP's (arXiv 2504.09710).
        temperature: in units of the score, above 0.
    """

    c: float = 1.0
    temperature: float = 0.1

    def __post_init__(self) -> None:
        c = real_parameter("c", self.c, "a finite number of at least 0")
        if c < 0.0:
            raise ValueError(f"c must be a finite number of at least 0, got {self.c!r}")
        object.__setattr__(self, "c", c)
        object.__setattr__(self, "temperature", temperature_parameter(self.temperature))

    def log_weights(
        self, scores: Values, deviations: Values, seen: NDArray[np.int64], usable: NDArray[np.bool_]
    ) -> Values:
        return (scores + self.c * ucb_bonus(seen)) / self.temperature


@dataclass(frozen=True)
class Thompson:
    """p(c) = P(a sample of arm c's Gaussian belief is the largest): Thompson in every slot.

    The belief is the score with the estimator's deviation; without one (EMA, window) the best arm
    takes all. Time is K x 512: made for up to some ten thousand arms.
    """

    def log_weights(
        self, scores: Values, deviations: Values, seen: NDArray[np.int64], usable: NDArray[np.bool_]
    ) -> Values:
        if not deviations.any():
            return _best(scores, usable, 0.0)
        return log_wins(usable, gaussian_wins(scores[usable], deviations[usable]))


@dataclass(frozen=True)
class Greedy:
    """The best arm with probability 1 - epsilon, else any arm; equal arms share.

    Args:
        epsilon: in [0, 1].
    """

    epsilon: float = 0.1

    def __post_init__(self) -> None:
        epsilon = real_parameter("epsilon", self.epsilon, "a probability in [0, 1]")
        if not 0.0 <= epsilon <= 1.0:
            raise ValueError(f"epsilon must be a probability in [0, 1], got {self.epsilon!r}")
        object.__setattr__(self, "epsilon", epsilon)

    def log_weights(
        self, scores: Values, deviations: Values, seen: NDArray[np.int64], usable: NDArray[np.bool_]
    ) -> Values:
        return _best(scores, usable, self.epsilon)


def _best(scores: Values, usable: NDArray[np.bool_], epsilon: float) -> Values:
    best = usable & (scores == scores[usable].max())
    return log_weights((1.0 - epsilon) * best / best.sum() + epsilon * usable / usable.sum())


ALLOCATORS: dict[str, type[Any]] = {
    "softmax": Softmax,
    "ucb": UCB,
    "thompson": Thompson,
    "greedy": Greedy,
}
