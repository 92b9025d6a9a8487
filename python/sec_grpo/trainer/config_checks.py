"""Ranges of `GRPOConfig`'s arguments, and which go together; every error names the argument."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from sec_grpo.trainer.estimators import GROUP_RELATIVE

if TYPE_CHECKING:
    from sec_grpo.trainer.config import GRPOConfig

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")


# Declared type -> what a value must be an instance of, and what that is called.
_TYPES: dict[str, tuple[Any, str]] = {
    "bool": (bool, "True or False"),
    "float": (Real, "a number"),
    "int": (Integral, "an integer"),
    "str": (str, "a string"),
}


def check_types(config: GRPOConfig, declared: Mapping[str, Any]) -> None:
    """ValueError for a value of another type than is declared; a dataclass takes anything."""
    for name, type_name in declared.items():
        kind, _, rest = str(type_name).partition(" | ")
        value = getattr(config, name)
        if kind not in _TYPES or rest not in ("", "None") or (value is None and rest):
            continue
        wanted, described = _TYPES[kind]
        if not isinstance(value, wanted) or (isinstance(value, bool) and kind != "bool"):
            unset = " or None" if rest else ""
            raise ValueError(f"{name} must be {described}{unset}, got {value!r}")
    weights = config.reward_weights
    is_list = isinstance(weights, (list, tuple))
    if weights is not None and not (is_list and all(isinstance(w, Real) for w in weights)):
        raise ValueError(f"reward_weights must be a list of numbers or None, got {weights!r}")


def check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")


def check_ranges(config: GRPOConfig) -> None:
    """ValueError for an argument out of its range, or one that does not go with another."""
    _check_batches(config)
    _check_sampling(config)
    _check_loss(config)
    _check_entropy(config)
    _check_reference(config)
    _check_estimator(config)
    shown = config.num_completions_to_print
    if shown is not None and shown < 0:
        raise ValueError(f"num_completions_to_print must be 0 or above, or None, got {shown}")
    if not math.isfinite(config.success_threshold):
        raise ValueError(f"success_threshold must be finite, got {config.success_threshold}")


def _check_batches(config: GRPOConfig) -> None:
    for name in (
        "per_device_train_batch_size",
        "per_device_eval_batch_size",
        "gradient_accumulation_steps",
        "max_completion_length",
        "num_iterations",
    ):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    for name in (
        "steps_per_generation",
        "generation_batch_size",
        "rollout_batch_size",
        "max_tokens_per_micro_batch",
    ):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1 or unset, got {value}")
    if config.max_steps == 0:
        raise ValueError("max_steps must be at least 1, or -1 to train for num_train_epochs, got 0")
    refills = config.dynamic_sampling_refills
    if refills < 0:
        raise ValueError(f"dynamic_sampling_refills must be at least 0, got {refills}")
    if config.auto_find_batch_size:
        raise ValueError(
            "auto_find_batch_size must be False: a generation batch is laid out for one batch "
            "size. Lower per_device_train_batch_size and raise gradient_accumulation_steps instead"
        )


def _check_sampling(config: GRPOConfig) -> None:
    if not 0 < config.temperature < math.inf:
        raise ValueError(
            f"temperature must be above 0, got {config.temperature}: greedy rollouts of one "
            "prompt are all the same and teach nothing"
        )
    if not 0 <= config.eval_temperature < math.inf:
        raise ValueError(f"eval_temperature must be 0 or above, got {config.eval_temperature}")
    if config.num_generations_eval < 1:
        raise ValueError(
            f"num_generations_eval must be at least 1, got {config.num_generations_eval}"
        )
    if config.num_generations_eval > 1 and config.eval_temperature == 0:
        raise ValueError(
            f"eval_temperature must be above 0 with num_generations_eval="
            f"{config.num_generations_eval}: greedy completions of one prompt are all the same"
        )
    if not 0 < config.top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {config.top_p}")
    if config.top_k < 0:
        raise ValueError(f"top_k must be 0 (every token) or above, got {config.top_k}")
    if config.min_p is not None and not 0 <= config.min_p <= 1:
        raise ValueError(f"min_p must be in [0, 1] or unset, got {config.min_p}")
    if not 0 < config.repetition_penalty < math.inf:
        raise ValueError(f"repetition_penalty must be above 0, got {config.repetition_penalty}")


def _check_loss(config: GRPOConfig) -> None:
    if config.torch_compile and not config.fused_lm_head:
        raise ValueError("torch_compile compiles what is below the lm_head: leave fused_lm_head on")
    check_choice("loss_type", config.loss_type, LOSS_TYPES)
    check_choice(
        "importance_sampling_level", config.importance_sampling_level, ("token", "sequence")
    )
    if not 0 <= config.epsilon <= 1:
        raise ValueError(f"epsilon must be in [0, 1], got {config.epsilon}")
    for name in ("epsilon_high", "beta"):
        value = getattr(config, name)
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"{name} must be 0 or above, got {value}")
    above_0 = ["sapo_temperature_pos", "sapo_temperature_neg"]
    above_0 += ["vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"]
    for name in above_0:
        if not 0 < getattr(config, name) < math.inf:
            raise ValueError(f"{name} must be above 0, got {getattr(config, name)}")
    threshold = config.off_policy_mask_threshold
    if threshold is not None and not 0 < threshold < math.inf:
        raise ValueError(f"off_policy_mask_threshold must be above 0 or unset, got {threshold}")
    if not 0 < config.top_entropy_quantile <= 1:
        raise ValueError(
            f"top_entropy_quantile must be in (0, 1], got {config.top_entropy_quantile}"
        )
    level = {"luspo": "sequence", "vespo": "token"}.get(config.loss_type)
    if level is not None and config.importance_sampling_level != level:
        raise ValueError(
            f"importance_sampling_level must be {level!r} with loss_type={config.loss_type!r}, got "
            f"{config.importance_sampling_level!r}"
        )
    if config.delta is not None:
        if config.loss_type in ("cispo", "sapo", "vespo"):
            raise ValueError(
                f"delta must be unset with loss_type={config.loss_type!r}, which bounds the ratio "
                f"in its own way, got {config.delta}"
            )
        high = config.epsilon if config.epsilon_high is None else config.epsilon_high
        if not 1 + high <= config.delta < math.inf:
            raise ValueError(
                f"delta must be at least 1 + epsilon_high ({1 + high:g}), got {config.delta}"
            )


def _check_entropy(config: GRPOConfig) -> None:
    names = ("entropy_coef", "entropy_coef_min", "entropy_coef_max", "entropy_coef_delta")
    for name in (*names, "entropy_target"):
        value = getattr(config, name)
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be 0 or above, got {value}")
    if config.entropy_coef_min > config.entropy_coef_max:
        raise ValueError(
            f"entropy_coef_min must be at most entropy_coef_max ({config.entropy_coef_max}), got "
            f"{config.entropy_coef_min}"
        )


def _check_reference(config: GRPOConfig) -> None:
    if config.sync_ref_model and config.beta == 0:
        raise ValueError("sync_ref_model must be False with beta=0, where there is no reference")
    if not 0 <= config.ref_model_mixup_alpha <= 1:
        raise ValueError(
            f"ref_model_mixup_alpha must be in [0, 1], got {config.ref_model_mixup_alpha}"
        )
    if config.ref_model_sync_steps < 1:
        raise ValueError(
            f"ref_model_sync_steps must be at least 1, got {config.ref_model_sync_steps}"
        )


def _check_estimator(config: GRPOConfig) -> None:
    estimator, scale = config.advantage_estimator, config.scale_rewards
    scales = ("group", "batch", "none") if estimator in GROUP_RELATIVE else ("batch", "none")
    if scale not in scales:
        raise ValueError(
            f"scale_rewards must be one of {', '.join(scales)} with "
            f"advantage_estimator={estimator!r}; got {scale!r}"
        )
    check_choice(
        "multi_objective_aggregation",
        config.multi_objective_aggregation,
        ("sum_then_normalize", "normalize_then_sum"),
    )
    normalized = config.multi_objective_aggregation == "normalize_then_sum"
    if normalized and estimator != "grpo":
        raise ValueError(
            "multi_objective_aggregation must be 'sum_then_normalize' with "
            f"advantage_estimator={estimator!r}, got 'normalize_then_sum', which is an estimator "
            "of its own"
        )
    least = 2 if estimator in GROUP_RELATIVE else 1
    if config.num_generations < least:
        raise ValueError(
            f"num_generations must be at least {least}, got {config.num_generations}"
            + (
                ": an advantage compares the completions of one prompt with each other"
                if least == 2
                else ""
            )
        )
    if estimator not in GROUP_RELATIVE and config.dynamic_sampling_refills:
        raise ValueError(
            f"dynamic_sampling_refills must be 0 with advantage_estimator={estimator!r}, to which "
            f"groups of equal rewards teach something; got {config.dynamic_sampling_refills}"
        )
    _check_role_and_critic(config)


def _check_role_and_critic(config: GRPOConfig) -> None:
    for name in ("baseline_decay", "gamma", "lam"):
        value = getattr(config, name)
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {value}")
    if config.baseline_column is not None and config.advantage_estimator != "role":
        raise ValueError(
            "baseline_column must be unset but for advantage_estimator='role', got "
            f"{config.baseline_column!r}"
        )
    if not 0 <= config.vf_coef < math.inf:
        raise ValueError(f"vf_coef must be 0 or above, got {config.vf_coef}")
    for name in ("cliprange_value", "value_learning_rate"):
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} must be above 0 or unset, got {value}")
    if config.advantage_estimator == "ppo" and not config.fused_lm_head:
        raise ValueError(
            "fused_lm_head must be True with advantage_estimator='ppo': the value head reads the "
            "hidden states that the fused head reads"
        )
