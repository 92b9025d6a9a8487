"""GRPO on `transformers.Trainer` with a curriculum that chooses the prompts.

What differs from a plain Trainer:

1. `get_batch_samples`, called once per optimizer step, draws prompts from the curriculum, samples
   and scores completions, feeds the advantages back, and returns what to run. The data loader is
   only a clock, so no draw is ever stale.
2. Only rows that can have a gradient are run: groups whose rewards are all equal are left out
   (their tokens stay in the denominators). The others are packed by length, across the step's
   micro-batches, which the loss does not see.
3. Sampling is seeded by counters, and a checkpoint holds the curriculum and the completions still
   to be used, so that a resumed run repeats the uninterrupted one.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, SequentialSampler
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    set_seed,
)
from transformers.utils import logging

from sec_grpo.curriculum import Curriculum, Strategy
from sec_grpo.distributed import DistributedCurriculum
from sec_grpo.errors import CheckpointError, RewardError
from sec_grpo.trainer.batch import Rollouts
from sec_grpo.trainer.collect import RolloutCollector
from sec_grpo.trainer.completions import CompletionLog
from sec_grpo.trainer.config import GRPOConfig
from sec_grpo.trainer.critic import (
    add_value_head,
    separate_group,
    value_head,
    without_value_head,
)
from sec_grpo.trainer.encoding import Encoder
from sec_grpo.trainer.entropy import EntropyBonus
from sec_grpo.trainer.evaluation import (
    Evaluator,
    by_category,
    evaluation_prompts,
    joined,
    named_prompts,
)
from sec_grpo.trainer.layout import Layout, find_layout
from sec_grpo.trainer.memory import advice_on_memory
from sec_grpo.trainer.metrics import MetricStore
from sec_grpo.trainer.packed import PackedTrainer
from sec_grpo.trainer.parallel import is_sharded, shard_reference, whole_parameters
from sec_grpo.trainer.policy import base_model, check_lm_head, compile_decoder
from sec_grpo.trainer.prompts import DEFAULT_CATEGORY, Category, PromptDataset, used_category
from sec_grpo.trainer.reference import reference_model, reference_sync
from sec_grpo.trainer.resumable import ResumableTrainer
from sec_grpo.trainer.rewards import RewardFunc, RewardFunctions
from sec_grpo.trainer.rollout import Sampler, frozen_weights_cast
from sec_grpo.trainer.run_log import RunRecorder
from sec_grpo.trainer.scoring import check_reward_funcs
from sec_grpo.trainer.setup import (
    as_dict,
    check_arguments,
    disable_dropout,
    has_dropout,
    load_model,
    load_tokenizer,
    make_curriculum,
    make_estimator,
    make_generation_config,
    max_positions,
    parameter_digest,
    refuse_arguments,
    refuse_unsupported_model,
    warn_of_estimator,
    warn_of_low_precision,
    warn_of_router,
    warn_of_sequence_ratio,
)
from sec_grpo.trainer.step_timer import StepTimer
from sec_grpo.trainer.trl_attributes import TRLAttributes
from sec_grpo.trainer.update import Pack, PolicyUpdate

logger = logging.get_logger(__name__)


class GRPOTrainer(TRLAttributes, ResumableTrainer, PackedTrainer):
    """Train a causal language model with GRPO (arXiv 2402.03300) on prompts a curriculum chooses.

    Args:
        model: a transformers causal language model (PEFT-wrapped or not), or what
            `AutoModelForCausalLM.from_pretrained` accepts.
        reward_funcs: one function or several in TRL's signature, `f(prompts, completions,
            completion_ids, <columns>, trainer_state, log_metric) -> list of B floats`; a sequence
            classifier with one label, or its name, is a reward model.
        args: the run's configuration.
        train_dataset: rows with a `prompt` column (a string or chat messages); every other column
            is handed to the reward functions.
        eval_dataset: rows of the same form; `evaluate` reports the mean evaluation reward per
            category, which may include categories that are not trained on (held out).
            Several as a dict are evaluated one by one.
        processing_class: the tokenizer; default: the one saved beside the model.
        reward_processing_classes: tokenizers of reward models; default: those saved beside them.
        callbacks, optimizers: as in `transformers.Trainer`.
        quantization_config: for a model given by name.
        peft_config: a `peft.PeftConfig` to wrap the model with.
        curriculum: a strategy (`SEC(temperature=0.2)`), its name (`"sec"`), a dict with `name` and
            its parameters, or a `Curriculum` over the rows of train_dataset. None draws every
            prompt equally often.
        category: the column whose value is the row's curriculum arm, several columns, a function
            of the row, or None for a single arm. Without a strategy the default column may be
            missing, which is as None.
        eval_reward_funcs: reward functions of evaluation; default: reward_funcs.

    The order of the first arguments is TRL's.

    Raises:
        ValueError: the data set, the category, the strategy, the reward functions or the model do
            not fit, each with the reason, before anything is trained.
    """

    def __init__(
        self,
        model: str | PreTrainedModel | torch.nn.Module,
        reward_funcs: RewardFunc | Sequence[RewardFunc] | None = None,
        args: GRPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward_processing_classes: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
        *,
        curriculum: Curriculum | Strategy | str | dict[str, Any] | None = None,
        category: Category = DEFAULT_CATEGORY,
        eval_reward_funcs: RewardFunc | Sequence[RewardFunc] | None = None,
        **absent: Any,
    ) -> None:
        refuse_arguments(absent)
        args = check_arguments(args)
        has_strategy = not (curriculum is None or isinstance(curriculum, Curriculum))
        category = used_category(category, train_dataset, has_strategy=has_strategy)
        self._category = category
        self._prompts = PromptDataset(train_dataset, category)
        self._eval_prompts = evaluation_prompts(eval_dataset, category)
        self._rewards = self._eval_rewards = RewardFunctions(
            reward_funcs, args.reward_weights, reward_processing_classes
        )
        if eval_reward_funcs is not None:
            self._eval_rewards = RewardFunctions(eval_reward_funcs, None)
        self.generation_seed = args.seed if args.generation_seed is None else args.generation_seed
        self.curriculum = make_curriculum(curriculum, self._prompts, args, self.generation_seed)
        warn_of_estimator(self.curriculum.strategy, args)
        warn_of_sequence_ratio(args)
        self._prompts.require_column(args.baseline_column, "baseline_column")
        processing_class = load_tokenizer(
            model, processing_class, trust_remote_code=args.trust_remote_code
        )
        set_seed(args.seed)  # for what an adapter begins with
        model = load_model(model, args, peft_config, quantization_config)
        if args.disable_dropout:
            disable_dropout(model)
        self._reference = reference_model(
            model, args.beta, new_adapter=peft_config is not None, sharded=bool(args.fsdp)
        )
        if args.advantage_estimator == "ppo":
            add_value_head(model, base_model(model).config.get_text_config().hidden_size)
        super().__init__(
            model=model,
            args=args,
            data_collator=lambda rows: rows,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        # The loss is normalised by the whole batch's counts, not per micro-batch.
        self.model_accepts_loss_kwargs = True
        self._prepare(processing_class)

    # ---- Set-up -------------------------------------------------------------------------------

    def _prepare(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Check the model, and make the parts that a step is made of."""
        args = self.args
        refuse_unsupported_model(self.model)
        warn_of_router(self.model)
        if not self.is_deepspeed_enabled:  # which keeps weights in float32 beside them
            warn_of_low_precision(self.model, args.learning_rate)
        self.sharded = is_sharded(self)  # whether every forward is a collective of all processes
        self._model_digest = parameter_digest(self.model)
        if self._reference is not None:
            if self.sharded:
                self._reference = shard_reference(self._reference, self.accelerator)
            else:
                self._reference.to(args.device)
        if args.sync_ref_model:
            self.add_callback(reference_sync(self.model, self._reference, args))
        layout = self._check_model()
        if args.torch_compile:
            compile_decoder(self.model, **self.accelerator.state.dynamo_plugin.to_kwargs())
        self._metrics = MetricStore()
        self._timer = StepTimer(self._metrics, args.device)
        self.add_callback(self._timer)
        self._completion_log = None
        if args.log_completions and self.is_world_process_zero():
            self._completion_log = CompletionLog(
                args.output_dir,
                num_to_print=args.num_completions_to_print,
                unique_prompts=args.log_unique_prompts,
                report_to=args.report_to,
            )
        generation_config = make_generation_config(self.model, tokenizer, args)
        self._entropy_bonus = EntropyBonus(args)
        self._update = PolicyUpdate(
            args=args,
            accelerator=self.accelerator,
            processes=self._processes,
            metrics=self._metrics,
            pad_token_id=generation_config.pad_token_id,
            layout=layout,
            sharded=self.sharded,
            has_dropout=has_dropout(self.model),
            entropy_bonus=self._entropy_bonus,
        )
        self._prepare_rollouts(tokenizer, generation_config)
        self._recorder = RunRecorder(
            args.output_dir, self.curriculum, enabled=self.is_world_process_zero()
        )
        self._rollouts: Rollouts | None = None

    def _check_model(self) -> Layout:
        """Try the model on a few tokens: its head, and how rows may be laid out."""
        args = self.args
        first = next(self.model.parameters())
        if getattr(first, "ds_tensor", None) is not None:
            return Layout(packed=bool(args.padding_free))  # ZeRO-3 has loaded shards already
        with self.accelerator.autocast():
            if args.fused_lm_head:
                check_lm_head(self.model, torch.tensor([[0, 1]], device=first.device))
            # Of the first process: with FSDP others may not have loaded the weights.
            return self._processes.gather_objects(find_layout(self.model, args.padding_free))[0]

    def _prepare_rollouts(
        self, tokenizer: PreTrainedTokenizerBase, generation_config: GenerationConfig
    ) -> None:
        args = self.args
        self._encoder = Encoder(
            tokenizer,
            max_positions=max_positions(self.model),
            max_completion_length=args.max_completion_length,
            template_kwargs=as_dict(args.chat_template_kwargs),
        )
        for rows in (self._prompts, *self._eval_prompts.values()):
            self._encoder.check(rows)
        continuous = as_dict(args.transformers_continuous_batching_config)
        sampler = Sampler(
            generation_config,
            tokenizer,
            batch_size=args.rollout_batch_size,
            continuous_batching=continuous if args.use_transformers_continuous_batching else None,
            context=self._sampling_context,
            synced=self.sharded and not args.ds3_gather_for_generation,
        )
        self._estimator = make_estimator(args, len(self._rewards.names))
        self._collector = RolloutCollector(
            args=args,
            prompts=self._prompts,
            rewards=self._rewards,
            curriculum=DistributedCurriculum(self.curriculum, accelerator=self.accelerator),
            encoder=self._encoder,
            sampler=sampler,
            estimator=self._estimator,
            critic=self._criticise if args.advantage_estimator == "ppo" else None,
            processes=self._processes,
            metrics=self._metrics,
            timer=self._timer,
            completion_log=self._completion_log,
            seed=self.generation_seed,
        )
        self._evaluator = Evaluator(
            encoder=self._encoder,
            sampler=sampler.at_temperature(args.eval_temperature, None),
            processes=self._processes,
            batch_size=args.per_device_eval_batch_size,
            num_generations=args.num_generations_eval,
            sharded=self.sharded,
            seed=self.generation_seed,
        )

    @contextlib.contextmanager
    def _sampling_context(self, model: Any) -> Iterator[None]:
        """Weights are gathered and cast once for a whole generation, and not once a token."""
        whole = self.sharded and self.args.ds3_gather_for_generation
        with (
            self.accelerator.autocast(),
            whole_parameters(self) if whole else contextlib.nullcontext(),
            contextlib.nullcontext() if self.sharded else frozen_weights_cast(model),
        ):
            yield

    def _criticise(self, rollouts: Rollouts, rewards: torch.Tensor) -> None:
        self._update.add_values(self.model_wrapped, rollouts, rewards)

    def _updates_per_epoch(self) -> int:
        """Optimizer steps in which as many prompts are drawn as there are, rounded up."""
        generations = math.ceil(len(self._prompts) / self.args.num_prompts)
        return generations * self.args.updates_per_generation

    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        if self.args.max_steps > 0:
            return self.args.max_steps
        return math.ceil(self.args.num_train_epochs * self._updates_per_epoch())

    def get_train_dataloader(self) -> DataLoader:
        """A clock with one tick per micro-batch."""
        ticks = self._updates_per_epoch() * self.args.gradient_accumulation_steps
        return DataLoader(range(ticks), batch_size=1, sampler=SequentialSampler(range(ticks)))  # type: ignore[arg-type]

    def check_before_training(self) -> None:
        """Call the reward functions once on empty completions."""
        if self.args.check_reward_funcs:
            pairs = [(self._prompts, self._rewards)]
            pairs += [(rows, self._eval_rewards) for rows in self._eval_prompts.values()]
            for rows, funcs in pairs:
                count = self.args.num_generations
                check_reward_funcs(rows, funcs, self._encoder, self.state, count)

    def before_training(self, path: Path | None, step: int) -> None:
        """Open the run's logs, without what an earlier `train` left unlogged."""
        self._metrics.clear()
        self._collector.groups.clear()
        config = {name: getattr(self.args, name) for name in GRPOConfig.names()}
        self._recorder.start(
            config, step=step, max_steps=self.total_steps(), resumed=path is not None
        )
        if self._completion_log is not None:
            self._completion_log.start(step, resumed=path is not None)

    def after_training(self) -> None:
        """Stop the run's clock."""
        self._recorder.stop()

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train; see `ResumableTrainer.train`."""
        # What is not told of a part of a step runs between them.
        with advice_on_memory(self, "the optimizer"):
            return super().train(resume_from_checkpoint, **kwargs)

    # ---- A step -------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[list[Pack]], int]:
        """The packs of the next optimizer step, generating when the last rollouts are used up."""
        ticks = sum(1 for _ in zip(range(num_batches), epoch_iterator, strict=False))
        if ticks == 0:
            return [], 0  # transformers 4 goes on asking where a run is resumed amid an epoch
        self._timer.start_step()
        self.restore_random_states()
        position = self.state.global_step % self.args.updates_per_generation
        if position == 0:
            self._rollouts = self._collect()
        assert self._rollouts is not None
        packs, num_tokens = self._update.packs(self._rollouts, position)
        # Counter-based, so that dropout too is the same after a resume.
        torch.manual_seed(self._collector.derive_seed("update", self.state.global_step))
        self._timer.start_update()
        return self.as_micro_batches(packs, num_batches), num_tokens

    def training_step(
        self, model: torch.nn.Module, inputs: list[Pack], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Forward and backward of an optimizer step's packs."""
        with advice_on_memory(self, "the update"):
            return super().training_step(model, inputs, num_items_in_batch)

    def end_of_packs(self) -> None:
        """Let the entropy bonus follow the step."""
        self._update.end_step()

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Pack,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        """The policy loss of one pack; their sum over an optimizer step is the step's."""
        if return_outputs:
            raise ValueError("GRPOTrainer has no model outputs to return besides the loss")
        return self._update.loss(model, inputs)

    def _collect(self) -> Rollouts:
        """The next generation batch, with the log-probabilities that the loss will need."""
        generation = self.state.global_step // self.args.updates_per_generation
        try:
            with advice_on_memory(self, "sampling"):
                rollouts = self._collector.collect(
                    self.accelerator.unwrap_model(self.model), generation, self.state
                )
        except RewardError:
            self._rollouts = None
            self.save_before_stopping("a reward function")
            raise
        with self._timer.part("logprobs"), advice_on_memory(self, "the update"):
            self._update.add_logprobs(self.model_wrapped, self._reference, rollouts)
        return rollouts

    # ---- Evaluation ---------------------------------------------------------------------------

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: there are no labels to predict."""
        raise NotImplementedError(
            "predict has no meaning for a trainer whose data are prompts; evaluate() scores "
            "completions of a data set, and `sec-grpo eval` writes them to a file"
        )

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Mean evaluation reward, in all and per category.

        Args:
            eval_dataset: rows to evaluate instead of the trainer's `eval_dataset`; or the name of
                one of several that it has.
            metric_key_prefix: put before every metric's name.

        Returns:
            `eval_reward`, `eval_reward/{category}` for every category, `eval_runtime` (seconds); of
            several data sets each, as `eval_{name}_reward`.
        """
        prompts = self._eval_prompts
        if isinstance(eval_dataset, str):
            prompts = {"": named_prompts(prompts, eval_dataset)}
        elif eval_dataset is not None:
            prompts = evaluation_prompts(eval_dataset, self._category)
        if not prompts:
            raise ValueError("evaluate needs an eval_dataset, here or in the trainer")
        if self.sharded and self.optimizer is None:
            raise ValueError("evaluate needs the sharded model that train makes; use eval_on_start")
        started = time.perf_counter()
        results = {}
        try:
            for name, rows in prompts.items():
                model = self.accelerator.unwrap_model(self.model)
                with advice_on_memory(self, "evaluation"):
                    rewards = self._evaluator.evaluate(model, rows, self._eval_rewards, self.state)
                results[name] = by_category(rows.categories, rewards, self.curriculum.arms)
        except RewardError:
            self.save_before_stopping("a reward function")
            raise
        metrics: dict[str, float] = {}
        for name, result in results.items():
            metrics |= result.metrics(metric_key_prefix + (f"_{name}" if name else ""))
        metrics[f"{metric_key_prefix}_runtime"] = time.perf_counter() - started
        self._recorder.evaluation(self.state.global_step, *joined(results))
        super().log(dict(metrics))
        control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.control: TrainerControl = control
        return metrics

    # ---- Logging ------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the metrics of the steps since the last time to the trackers and `metrics.jsonl`."""
        # The summary that Trainer logs at the end carries those that no other log will, as TRL's.
        if "loss" in logs or ("train_runtime" in logs and self._metrics):
            arms, groups = self._collector.groups.pop(self.curriculum.num_arms)
            found = {
                **self._metrics.pop(self._processes),
                **groups,
                "num_tokens": self._collector.num_tokens,
                "num_completion_tokens": self._collector.num_completion_tokens,
            }
            of_steps = logs if "loss" in logs else {}
            self._recorder.step(self.state.global_step, {**of_steps, **found}, arms)
            state = {f"curriculum/{k}": v for k, v in self.curriculum.metrics().items()}
            logs = {**logs, **found, **state}
        super().log(logs, start_time)
        if self._completion_log is not None:
            self._completion_log.show()

    # ---- Checkpoints --------------------------------------------------------------------------

    def own_state(self) -> dict[str, Any]:
        """The curriculum, the estimator, the value head, and counters."""
        head = value_head(self.model)
        return {
            "curriculum": self.curriculum.state_dict(),
            "num_tokens": self._collector.num_tokens,
            "num_completion_tokens": self._collector.num_completion_tokens,
            "elapsed": self._recorder.elapsed,
            "estimator": self._estimator.state_dict(),
            "entropy_bonus": self._entropy_bonus.state_dict(),
            "reference": self._moving_reference_state(),
            "value_head": None if head is None else head.state_dict(),
        }

    def _moving_reference_state(self) -> dict[str, torch.Tensor] | None:
        """The reference's weights where they change."""
        if self._reference is None or not self.args.sync_ref_model:
            return None
        state: dict[str, torch.Tensor] = self._reference.state_dict()
        return state

    def restore_own_state(self, state: dict[str, Any], path: Path) -> None:
        """Continue from `own_state`."""
        try:
            self.curriculum.load_state_dict(state["curriculum"])
        except ValueError as error:
            raise CheckpointError(f"{path} does not fit this run: {error}") from error
        self._collector.num_tokens = state["num_tokens"]
        self._collector.num_completion_tokens = state["num_completion_tokens"]
        self._recorder.restore(state["elapsed"])
        self._estimator.load_state_dict(state["estimator"])
        self._entropy_bonus.load_state_dict(state["entropy_bonus"])
        if self._reference is not None and state["reference"] is not None:
            self._reference.load_state_dict(state["reference"])
        head = value_head(self.model)
        if head is not None:
            head.load_state_dict(state["value_head"])

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Trainer's, with a learning rate of its own for the value head."""
        optimizer = super().create_optimizer(*([] if model is None else [model]))
        head = value_head(self.model)
        if head is not None and self.args.value_learning_rate is not None:
            separate_group(optimizer, list(head.parameters()), self.args.value_learning_rate)
        return optimizer

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save the model as other programs expect it: the value head goes into `own_state`."""
        if value_head(self.model) is not None and state_dict is None:
            state_dict = without_value_head(self.model.state_dict())
        super()._save(output_dir, state_dict)

    def pending_state(self) -> dict[str, Any] | None:
        """The completions that later updates of the generation batch will use."""
        unfinished = self.state.global_step % self.args.updates_per_generation != 0
        if unfinished and self._rollouts is not None:
            return self._rollouts.state_dict()
        return None

    def restore_pending_state(self, state: dict[str, Any] | None) -> None:
        """Continue from `pending_state`."""
        self._rollouts = None if state is None else Rollouts.from_state_dict(state)

    def layout(self) -> dict[str, int | str | None]:
        """What must not change between the parts of a resumed run."""
        return {
            "train_dataset": f"{len(self._prompts)} prompts {self._prompts.digest}",
            "model": f"parameters {self._model_digest}",
            "generation_seed": self.generation_seed,
            "generation_batch_size": self.args.generation_batch_size,
            "num_generations": self.args.num_generations,
            "num_iterations": self.args.num_iterations,
            "updates_per_generation": self.args.updates_per_generation,
            "advantage_estimator": self.args.advantage_estimator,
        }
