"""A learner that stands for a language model: one skill a level, in microseconds a step.

L levels, B prompts a batch, G rollouts a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LearnerSettings:
    """Constants of the simulated learner; none is fitted to a language model.

    Attributes:
        skills: skill of each level at the start, easiest first; the last level is held out.
        sharpness: a, how fast success rises with skill.
        prompt_spread: standard deviation of a prompt's own difficulty b.
        learning_rate: change of a skill for a batch whose gradient is 1.
        spill: share of a level's change that the next level gets too.
        forgetting: share of the way back to the start that a skill loses in a step in which its
            level is not practised.
        hacking_rate: rise of the format hacking h for a batch in which every group fails.
        hacking_decay: share of h lost in a step.
        hacking_cost: c, what h = 1 takes from every skill.
        exploration_loss: share of the exploration lost for a batch in which every group passes.
        exploration_floor: what is left of it at least.
    """

    skills: tuple[float, ...] = (1.6, 0.2, -0.8, -1.6, -2.2)
    sharpness: float = 1.6
    prompt_spread: float = 0.35
    learning_rate: float = 0.55
    spill: float = 0.6
    forgetting: float = 0.003
    hacking_rate: float = 0.12
    hacking_decay: float = 0.02
    hacking_cost: float = 1.5
    exploration_loss: float = 0.03
    exploration_floor: float = 0.2


class SimulatedLearner:
    """Skills that answer prompts and take GRPO-like steps.

    A prompt of level l with difficulty b is solved with probability
    p = prod_{m <= l} sigmoid(a (s_m - b) - c h): every easier skill is needed, and h, the habit of
    pleasing the format instead of solving, spoils all. A step moves s_m by
    learning_rate * exploration * mean over rollouts of A d log P(outcome) / d s_m. By construction
    it is proportional to |A|.

    Args:
        settings: the constants.
        seed: of the rollouts.
    """

    def __init__(self, settings: LearnerSettings, seed: int | Sequence[int]) -> None:
        self._settings = settings
        self._start = np.asarray(settings.skills)
        self.skills = self._start.copy()
        self.hacking = 0.0
        self.exploration = 1.0
        self._generator = np.random.default_rng(seed)

    def factors(self, difficulties: Array) -> Array:
        """(n, L) sigmoid(a (s_m - b) - c h) of prompts with difficulties (n,)."""
        settings = self._settings
        logits = settings.sharpness * (self.skills - difficulties[:, None])
        return 1.0 / (1.0 + np.exp(settings.hacking_cost * self.hacking - logits))

    def success(self, levels: NDArray[np.int64], difficulties: Array) -> Array:
        """(n,) probability of solving each prompt."""
        reached = np.cumprod(self.factors(difficulties), axis=1)
        return np.asarray(reached[np.arange(len(levels)), levels])

    def answer(
        self, levels: NDArray[np.int64], difficulties: Array, num_generations: int
    ) -> NDArray[np.bool_]:
        """(B, G) whether each rollout is right."""
        p = self.success(levels, difficulties)
        return self._generator.random((len(levels), num_generations)) < p[:, None]

    def learn(
        self,
        levels: NDArray[np.int64],
        difficulties: Array,
        solved: NDArray[np.bool_],
        advantages: Array,
    ) -> None:
        """One step on rollouts (B, G); levels of -1 are practised in vain."""
        settings = self._settings
        known = levels >= 0
        groups = len(levels)
        change = np.zeros(len(self.skills))
        if known.any():
            level, right = levels[known], solved[known]
            factors = self.factors(difficulties[known])
            p = np.cumprod(factors, axis=1)[np.arange(len(level)), level]
            # d log P / d s_m is a (1 - f_m) for a solved rollout, and -p / (1 - p) times that.
            weight = np.where(right, 1.0, -(p / np.maximum(1.0 - p, 1e-9))[:, None])
            per_prompt = (advantages[known] * weight).mean(axis=1)
            needed = np.arange(factors.shape[1]) <= level[:, None]
            slope = settings.sharpness * (1.0 - factors) * needed
            change = settings.learning_rate * self.exploration * (per_prompt @ slope) / groups
        spilled = np.concatenate([[0.0], settings.spill * change[:-1]])
        practised = np.bincount(levels[known], minlength=len(self.skills)) > 0
        lost = settings.forgetting * np.where(practised, 0.0, self.skills - self._start)
        self.skills = self.skills + change + spilled - lost
        all_fail = float((~solved.any(axis=1)).sum()) / groups
        all_pass = float(solved.all(axis=1).sum()) / groups
        self.hacking += settings.hacking_rate * all_fail - settings.hacking_decay * self.hacking
        self.exploration = max(
            settings.exploration_floor,
            self.exploration * (1.0 - settings.exploration_loss * all_pass),
        )
