"""Ranks of scores, with a share for what was long not seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sec_grpo.curriculum._elementary import power
from sec_grpo.curriculum._labels import Label
from sec_grpo.curriculum._parameters import real_parameter
from sec_grpo.curriculum.floor import log_weights
from sec_grpo.curriculum.signals import abs_advantage
from sec_grpo.curriculum.strategy import Feedback, Strategy


@dataclass(frozen=True)
class PLR(Strategy):
    """Prioritized level replay (arXiv 2010.03934).

    p = (1 - rho) p_score + rho p_stale: p_score(c) proportional to rank(c)^(-1 / beta), rank 1 the
    highest score, and p_stale(c) to the draws since the arm was last observed.

    Departures: 1. the score is the arm's mean |A| at its last observation, for the paper's mean
    |generalised advantage|; 2. arms never observed rank first, for the paper's separate choice of
    unseen levels; 3. equal scores share the weight of their ranks; 4. arms, not levels, so the
    same arm can fill several slots.

    Args:
        beta: of the ranks, above 0; the paper's 0.1.
        rho: share of staleness, in [0, 1]; the paper's 0.1.

    Raises TypeError or ValueError, naming the parameter, for anything else.
    """

    beta: float = 0.1
    rho: float = 0.1

    def __post_init__(self) -> None:
        beta = real_parameter("beta", self.beta, "a finite number above 0")
        if beta <= 0.0:
            raise ValueError(f"beta must be a finite number above 0, got {self.beta!r}")
        rho = real_parameter("rho", self.rho, "a number in [0, 1]")
        if not 0.0 <= rho <= 1.0:
            raise ValueError(f"rho must be a number in [0, 1], got {self.rho!r}")
        object.__setattr__(self, "beta", beta)
        object.__setattr__(self, "rho", rho)

    def on_bind(self, arms: tuple[Label, ...], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
        """No arm observed."""
        ranks = np.arange(1.0, np.count_nonzero(sizes) + 1.0)
        self.cache["by_rank"] = power(ranks, -1.0 / self.beta)
        self.memory["score"] = np.full(len(arms), np.nan)
        self.memory["observed_step"] = np.zeros(len(arms), dtype=np.int64)
        return self._weights(0)

    def observe(self, feedback: Feedback) -> NDArray[np.float64]:
        """Score the arms of the batch."""
        abs_advantage(feedback, 0.0)
        self.memory["score"][feedback.arms] = feedback.abs_advantage
        self.memory["observed_step"][feedback.arms] = feedback.step
        return self._weights(feedback.step)

    def on_grow(self, step: int) -> NDArray[np.float64]:
        """Weigh the new arms too."""
        return self._weights(step)

    def values(self) -> NDArray[np.float64]:
        """(K,) scores, NaN before the first observation."""
        return self.memory["score"]

    def _weights(self, step: int) -> NDArray[np.float64]:
        usable = np.flatnonzero(self.sizes)
        score = self.memory["score"][usable]
        score = np.where(np.isnan(score), np.inf, score)
        _, position, counts = np.unique(-score, return_inverse=True, return_counts=True)
        by_rank = self.cache["by_rank"]
        total = np.add.reduceat(by_rank, np.cumsum(counts) - counts)
        by_score = (total / counts)[position]
        staleness = (step - self.memory["observed_step"][usable]).astype(np.float64)
        p = by_score / by_score.sum()
        if staleness.sum() > 0.0:
            p = (1.0 - self.rho) * p + self.rho * staleness / staleness.sum()
        weights = np.zeros(len(self.sizes))
        weights[usable] = p
        return log_weights(weights)
