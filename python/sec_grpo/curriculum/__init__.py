"""Curricula for GRPO: which prompts to draw next, learned from what the last ones taught."""

from sec_grpo.curriculum.adarft import AdaRFT
from sec_grpo.curriculum.allocators import UCB, Greedy, Softmax, Thompson
from sec_grpo.curriculum.alp_gmm import ALPGMM
from sec_grpo.curriculum.beta_thompson import BetaThompson
from sec_grpo.curriculum.composed import Composed
from sec_grpo.curriculum.curriculum import Curriculum, CurriculumStateError
from sec_grpo.curriculum.dump import DUMP
from sec_grpo.curriculum.e2h import E2HGaussian
from sec_grpo.curriculum.estimators import EMA, DiscountedBeta, Gaussian, Window
from sec_grpo.curriculum.factored import Factored
from sec_grpo.curriculum.floor import Floor
from sec_grpo.curriculum.gate import DynamicSampling, GatedBatch, ShortageError
from sec_grpo.curriculum.learnability import Learnability
from sec_grpo.curriculum.ordered import Ordered, Reverse
from sec_grpo.curriculum.pac import PAC
from sec_grpo.curriculum.plr import PLR
from sec_grpo.curriculum.random import Random
from sec_grpo.curriculum.registry import get_strategy, register_strategy, strategy_names
from sec_grpo.curriculum.sec import SEC
from sec_grpo.curriculum.staged import Staged
from sec_grpo.curriculum.strategy import Feedback, Strategy
from sec_grpo.curriculum.tscl import TSCL
from sec_grpo.curriculum.weights import StaticWeights

__all__ = [
    "ALPGMM",
    "DUMP",
    "EMA",
    "PAC",
    "PLR",
    "SEC",
    "TSCL",
    "UCB",
    "AdaRFT",
    "BetaThompson",
    "Composed",
    "Curriculum",
    "CurriculumStateError",
    "DiscountedBeta",
    "DynamicSampling",
    "E2HGaussian",
    "Factored",
    "Feedback",
    "Floor",
    "GatedBatch",
    "Gaussian",
    "Greedy",
    "Learnability",
    "Ordered",
    "Random",
    "Reverse",
    "ShortageError",
    "Softmax",
    "Staged",
    "StaticWeights",
    "Strategy",
    "Thompson",
    "Window",
    "get_strategy",
    "register_strategy",
    "strategy_names",
]
