"""What is remembered of each arm's measurements: the second part of a composed strategy.

An estimator keeps all of its state in the strategy's memory. K arms, B prompts a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sec_grpo.curriculum._parameters import count_parameter, real_parameter
from sec_grpo.curriculum.windows import MeanWindows

Values = NDArray[np.float64]
Arms = NDArray[np.int64]
Memory = dict[str, Any]


class Estimator(Protocol):
    """A running estimate of one number an arm."""

    def start(self, memory: Memory, num_arms: int, prior: float) -> None:
        """Put the first state into `memory`."""

    def update(self, memory: Memory, arms: Arms, values: Values, num_rollouts: int) -> None:
        """Take in the values (B,) of the prompts of `arms` (B,)."""

    def mean(self, memory: Memory) -> Values:
        """(K,) estimates."""

    def deviation(self, memory: Memory) -> Values:
        """(K,) standard deviations of what is believed; 0 where the estimator has no belief."""


def arm_means(arms: Arms, values: Values) -> tuple[Arms, Values, Arms]:
    """The distinct arms (D,), the mean of their values and their number of prompts."""
    distinct, position, counts = np.unique(arms, return_inverse=True, return_counts=True)
    return distinct, np.bincount(position, weights=values) / counts, counts


@dataclass(frozen=True)
class EMA:
    """q(c) <- alpha v(c) + (1 - alpha) q(c), v the arm's mean in the batch: TD(0) of SEC.

    Args:
        alpha: weight of the newest batch, in (0, 1].
        undrawn: "keep" leaves the other arms alone, "decay" gives them v = 0.
    """

    alpha: float = 0.5
    undrawn: str = "keep"

    def __post_init__(self) -> None:
        alpha = real_parameter("alpha", self.alpha, "a number in (0, 1]")
        if not 0.0 < alpha <= 1.0:
            raise ValueError(f"alpha must be a number in (0, 1], got {self.alpha!r}")
        if self.undrawn not in ("keep", "decay"):
            raise ValueError(f'undrawn must be "keep" or "decay", got {self.undrawn!r}')
        object.__setattr__(self, "alpha", alpha)

    def start(self, memory: Memory, num_arms: int, prior: float) -> None:
        memory["estimate"] = np.full(num_arms, prior)

    def update(self, memory: Memory, arms: Arms, values: Values, num_rollouts: int) -> None:
        distinct, means, _ = arm_means(arms, values)
        estimate = memory["estimate"]
        drawn = self.alpha * means + (1.0 - self.alpha) * estimate[distinct]
        if self.undrawn == "decay":
            estimate *= 1.0 - self.alpha
        estimate[distinct] = drawn

    def mean(self, memory: Memory) -> Values:
        return memory["estimate"]

    def deviation(self, memory: Memory) -> Values:
        return np.zeros(len(memory["estimate"]))


@dataclass(frozen=True)
class Window:
    """Mean of the values of the arm's last `size` prompts.

    Args:
        size: prompts, at least 1.
    """

    size: int = 300

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", count_parameter("size", self.size))

    def start(self, memory: Memory, num_arms: int, prior: float) -> None:
        MeanWindows(memory, num_arms, self.size)
        memory["prior"] = prior

    def update(self, memory: Memory, arms: Arms, values: Values, num_rollouts: int) -> None:
        MeanWindows(memory, 0, self.size).add(arms, values)

    def mean(self, memory: Memory) -> Values:
        windows = MeanWindows(memory, 0, self.size)
        return np.where(windows.seen > 0, windows.mean, memory["prior"])

    def deviation(self, memory: Memory) -> Values:
        return np.zeros(len(memory["seen"]))


@dataclass(frozen=True)
class DiscountedBeta:
    """Beta(a, b) of a success rate, forgetting towards the prior (MoPPS, arXiv 2507.04632).

    For the arms of a batch: a <- decay a + (1 - decay) a0 + s, b <- decay b + (1 - decay) b0 + f,
    with s successes and f failures among its rollouts; values in [0, 1] count in parts. The signal
    must lie in [0, 1].

    Args:
        decay: lambda, in [0, 1]; 1 never forgets.
        a0, b0: the prior, at least 1.
    """

    decay: float = 0.9
    a0: float = 1.0
    b0: float = 1.0

    def __post_init__(self) -> None:
        decay = real_parameter("decay", self.decay, "a number in [0, 1]")
        if not 0.0 <= decay <= 1.0:
            raise ValueError(f"decay must be a number in [0, 1], got {self.decay!r}")
        object.__setattr__(self, "decay", decay)
        for name in ("a0", "b0"):
            value = real_parameter(name, getattr(self, name), "a finite number of at least 1")
            if value < 1.0:
                raise ValueError(f"{name} must be a finite number of at least 1, got {value!r}")
            object.__setattr__(self, name, value)

    def start(self, memory: Memory, num_arms: int, prior: float) -> None:
        memory["a"] = np.full(num_arms, self.a0)
        memory["b"] = np.full(num_arms, self.b0)

    def update(self, memory: Memory, arms: Arms, values: Values, num_rollouts: int) -> None:
        if values.min() < 0.0 or values.max() > 1.0:
            raise ValueError(
                "estimator discounted_beta needs a signal in [0, 1], such as success_variance; got "
                f"values in [{values.min():g}, {values.max():g}]"
            )
        distinct, means, counts = arm_means(arms, values)
        rollouts = counts * num_rollouts
        keep, a, b = self.decay, memory["a"], memory["b"]
        a[distinct] = keep * a[distinct] + (1.0 - keep) * self.a0 + means * rollouts
        b[distinct] = keep * b[distinct] + (1.0 - keep) * self.b0 + (1.0 - means) * rollouts

    def mean(self, memory: Memory) -> Values:
        a, b = memory["a"], memory["b"]
        return a / (a + b)

    def deviation(self, memory: Memory) -> Values:
        a, b = memory["a"], memory["b"]
        return np.sqrt(a * b / (a + b + 1.0)) / (a + b)


def _square(value: float) -> float:
    """value^2, rounded once: value**2 is the C library's pow, which differs between processors."""
    return value * value


