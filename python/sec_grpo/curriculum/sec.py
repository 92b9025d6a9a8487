"""The self-evolving curriculum."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sec_grpo.curriculum._parameters import real_parameter
from sec_grpo.curriculum.strategy import Feedback, Strategy


@dataclass(frozen=True)
class SEC(Strategy):
    """Softmax over a running mean of |A|, the self-evolving curriculum (arXiv 2505.14970).

    p(c) = exp(Q(c) / temperature) / sum_i exp(Q(i) / temperature), Q = 0 at the start, and after
    each batch Q(c) <- alpha r(c) + (1 - alpha) Q(c) for the arms in it, r(c) the mean of |A| over
    all rollouts of all prompts of arm c in the batch.

    Args:
        alpha: weight of the newest batch, in (0, 1].
        temperature: softmax temperature in units of |A|, above 0. The authors used 1.0 with 3
            arms, 0.4 with 5 and 0.2 with 9; lower it for estimators whose |A| is smaller.
        undrawn: "keep" leaves Q of the arms outside the batch alone, as the paper says; "decay"
            scores them 0, Q <- (1 - alpha) Q, as the authors' code does.

    Raises TypeError or ValueError, naming the parameter, for anything else.
    """

    alpha: float = 0.5
    temperature: float = 1.0
    undrawn: str = "keep"

    def __post_init__(self) -> None:
        alpha = real_parameter("alpha", self.alpha, "a number in (0, 1]")
        if not 0.0 < alpha <= 1.0:
            raise ValueError(f"alpha must be a number in (0, 1], got {self.alpha!r}")
        temperature = real_parameter("temperature", self.temperature, "a finite number above 0")
        if temperature <= 0.0:
            raise ValueError(
                f"temperature must be a finite number above 0, got {self.temperature!r}"
            )
        if self.undrawn not in ("keep", "decay"):
            raise ValueError(f'undrawn must be "keep" or "decay", got {self.undrawn!r}')
        # 1 and 1.0 are the same parameter, also in a saved state.
        object.__setattr__(self, "alpha", alpha)
        object.__setattr__(self, "temperature", temperature)

    def observe(self, feedback: Feedback) -> None:
        """Move Q of the arms in the batch towards their mean |A|."""
        if feedback.advantages is None:
            raise ValueError(
                "SEC learns from |A|: give observe(..., advantages=...) of shape (B, G), got none"
            )
        feedback.td_update(alpha=self.alpha, temperature=self.temperature, undrawn=self.undrawn)

    def on_grow(self, step: int) -> None:
        """New arms have Q = 0, which the core gives them."""

    def values(self) -> NDArray[np.float64]:
        """(K,) float64 Q."""
        return self.scores()
