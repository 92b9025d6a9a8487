"""Arguments of TRL's GRPOConfig and GRPOTrainer that are not here, and what to do instead.

A program written for TRL keeps its arguments: those at TRL's default are taken and have no effect,
others are an error that says what there is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from sec_grpo.trainer.estimators import DEFAULT_SCALES

_VLLM = (
    "this trainer samples with transformers. To sample with vLLM, keep TRL's trainer and give it "
    "the curriculum: sec_grpo.integrations.trl.CurriculumGRPOTrainer"
)
_TOOLS = (
    "tools and environments are not supported. Keep TRL's trainer and give it the curriculum: "
    "sec_grpo.integrations.trl.CurriculumGRPOTrainer"
)


class Absent(NamedTuple):
    """An argument that is not here."""

    default: Any
    """TRL's default, which is accepted"""
    instead: str
    resolved: tuple[Any, ...] = ()
    """what TRL's config puts in the default's place; accepted too"""


ABSENT_CONFIG: dict[str, Absent] = {
    "router_aux_loss_coef": Absent(
        None,
        "there is no load-balancing loss for mixtures of experts, not even the one that TRL adds "
        "by default; freeze the router instead",
    ),
    "cast_lm_head_to_fp32": Absent(
        False,
        "the fused head accumulates and keeps logits in float32; what is multiplied is rounded to "
        "bfloat16 with bf16=True, and is float32 with bf16=False, as the weights are unless "
        "model_init_kwargs asks for another",
    ),
    "shuffle_dataset": Absent(
        True,
        "prompts are drawn by the curriculum: curriculum='ordered' goes from category to category, "
        "None draws every prompt equally often",
    ),
    "pad_to_multiple_of": Absent(
        "auto", "rows are sorted by length, or laid end to end; set padding_free", (None,)
    ),
    "max_tool_calling_iterations": Absent(None, _TOOLS),
    "log_multimodal": Absent(True, "prompts are text"),
    "log_completions_hub_repo": Absent(
        None, "log_completions writes parquet files to output_dir/completions; upload that folder"
    ),
    "use_transformers_paged": Absent(False, "set use_transformers_continuous_batching"),
    "use_vllm": Absent(False, _VLLM),
    "vllm_mode": Absent("colocate", _VLLM),
    "vllm_model_impl": Absent("vllm", _VLLM),
    "vllm_enable_sleep_mode": Absent(False, _VLLM),
    "vllm_structured_outputs_regex": Absent(None, _VLLM),
    "vllm_server_base_url": Absent(None, _VLLM),
    "vllm_server_host": Absent("0.0.0.0", _VLLM),
    "vllm_server_port": Absent(8000, _VLLM),
    "vllm_server_timeout": Absent(240.0, _VLLM),
    "vllm_group_port": Absent(51216, _VLLM),
    "vllm_gpu_memory_utilization": Absent(0.3, _VLLM),
    "vllm_max_model_length": Absent(None, _VLLM),
    "vllm_tensor_parallel_size": Absent(1, _VLLM),
    "vllm_importance_sampling_correction": Absent(True, _VLLM),
    "vllm_importance_sampling_mode": Absent("sequence_mask", _VLLM),
    "vllm_importance_sampling_clip_max": Absent(3.0, _VLLM),
    "vllm_importance_sampling_clip_min": Absent(None, _VLLM),
    "vllm_importance_sampling_cap": Absent(None, _VLLM),
    # Of earlier versions of TRL.
    "max_prompt_length": Absent(None, "shorten prompts in the data set: none is cut silently"),
    "use_liger_loss": Absent(False, "the lm_head is fused by default; see fused_lm_head"),
    "vllm_guided_decoding_regex": Absent(None, _VLLM),
}

ABSENT_TRAINER: dict[str, Absent] = {
    "tools": Absent(None, _TOOLS),
    "rollout_func": Absent(None, _TOOLS),
    "environment_factory": Absent(None, _TOOLS),
}


def explain_absent(absent: dict[str, Absent], given: dict[str, Any], owner: str) -> dict[str, Any]:
    """`given` without arguments that are not here.

    Raises:
        ValueError: one of them is set to something else than TRL's default.
    """
    kept = {}
    for name, value in given.items():
        if name not in absent:
            kept[name] = value
        elif value not in (absent[name].default, *absent[name].resolved):
            raise ValueError(f"{owner} has no {name} (got {value!r}): {absent[name].instead}")
    return kept


def accepts_trl_arguments(init: Callable[..., None]) -> Callable[..., None]:
    """An `__init__` that takes the arguments of TRL's GRPOConfig."""

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **explain_absent(ABSENT_CONFIG, kwargs, "GRPOConfig"))

    return __init__


DIFFERENT_CONFIG: dict[str, str] = {
    "beta": "the reference model is a copy of the model at the start, in memory, not loaded again",
    "bf16": "on by default where a GPU has it; TRL turns it on for CPUs too",
    "ds3_gather_for_generation": "for FSDP2 as well",
    "entropy_coef": "a mean over the optimizer step's tokens; with grpo and sapo over completions",
    "generation_batch_size": "may be given together with steps_per_generation, if they agree",
    "generation_kwargs": "overrides what only the sampler reads: top_p, top_k, min_p, "
    "repetition_penalty, cache_implementation; no beams",
    "gradient_checkpointing": "on by default on a GPU, off on a CPU",
    "importance_sampling_level": "luspo needs 'sequence' and vespo 'token'; TRL warns",
    "logging_nan_inf_filter": "False: a NaN loss is shown",
    "logging_steps": "1, so that metrics.jsonl has every step; a checkpoint logs too",
    "lr_scheduler_type": "constant_with_warmup, as usual in reinforcement learning",
    "metric_for_best_model": "reward, where TRL takes the loss, which evaluation does not have",
    "num_completions_to_print": "4; None prints all",
    "num_generations_eval": "1, because evaluation is greedy by default (eval_temperature)",
    "remove_unused_columns": "False always: reward functions get every column",
    "save_steps": "100",
    "scale_rewards": "unset, which is group for the default estimator",
    "top_entropy_quantile": "of the tokens of a process's micro-batch that are run",
    "transformers_continuous_batching_config": "on a CPU the cache holds what the batch needs",
}
"""Arguments of both with another default, or a meaning that is not quite the same"""

ADDED_CONFIG: dict[str, str] = {
    "advantage_estimator": ", ".join(DEFAULT_SCALES),
    "baseline_column": "whose baseline a row's reward is compared with (estimator role)",
    "baseline_decay": "of that baseline",
    "check_reward_funcs": "call reward functions on an empty answer before training",
    "cliprange_value": "PPO",
    "dynamic_sampling_refills": "draw again for groups whose rewards are all equal (DAPO)",
    "eval_temperature": "0 is greedy",
    "fused_lm_head": "no (tokens, vocabulary) logits",
    "gamma": "PPO",
    "generation_seed": "of draws and sampling",
    "lam": "PPO",
    "max_tokens_per_micro_batch": "most tokens of a forward pass in the update",
    "padding_free": "rows end to end in the update",
    "rollout_batch_size": "most completions sampled together",
    "success_threshold": "what counts as a success in the log",
    "value_learning_rate": "PPO",
    "vf_coef": "PPO",
}
"""Arguments of ours alone"""