@dataclass(frozen=True)
class Gaussian:
    """A Gaussian belief about a mean that drifts: a Kalman filter of one number an arm.

    Each batch: variance <- variance + drift^2 for all arms, then for the arms in it, with v the
    arm's mean over n prompts, gain k = variance / (variance + noise^2 / n),
    mean <- mean + k (v - mean), variance <- (1 - k) variance.

    Args:
        drift: standard deviation of the change of the mean in one batch, at least 0.
        noise: standard deviation of one prompt's value, above 0.
        spread: standard deviation of the prior, above 0.
    """

    drift: float = 0.02
    noise: float = 0.5
    spread: float = 1.0

    def __post_init__(self) -> None:
        for name in ("drift", "noise", "spread"):
            least = "at least 0" if name == "drift" else "above 0"
            value = real_parameter(name, getattr(self, name), f"a finite number {least}")
            if value < 0.0 or (value == 0.0 and name != "drift"):
                raise ValueError(f"{name} must be a finite number {least}, got {value!r}")
            object.__setattr__(self, name, value)

    def start(self, memory: Memory, num_arms: int, prior: float) -> None:
        memory["estimate"] = np.full(num_arms, prior)
        memory["variance"] = np.full(num_arms, _square(self.spread))

    def update(self, memory: Memory, arms: Arms, values: Values, num_rollouts: int) -> None:
        distinct, means, counts = arm_means(arms, values)
        estimate, variance = memory["estimate"], memory["variance"]
        variance += _square(self.drift)
        gain = variance[distinct] / (variance[distinct] + _square(self.noise) / counts)
        estimate[distinct] += gain * (means - estimate[distinct])
        variance[distinct] *= 1.0 - gain

    def mean(self, memory: Memory) -> Values:
        return memory["estimate"]

    def deviation(self, memory: Memory) -> Values:
        return np.sqrt(memory["variance"])


ESTIMATORS: dict[str, type[Any]] = {
    "ema": EMA,
    "window": Window,
    "discounted_beta": DiscountedBeta,
    "gaussian": Gaussian,
}
