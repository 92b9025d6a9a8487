"""A Gaussian that moves from easy to hard."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sec_grpo.curriculum._elementary import exp, power
from sec_grpo.curriculum._labels import Label
from sec_grpo.curriculum._parameters import count_parameter, real_parameter
from sec_grpo.curriculum.floor import log_weights, mix_floor
from sec_grpo.curriculum.strategy import Strategy


@dataclass(frozen=True)
class E2HGaussian(Strategy):
    """Easy to hard, Gaussian: E2H-G (arXiv 2506.06632).

    Draw t, from 0, of T = steps takes arm k, from 0, of the M that have prompts with probability
    proportional to exp(-(k - x)^2 / (2 sigma^2)), x = (t / T)^beta (M - 1), mixed with a floor of
    2 / (M (M + 1)) for each arm; after T draws x stays at M - 1.

    Args:
        steps: T, the draws of the schedule, at least 1.
        beta: above 0; below 1 leaves the easy arms sooner.
        sigma: width of the Gaussian in arms, above 0.

    Raises TypeError or ValueError, naming the parameter, for anything else.
    """

    steps: int
    beta: float = 0.5
    sigma: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", count_parameter("steps", self.steps))
        for name in ("beta", "sigma"):
            value = real_parameter(name, getattr(self, name), "a finite number above 0")
            if value <= 0.0:
                raise ValueError(f"{name} must be a finite number above 0, got {value!r}")
            object.__setattr__(self, name, value)

    def on_bind(self, arms: tuple[Label, ...], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
        """Log-weights of the first draw."""
        return self._weights(0)

    def after_draw(self, step: int) -> NDArray[np.float64] | None:
        """Log-weights of draw `step`, until they stay."""
        return self._weights(step) if step <= self.steps else None

    def on_grow(self, step: int) -> NDArray[np.float64]:
        """The Gaussian over the arms there are."""
        return self._weights(step)

    def _weights(self, step: int) -> NDArray[np.float64]:
        present = np.flatnonzero(self.sizes)
        count = len(present)
        centre = float(power(min(step / self.steps, 1.0), self.beta)) * (count - 1)
        exponent = -((np.arange(count) - centre) ** 2) / (2.0 * (self.sigma * self.sigma))
        gaussian = exp(exponent - exponent.max())
        p = np.zeros(len(self.sizes))
        # One arm alone: the floor formula gives it all.
        floor = min(2.0 / (count * (count + 1)), 1.0 / count)
        p[present] = mix_floor(gaussian / gaussian.sum(), floor, np.ones(count, dtype=bool))
        return log_weights(np.clip(p, 0.0, None))
