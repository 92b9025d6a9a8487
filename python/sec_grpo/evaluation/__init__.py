"""Accuracy per level of a model, with intervals, pass@k and the completions kept."""

from sec_grpo.evaluation.evaluate import EvaluationResult, LevelResult, evaluate
from sec_grpo.evaluation.statistics import mean_interval, pass_at_k

__all__ = ["EvaluationResult", "LevelResult", "evaluate", "mean_interval", "pass_at_k"]
