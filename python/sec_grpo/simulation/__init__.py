"""Curricula compared on a simulated learner: what a rule does, not what a model will gain."""

from sec_grpo.simulation.experiment import (
    SCENARIOS,
    Comparison,
    Method,
    Outcome,
    Protocol,
    Scenario,
    default_methods,
    simulate,
)
from sec_grpo.simulation.learner import LearnerSettings, SimulatedLearner

__all__ = [
    "SCENARIOS",
    "Comparison",
    "LearnerSettings",
    "Method",
    "Outcome",
    "Protocol",
    "Scenario",
    "SimulatedLearner",
    "default_methods",
    "simulate",
]
