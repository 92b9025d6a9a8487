"""Progress and advantage, sampled. K arms, D of them in a batch, W batches remembered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sec_grpo.curriculum._labels import Label
from sec_grpo.curriculum._parameters import count_parameter, real_parameter
from sec_grpo.curriculum.estimators import Gaussian
from sec_grpo.curriculum.signals import abs_advantage, rewards_of
from sec_grpo.curriculum.strategy import Feedback, Strategy
from sec_grpo.curriculum.thompson import gaussian_wins, log_wins
from sec_grpo.curriculum.windows import Windows


@dataclass(frozen=True)
class PAC(Strategy):
    """Mean |A| raised where success rises, with Thompson sampling (arXiv 2608.30528).

    Of each arm the last `window` batches that held it are remembered. v(c) = (1 + s(c) /
    sum_i |s(i)|) m(c), with m the mean of |A| over them and s the least-squares slope of the mean
    reward against the batch number. A Gaussian belief about v(c) with drift takes it in, and after
    `warmup` uniform draws p(c) = P(arm c's sample is the largest), found by integration.

    Departures: 1. the noise of v and the prior are parameters, since the rule as we know it states
    the drift only; 2. the slope is that of the mean reward.

    Time is K x 512: made for up to some ten thousand arms.

    Args:
        window: batches remembered of each arm, at least 2; the paper's 16.
        drift: of the belief in one batch, at least 0; the paper's 0.02.
        noise: standard deviation of an observed v, above 0.
        spread: standard deviation of the prior, above 0.
        warmup: draws that are uniform over the arms, at least 1; the paper's 50.

    Raises TypeError or ValueError, naming the parameter, for anything else.
    """

    window: int = 16
    drift: float = 0.02
    noise: float = 0.1
    spread: float = 1.0
    warmup: int = 50

    def __post_init__(self) -> None:
        window = count_parameter("window", self.window)
        if window < 2:
            raise ValueError(f"window must be at least 2, a slope needs two points, got {window}")
        object.__setattr__(self, "window", window)
        object.__setattr__(self, "warmup", count_parameter("warmup", self.warmup))
        belief = self._belief()
        for name in ("drift", "noise", "spread"):
            real_parameter(name, getattr(self, name), "a finite number")
            object.__setattr__(self, name, getattr(belief, name))

    def on_bind(self, arms: tuple[Label, ...], sizes: NDArray[np.int64]) -> None:
        """Nothing seen of any arm."""
        self._windows()
        self.memory["advantage"] = np.zeros(len(arms))
        self.memory["slope"] = np.zeros(len(arms))
        self.memory["batches"] = 0
        self._belief().start(self.memory, len(arms), 0.0)

    def after_draw(self, step: int) -> NDArray[np.float64] | None:
        """The first sampled probabilities, when the warm-up ends."""
        return self._weights() if step == self.warmup else None

    def observe(self, feedback: Feedback) -> NDArray[np.float64] | None:
        """Remember the batch and update the belief of its arms."""
        abs_advantage(feedback, 0.0)
        rewards_of(feedback, "strategy PAC")
        arms, memory = feedback.arms, self.memory
        columns = np.empty((len(arms), 3))
        columns[:, 0] = memory["batches"]
        columns[:, 1] = feedback.reward
        columns[:, 2] = feedback.abs_advantage
        windows = self._windows()
        windows.add(arms, columns)
        remembered, filled = windows.of(arms)
        count = filled.sum(axis=1)
        memory["advantage"][arms] = (remembered[:, :, 2] * filled).sum(axis=1) / count
        memory["slope"][arms] = _slopes(remembered[:, :, 0], remembered[:, :, 1], filled, count)
        memory["batches"] += 1
        # An arm never seen has slope 0.
        total = np.abs(memory["slope"]).sum()
        share = memory["slope"][arms] / total if total > 0.0 else 0.0
        observed = (1.0 + share) * memory["advantage"][arms]
        self._belief().update(memory, arms, observed, 1)
        return self._weights() if feedback.step >= self.warmup else None

    def on_grow(self, step: int) -> NDArray[np.float64] | None:
        """Weigh the new arms too."""
        return self._weights() if step >= self.warmup else None

    def values(self) -> NDArray[np.float64]:
        """(K,) mean of the belief."""
        return self.memory["estimate"]

    def _belief(self) -> Gaussian:
        return Gaussian(self.drift, self.noise, self.spread)

    def _windows(self) -> Windows:
        """Of each arm the numbers, mean rewards and mean |A| of the batches that held it."""
        return Windows(self.memory, len(self.sizes), self.window, columns=3, dtype=np.float64)

    def _weights(self) -> NDArray[np.float64]:
        usable = self.sizes > 0
        deviation = np.sqrt(self.memory["variance"][usable])
        return log_wins(usable, gaussian_wins(self.memory["estimate"][usable], deviation))


def _slopes(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    known: NDArray[np.bool_],
    count: NDArray[np.int64],
) -> NDArray[np.float64]:
    """(D,) least-squares slope of y against x over the known points; 0 with fewer than two."""
    x, y = np.where(known, x, 0.0), np.where(known, y, 0.0)
    x = np.where(known, x - (x.sum(axis=1) / count)[:, None], 0.0)
    spread = (x * x).sum(axis=1)
    return np.divide((x * y).sum(axis=1), spread, out=np.zeros(len(x)), where=spread > 0.0)
