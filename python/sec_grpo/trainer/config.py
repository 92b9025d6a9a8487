"""Configuration of `GRPOTrainer`: `transformers.TrainingArguments` plus TRL's GRPO names."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from transformers import TrainingArguments

from sec_grpo.trainer.config_checks import LOSS_TYPES, check_choice, check_ranges, check_types
from sec_grpo.trainer.estimators import DEFAULT_SCALES
from sec_grpo.trainer.trl_names import accepts_trl_arguments


@dataclass
class GRPOConfig(TrainingArguments):
    """Arguments of a GRPO run; names and meanings follow `trl.GRPOConfig`.

    One *generation batch* holds `generation_batch_size` completions: `num_prompts` prompts drawn
    from the curriculum, `num_generations` (G) completions each. It is split over the processes and
    then into `steps_per_generation` micro-batches of `per_device_train_batch_size` completions; an
    optimizer step uses `gradient_accumulation_steps` of them, and every completion is used
    `num_iterations` times.

    With `dynamic_sampling_refills`, groups whose rewards are all equal give way to groups of
    prompts drawn after them (`sec_grpo.curriculum.DynamicSampling`); the batch keeps its size. A
    refill is a draw, so a schedule that counts draws, such as `Ordered`, runs ahead by it.

    Raises:
        ValueError: a value is out of range, or the batch sizes do not fit together.
    """

    per_device_train_batch_size: int = field(
        default=8, metadata={"help": "Completions per device and micro-batch."}
    )
    learning_rate: float = field(default=1e-6, metadata={"help": "Initial learning rate."})
    logging_steps: float = field(
        default=1, metadata={"help": "Log metrics every this many optimizer steps."}
    )
    lr_scheduler_type: str = field(
        default="constant_with_warmup", metadata={"help": "Learning rate schedule."}
    )
    save_steps: float = field(default=100, metadata={"help": "Save a checkpoint every X steps."})
    metric_for_best_model: str | None = field(
        default=None,
        metadata={
            "help": "Metric of the best model, with load_best_model_at_end. Default: reward, the "
            "mean reward of the evaluation."
        },
    )

    bf16: bool | None = field(
        default=None,
        metadata={
            "help": "Compute in bfloat16, keep the weights as they are. Default: where a GPU can."
        },
    )
    gradient_checkpointing: bool | None = field(
        default=None,
        metadata={
            "help": "Compute activations again in the backward. Default: on a GPU. (transformers "
            "5.20 calls it activation_checkpointing.)"
        },
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Hide NaN and infinite losses in the log."}
    )
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Arguments of from_pretrained when the model is given by name."},
    )

    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Run code that comes with the model or tokenizer when they are loaded."},
    )
    disable_dropout: bool = field(
        default=False, metadata={"help": "Set every dropout of the model to 0."}
    )

    num_generations: int = field(
        default=8, metadata={"help": "Completions per prompt (G); at least 2."}
    )
    max_completion_length: int = field(
        default=512, metadata={"help": "Most new tokens of a completion."}
    )
    steps_per_generation: int | None = field(
        default=None,
        metadata={
            "help": "Micro-batches made from one generation batch; a multiple of "
            "gradient_accumulation_steps, which is the default."
        },
    )
    generation_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Completions generated at a time over all processes. Default: "
            "per_device_train_batch_size x processes x steps_per_generation."
        },
    )
    num_iterations: int = field(
        default=1, metadata={"help": "Passes over each generation batch (mu in GRPO)."}
    )
    rollout_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Most completions generated together on one device; lower it when the "
            "key-value cache runs out of memory. Default: all."
        },
    )
    ds3_gather_for_generation: bool = field(
        default=True,
        metadata={
            "help": "FSDP and ZeRO-3: gather all parameters for sampling, which is faster; False "
            "gathers a layer at a time, for models that one device cannot hold."
        },
    )
    dynamic_sampling_refills: int = field(
        default=0,
        metadata={
            "help": "Dynamic sampling (DAPO): most times that a generation batch is drawn again "
            "for groups whose rewards are all equal, which teach nothing; 0 is off. The "
            "curriculum observes them all the same, and groups still missing then stay."
        },
    )
    generation_seed: int | None = field(
        default=None, metadata={"help": "Seed of draws and sampling. Default: seed."}
    )
    padding_free: bool | None = field(
        default=None,
        metadata={
            "help": "In the update, lay rows end to end without padding (True), or side by side, "
            "sorted by length (False). Default: end to end with flash attention only, since other "
            "attention then does the work between the rows as well."
        },
    )
    max_tokens_per_micro_batch: int | None = field(
        default=None,
        metadata={
            "help": "Most tokens (padding included) of a forward pass in the update; a longer row "
            "is run alone. Default: what a micro-batch holds on average, at least 2048, but no "
            "more than per_device_train_batch_size rows of the longest."
        },
    )

    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus sampling mass."})
    top_k: int = field(default=0, metadata={"help": "Top-k sampling; 0 keeps every token."})
    min_p: float | None = field(default=None, metadata={"help": "Minimum token probability."})
    repetition_penalty: float = field(
        default=1.0, metadata={"help": "Repetition penalty; 1 is none."}
    )
    generation_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "More arguments of transformers.GenerationConfig. Those of the sampler, such "
            "as top_k, go before the config's."
        },
    )

    cache_implementation: str | None = field(
        default=None, metadata={"help": "The kind of cache that generate uses, such as static."}
    )
    chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "More arguments of the tokenizer's chat template."}
    )
    use_transformers_continuous_batching: bool = field(
        default=False,
        metadata={
            "help": "Sample with transformers' continuous batching instead of generate. Runs are "
            "then not repeated bit for bit."
        },
    )
    transformers_continuous_batching_config: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Arguments of transformers.ContinuousBatchingConfig."}
    )

    beta: float = field(
        default=0.0, metadata={"help": "KL coefficient; above 0 a reference model is loaded."}
    )
    epsilon: float = field(default=0.2, metadata={"help": "Lower clip range of the ratio."})
    epsilon_high: float | None = field(
        default=None, metadata={"help": "Upper clip range; default: epsilon."}
    )
    delta: float | None = field(
        default=None, metadata={"help": "Upper bound of the ratio in two-sided clipping."}
    )
    loss_type: str = field(
        default="dapo",
        metadata={
            "help": f"Loss normalisation: {', '.join(LOSS_TYPES)}. bnpo averages over the tokens "
            "of each micro-batch, dapo over those of the optimizer step."
        },
    )
    sapo_temperature_pos: float = field(
        default=1.0, metadata={"help": "SAPO: temperature of the gate where A > 0."}
    )
    sapo_temperature_neg: float = field(
        default=1.05, metadata={"help": "SAPO: temperature of the gate elsewhere."}
    )
    vespo_k_pos: float = field(
        default=2.0, metadata={"help": "VESPO: exponent of the weight where A >= 0."}
    )
    vespo_lambda_pos: float = field(
        default=3.0, metadata={"help": "VESPO: decay of the weight where A >= 0."}
    )
    vespo_k_neg: float = field(
        default=3.0, metadata={"help": "VESPO: exponent of the weight elsewhere."}
    )
    vespo_lambda_neg: float = field(
        default=2.0, metadata={"help": "VESPO: decay of the weight elsewhere."}
    )
    use_bias_correction_kl: bool = field(
        default=True, metadata={"help": "Multiply the KL estimate by the ratio (DeepSeek-V3.2)."}
    )
    sync_ref_model: bool = field(
        default=False,
        metadata={"help": "Move the reference model towards the policy in training (TR-DPO)."},
    )
    ref_model_mixup_alpha: float = field(
        default=0.6, metadata={"help": "How far: ref <- alpha policy + (1 - alpha) ref."}
    )
    ref_model_sync_steps: int = field(
        default=512, metadata={"help": "How often, in optimizer steps."}
    )
    entropy_coef: float = field(
        default=0.0, metadata={"help": "Weight of the mean entropy per token, a bonus in the loss."}
    )
    use_adaptive_entropy: bool = field(
        default=False,
        metadata={
            "help": "Raise entropy_coef by entropy_coef_delta after a step whose entropy is at "
            "most entropy_target, else lower it; it applies only after such steps (Skywork-OR1)."
        },
    )
    entropy_coef_min: float = field(default=0.0, metadata={"help": "Its least value."})
    entropy_coef_max: float = field(default=1.0, metadata={"help": "Its largest."})
    entropy_coef_delta: float = field(
        default=0.005, metadata={"help": "Change of the adaptive entropy_coef a step."}
    )
    entropy_target: float = field(
        default=0.2, metadata={"help": "Target of the adaptive entropy, nats per token."}
    )
    off_policy_mask_threshold: float | None = field(
        default=None,
        metadata={
            "help": "Drop the policy term of completions with A < 0 that have moved further than "
            "this (mean log-ratio, nats) from the policy that sampled them."
        },
    )
    top_entropy_quantile: float = field(
        default=1.0,
        metadata={
            "help": "Share of tokens, those of highest entropy, that the policy term takes, of the "
            "tokens of a process's micro-batch that are run."
        },
    )
    importance_sampling_level: Literal["token", "sequence"] = field(
        default="token", metadata={"help": "Ratio per token (GRPO) or per sequence (GSPO)."}
    )
    scale_rewards: str | None = field(
        default=None,
        metadata={
            "help": "Divide advantages by the std of the group, the batch, or none. Default: as "
            "the estimator is published, which is group for grpo."
        },
    )
    advantage_estimator: str = field(
        default="grpo",
        metadata={
            "help": f"Where advantages come from: {', '.join(DEFAULT_SCALES)}; see docs/trainer.md."
        },
    )
    multi_objective_aggregation: str = field(
        default="sum_then_normalize",
        metadata={
            "help": "sum_then_normalize, or normalize_then_sum (GDPO): normalise each reward "
            "function's rewards in their group, add them weighted, and normalise the batch."
        },
    )
    baseline_column: str | None = field(
        default=None,
        metadata={
            "help": "Column that names a row's role, for advantage_estimator=role. Default: the "
            "row's category."
        },
    )
    baseline_decay: float = field(
        default=0.95, metadata={"help": "lambda of a role's baseline b <- lambda b + (1-lambda) R."}
    )
    gamma: float = field(default=1.0, metadata={"help": "PPO: discount per token."})
    lam: float = field(default=1.0, metadata={"help": "PPO: lambda of the advantages (GAE)."})
    vf_coef: float = field(default=0.1, metadata={"help": "PPO: weight of the value loss."})
    cliprange_value: float | None = field(
        default=0.2,
        metadata={"help": "PPO: most that the value loss lets a value move; None does not clip."},
    )
    value_learning_rate: float | None = field(
        default=None,
        metadata={"help": "PPO: learning rate of the value head. Default: learning_rate."},
    )
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "Weight of each reward function; default: 1."}
    )
    mask_truncated_completions: bool = field(
        default=False,
        metadata={
            "help": "Leave completions without an end token, and their tokens' count, out of the "
            "loss; they still count as sequences (grpo and dr_grpo), as in TRL."
        },
    )
    fused_lm_head: bool = field(
        default=True,
        metadata={
            "help": "Compute log-probabilities from hidden states and the lm_head in chunks, so "
            "that the (tokens, vocabulary) logits never exist whole."
        },
    )

    eval_temperature: float = field(
        default=0.0, metadata={"help": "Sampling temperature of evaluation; 0 is greedy."}
    )
    num_generations_eval: int = field(
        default=1,
        metadata={"help": "Completions per prompt in evaluation, whose mean counts; None is 1."},
    )
    check_reward_funcs: bool = field(
        default=True,
        metadata={"help": "Call the reward functions once on an empty answer before training."},
    )
    success_threshold: float = field(
        default=0.5,
        metadata={
            "help": "A completion succeeds when its reward is at least this; it counts successes "
            "in the log and changes nothing else."
        },
    )
    log_completions: bool = field(
        default=False,
        metadata={
            "help": "Keep every completion with its rewards in output_dir/completions, one parquet "
            "file a generation batch, and print some at each log."
        },
    )
    num_completions_to_print: int | None = field(
        default=4,
        metadata={"help": "Completions printed when log_completions is set; None prints all."},
    )
    log_unique_prompts: bool = field(
        default=False,
        metadata={"help": "Print, and send to trackers, one completion of each prompt."},
    )

    def __post_init__(self) -> None:
        check_choice("advantage_estimator", self.advantage_estimator, tuple(DEFAULT_SCALES))
        self.scale_rewards = self._scale()
        if self.num_generations_eval is None:  # TRL's default
            self.num_generations_eval = 1
        check_types(self, GRPOConfig.__annotations__)
        check_ranges(self)
        self._follow_the_device()
        self._name_the_best_metric()
        # The data loader is only a clock: setting it forward costs nothing and keeps the epoch.
        self.ignore_data_skip = False
        self.remove_unused_columns = False
        super().__post_init__()
        self._resolve_batches()

    def _follow_the_device(self) -> None:
        """bf16 and activation checkpointing where nothing is said: as TRL, but on GPUs only."""
        on_gpu = torch.cuda.is_available() and not self.use_cpu
        if self.bf16 is None:
            self.bf16 = on_gpu and not self.fp16 and torch.cuda.is_bf16_supported()
        # transformers 5.20 has a new name, and the old one as an alias that warns.
        names = ["activation_checkpointing", "gradient_checkpointing"]
        present = [name for name in names if hasattr(self, name)]
        if all(getattr(self, name) is None for name in present):
            setattr(self, present[0], on_gpu)

    def _name_the_best_metric(self) -> None:
        """The evaluation reward where Trainer would take a loss, which evaluation does not have."""
        if self.metric_for_best_model in ("loss", "eval_loss"):
            raise ValueError(
                f"metric_for_best_model must not be {self.metric_for_best_model!r}: evaluation has "
                "rewards and no loss. Leave it out for 'reward', or name a category: "
                "'reward/easy'"
            )
        by_plateau = self.lr_scheduler_type == "reduce_lr_on_plateau"
        if self.metric_for_best_model is None and (self.load_best_model_at_end or by_plateau):
            self.metric_for_best_model = "reward"

    def _scale(self) -> str:
        """`scale_rewards` by name: TRL also takes True and False, for group and none."""
        if self.scale_rewards is None:
            return DEFAULT_SCALES[self.advantage_estimator]
        named = str(self.scale_rewards).lower()
        return {"true": "group", "false": "none"}.get(named, named)

    def _resolve_batches(self) -> None:
        per_micro_step = self.per_device_train_batch_size * self.world_size
        if self.steps_per_generation is None:
            if self.generation_batch_size is None:
                self.steps_per_generation = self.gradient_accumulation_steps
            else:
                self.steps_per_generation = self.generation_batch_size // per_micro_step
        expected = per_micro_step * self.steps_per_generation
        if self.generation_batch_size is None:
            self.generation_batch_size = expected
        if self.generation_batch_size != expected or self.steps_per_generation < 1:
            raise ValueError(
                f"generation_batch_size ({self.generation_batch_size}) must equal "
                f"per_device_train_batch_size ({self.per_device_train_batch_size}) x processes "
                f"({self.world_size}) x steps_per_generation ({self.steps_per_generation}); "
                "set one of generation_batch_size and steps_per_generation"
            )
        if self.steps_per_generation % self.gradient_accumulation_steps:
            raise ValueError(
                f"steps_per_generation ({self.steps_per_generation}) must be a multiple of "
                f"gradient_accumulation_steps ({self.gradient_accumulation_steps})"
            )
        if self.generation_batch_size % self.num_generations:
            below = self.generation_batch_size // self.num_generations * self.num_generations
            nearest = [str(n) for n in (below, below + self.num_generations) if n > 0]
            raise ValueError(
                f"generation_batch_size ({self.generation_batch_size} completions) must be a "
                f"multiple of num_generations ({self.num_generations}); the nearest sizes that fit "
                f"are {' and '.join(nearest)}. It is per_device_train_batch_size "
                f"({self.per_device_train_batch_size}) x processes ({self.world_size}) x "
                f"steps_per_generation ({self.steps_per_generation})"
            )

    @property
    def num_prompts(self) -> int:
        """Prompts drawn from the curriculum per generation batch, over all processes."""
        assert self.generation_batch_size is not None
        return self.generation_batch_size // self.num_generations

    @property
    def updates_per_generation(self) -> int:
        """Optimizer steps made from one generation batch, `num_iterations` included."""
        assert self.steps_per_generation is not None
        updates = self.steps_per_generation // self.gradient_accumulation_steps
        return updates * self.num_iterations

    @classmethod
    def names(cls) -> list[str]:
        """Every argument's name."""
        return [f.name for f in fields(cls)]


# TrainingArguments turns the string form of every such field into a dict.
GRPOConfig._VALID_DICT_FIELDS = [
    *TrainingArguments._VALID_DICT_FIELDS,
    "chat_template_kwargs",
    "generation_kwargs",
    "model_init_kwargs",
    "transformers_continuous_batching_config",
]
GRPOConfig.__init__ = accepts_trl_arguments(GRPOConfig.__init__)  # type: ignore[method-assign]
