"""Accuracy per level of a model, with intervals, pass@k and the completions kept."""

from sec_grpo.evaluation.evaluate import EvaluationResult, LevelResult, evaluate, pass_at_k

__all__ = ["EvaluationResult", "LevelResult", "evaluate", "pass_at_k"]
