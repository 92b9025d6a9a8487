"""Progress and advantage, sampled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sec_grpo.curriculum._labels import Label
from sec_grpo.curriculum._parameters import count_parameter, real_parameter
from sec_grpo.curriculum.estimators import Gaussian
from sec_grpo.curriculum.floor import log_weights
from sec_grpo.curriculum.signals import abs_advantage, rewards_of
from sec_grpo.curriculum.strategy import Feedback, Strategy
from sec_grpo.curriculum.thompson import gaussian_wins


@dataclass(frozen=True)
class PAC(Strategy):
    """Mean |A| raised where success rises, with Thompson sampling (arXiv 2608.30528).

    Of each arm the last `window` batches that held it are remembered. v(c) = (1 + s(c) /
    sum_i |s(i)|) m(c), with m the mean of |A| over them and s the least-squares slope of the mean
    reward against the batch number. A Gaussian belief about v(c) with drift takes it in, and after
    `warmup` uniform draws p(c) = P(arm c's sample is the largest), found by integration.

    Departures: 1. the noise of v and the prior are parameters, since the rule as we know it states
    the drift only; 2. the slope is that of the mean reward.

    Time and memory are K x 1024: made for up to thousands of arms.

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
        shape = (len(arms), self.window)
        self.memory["advantage"] = np.zeros(shape)
        self.memory["reward"] = np.zeros(shape)
        self.memory["batch"] = np.full(shape, np.nan)
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
        slot = np.isfinite(memory["batch"][arms]).sum(axis=1)
        full = slot == self.window
        for name in ("advantage", "reward", "batch"):
            memory[name][arms[full]] = np.roll(memory[name][arms[full]], -1, axis=1)
        slot[full] = self.window - 1
        memory["advantage"][arms, slot] = feedback.abs_advantage
        memory["reward"][arms, slot] = feedback.reward
        memory["batch"][arms, slot] = memory["batches"]
        memory["batches"] += 1
        self._belief().update(memory, arms, self._observed()[arms], 1)
        return self._weights() if feedback.step >= self.warmup else None

    def on_grow(self, step: int) -> NDArray[np.float64] | None:
        """Weigh the new arms too."""
        return self._weights() if step >= self.warmup else None

    def values(self) -> NDArray[np.float64]:
        """(K,) mean of the belief."""
        return self.memory["estimate"]

    def _belief(self) -> Gaussian:
        return Gaussian(self.drift, self.noise, self.spread)

    def _observed(self) -> NDArray[np.float64]:
        """(K,) v."""
        known = np.isfinite(self.memory["batch"])
        count = np.maximum(known.sum(axis=1), 1)
        mean = np.where(known, self.memory["advantage"], 0.0).sum(axis=1) / count
        slope = _slopes(self.memory["batch"], self.memory["reward"], known, count)
        total = np.abs(slope).sum()
        return mean if total == 0.0 else (1.0 + slope / total) * mean

    def _weights(self) -> NDArray[np.float64]:
        usable = self.sizes > 0
        wins = np.zeros(len(usable))
        deviation = np.sqrt(self.memory["variance"][usable])
        wins[usable] = gaussian_wins(self.memory["estimate"][usable], deviation)
        return log_weights(wins)


def _slopes(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    known: NDArray[np.bool_],
    count: NDArray[np.int64],
) -> NDArray[np.float64]:
    """(K,) least-squares slope of y against x over the known points; 0 with fewer than two."""
    x, y = np.where(known, x, 0.0), np.where(known, y, 0.0)
    x = np.where(known, x - (x.sum(axis=1) / count)[:, None], 0.0)
    spread = (x * x).sum(axis=1)
    return np.divide((x * y).sum(axis=1), spread, out=np.zeros(len(x)), where=spread > 0.0)
