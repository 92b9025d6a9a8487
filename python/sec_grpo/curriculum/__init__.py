"""Curricula for GRPO: which prompts to draw next, learned from what the last ones taught."""

from sec_grpo.curriculum.curriculum import Curriculum, CurriculumStateError
from sec_grpo.curriculum.dump import DUMP
from sec_grpo.curriculum.learnability import TSCL, Learnability
from sec_grpo.curriculum.ordered import Ordered, Reverse
from sec_grpo.curriculum.random import Random
from sec_grpo.curriculum.registry import get_strategy, strategy_names
from sec_grpo.curriculum.sec import SEC
from sec_grpo.curriculum.strategy import Feedback, Strategy
from sec_grpo.curriculum.weights import StaticWeights

__all__ = [
    "DUMP",
    "SEC",
    "TSCL",
    "Curriculum",
    "CurriculumStateError",
    "Feedback",
    "Learnability",
    "Ordered",
    "Random",
    "Reverse",
    "StaticWeights",
    "Strategy",
    "get_strategy",
    "strategy_names",
]
