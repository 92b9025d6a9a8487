"""Accelerated GRPO: fused loss kernels and a self-evolving curriculum.

The names below are imported on first use, so that the curriculum can be used without torch and the
kernels without transformers.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sec_grpo.curriculum import ALPGMM as ALPGMM
    from sec_grpo.curriculum import DUMP as DUMP
    from sec_grpo.curriculum import PAC as PAC
    from sec_grpo.curriculum import PLR as PLR
    from sec_grpo.curriculum import SEC as SEC
    from sec_grpo.curriculum import TSCL as TSCL
    from sec_grpo.curriculum import AdaRFT as AdaRFT
    from sec_grpo.curriculum import BetaThompson as BetaThompson
    from sec_grpo.curriculum import Composed as Composed
    from sec_grpo.curriculum import Curriculum as Curriculum
    from sec_grpo.curriculum import DynamicSampling as DynamicSampling
    from sec_grpo.curriculum import E2HGaussian as E2HGaussian
    from sec_grpo.curriculum import Factored as Factored
    from sec_grpo.curriculum import Floor as Floor
    from sec_grpo.curriculum import Learnability as Learnability
    from sec_grpo.curriculum import Ordered as Ordered
    from sec_grpo.curriculum import Random as Random
    from sec_grpo.curriculum import Reverse as Reverse
    from sec_grpo.curriculum import Staged as Staged
    from sec_grpo.curriculum import StaticWeights as StaticWeights
    from sec_grpo.curriculum import Strategy as Strategy
    from sec_grpo.ops import group_advantages as group_advantages
    from sec_grpo.ops import linear_logprob as linear_logprob
    from sec_grpo.ops import linear_policy_loss as linear_policy_loss
    from sec_grpo.ops import off_policy_mask as off_policy_mask
    from sec_grpo.ops import policy_loss as policy_loss
    from sec_grpo.ops import rollout_weights as rollout_weights
    from sec_grpo.ops import top_entropy_mask as top_entropy_mask
    from sec_grpo.trainer import GRPOConfig as GRPOConfig
    from sec_grpo.trainer import GRPOTrainer as GRPOTrainer

__version__ = version("sec-grpo")

_MODULES = {
    "sec_grpo.curriculum": (
        "DUMP",
        "ALPGMM",
        "AdaRFT",
        "BetaThompson",
        "Composed",
        "DynamicSampling",
        "E2HGaussian",
        "Factored",
        "Floor",
        "PAC",
        "PLR",
        "Staged",
        "SEC",
        "TSCL",
        "Curriculum",
        "Learnability",
        "Ordered",
        "Random",
        "Reverse",
        "StaticWeights",
        "Strategy",
    ),
    "sec_grpo.ops": (
        "group_advantages",
        "linear_logprob",
        "linear_policy_loss",
        "off_policy_mask",
        "policy_loss",
        "rollout_weights",
        "top_entropy_mask",
    ),
    "sec_grpo.trainer": ("GRPOConfig", "GRPOTrainer"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sec_grpo' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
