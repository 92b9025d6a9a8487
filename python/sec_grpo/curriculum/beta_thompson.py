"""Thompson sampling of success rates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sec_grpo.curriculum._labels import Label
from sec_grpo.curriculum._parameters import real_parameter
from sec_grpo.curriculum.estimators import DiscountedBeta
from sec_grpo.curriculum.signals import success
from sec_grpo.curriculum.strategy import Feedback, Strategy
from sec_grpo.curriculum.thompson import log_wins, nearest_beta_wins


@dataclass(frozen=True)
class BetaThompson(Strategy):
    """The arm whose sampled success rate is nearest to a target: MoPPS (arXiv 2507.04632).

    Beta(a, b) for each arm; after a batch a <- decay a + (1 - decay) a0 + successes and b
    likewise with failures, for the arms in it. p(c) = P(|g(c) - target| is the smallest),
    g(c) ~ Beta(a(c), b(c)) independent, found by integration over 512 distances.

    Departures: 1. the paper samples once for every prompt and takes the B nearest; here every slot
    of a batch samples anew, over arms; 2. arms outside the batch keep a and b.

    Time is K x 512: made for up to some ten thousand arms.

    Args:
        target: the success rate looked for, in [0, 1]; the paper's 0.5.
        decay: the paper's lambda, in [0, 1]; 1 never forgets.
        a0, b0: the prior, at least 1; 1, 1 is uniform.
        success_threshold: a rollout is a success when its reward is at least this.

    Raises TypeError or ValueError, naming the parameter, for anything else.
    """

    target: float = 0.5
    decay: float = 0.9
    a0: float = 1.0
    b0: float = 1.0
    success_threshold: float = 0.5

    def __post_init__(self) -> None:
        target = real_parameter("target", self.target, "a success rate in [0, 1]")
        if not 0.0 <= target <= 1.0:
            raise ValueError(f"target must be a success rate in [0, 1], got {self.target!r}")
        threshold = real_parameter("success_threshold", self.success_threshold, "a finite number")
        checked = self._posterior()
        for name in ("decay", "a0", "b0"):
            object.__setattr__(self, name, getattr(checked, name))
        object.__setattr__(self, "target", target)
        object.__setattr__(self, "success_threshold", threshold)

    def on_bind(self, arms: tuple[Label, ...], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
        """The prior for every arm."""
        self._posterior().start(self.memory, len(arms), 0.0)
        return self._weights()

    def observe(self, feedback: Feedback) -> NDArray[np.float64]:
        """Count successes and failures."""
        rates = success(feedback, self.success_threshold)
        assert feedback.rewards is not None
        self._posterior().update(
            self.memory, feedback.arm_indices(), rates, feedback.rewards.shape[1]
        )
        return self._weights()

    def on_grow(self, step: int) -> NDArray[np.float64]:
        """Weigh the new arms too."""
        return self._weights()

    def values(self) -> NDArray[np.float64]:
        """(K,) mean success rate."""
        return self._posterior().mean(self.memory)

    def _posterior(self) -> DiscountedBeta:
        return DiscountedBeta(self.decay, self.a0, self.b0)

    def _weights(self) -> NDArray[np.float64]:
        usable = self.sizes > 0
        a, b = self.memory["a"][usable], self.memory["b"][usable]
        return log_wins(usable, nearest_beta_wins(a, b, self.target))
