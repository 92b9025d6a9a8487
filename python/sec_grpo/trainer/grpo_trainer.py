"""GRPO on `transformers.Trainer` with a curriculum that chooses the prompts.

What differs from a plain Trainer:

1. `get_batch_samples`, called once per optimizer step, draws prompts from the curriculum, samples
   and scores completions, feeds the advantages back, and returns the micro-batches. The data
   loader is only a clock, so no draw is ever stale.
2. `compute_loss` runs only rows that can have a gradient: groups whose rewards are all equal are
   left out (their tokens stay in the denominators).
3. Sampling is seeded by counters, and a checkpoint holds the curriculum and the completions still
   to be used, so that a resumed run repeats the uninterrupted one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, SequentialSampler
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from sec_grpo.curriculum import Curriculum, Strategy
from sec_grpo.distributed import DistributedCurriculum, Processes
from sec_grpo.errors import CheckpointError, RewardError
from sec_grpo.ops import (
    linear_policy_loss,
    off_policy_mask,
    policy_loss,
    top_entropy_mask,
)
from sec_grpo.trainer import checkpoint as checkpoints
from sec_grpo.trainer.collect import RolloutCollector
from sec_grpo.trainer.completions import CompletionLog
from sec_grpo.trainer.config import GRPOConfig
from sec_grpo.trainer.metrics import MetricStore, clip_extremes, loss_metrics
from sec_grpo.trainer.policy import (
    call_through,
    check_lm_head,
    completion_hidden_states,
    completion_logprobs,
    lm_head,
)
from sec_grpo.trainer.prompts import Category, PromptDataset
from sec_grpo.trainer.rewards import RewardFunc, RewardFunctions
from sec_grpo.trainer.rollout import Rollouts
from sec_grpo.trainer.run_log import RunRecorder
from sec_grpo.trainer.setup import (
    as_dict,
    load_tokenizer,
    make_curriculum,
    make_generation_config,
    max_positions,
    parameter_digest,
    reference_model,
    refuse_unsupported_model,
)
from sec_grpo.trainer.signals import StopOnSignal
from sec_grpo.trainer.step_timer import StepTimer

logger = logging.get_logger(__name__)


class GRPOTrainer(Trainer):
    """Train a causal language model with GRPO (arXiv 2402.03300) on prompts a curriculum chooses.

    Args:
        model: a transformers causal language model (PEFT-wrapped or not), or what
            `AutoModelForCausalLM.from_pretrained` accepts.
        reward_funcs: one function or several in TRL's signature, `f(prompts, completions,
            completion_ids, <columns>, trainer_state, log_metric) -> list of B floats`.
        args: the run's configuration.
        train_dataset: rows with a `prompt` column (a string or chat messages); every other column
            is handed to the reward functions.
        eval_dataset: rows of the same form; `evaluate` reports the mean evaluation reward per
            category, which may include categories that are not trained on (held out).
        processing_class: the tokenizer; default: the one saved beside the model.
        curriculum: a strategy (`SEC(temperature=0.2)`), its name (`"sec"`), a dict with `name` and
            its parameters, or a `Curriculum` over the rows of train_dataset. None draws every
            prompt equally often.
        category: the column whose value is the row's curriculum arm, several columns, a function
            of the row, or None for a single arm.
        eval_reward_funcs: reward functions of evaluation; default: reward_funcs.
        peft_config: a `peft.PeftConfig` to wrap the model with.
        callbacks, optimizers: as in `transformers.Trainer`.

    Raises:
        ValueError: the data set, the category, the strategy, the reward functions or the model do
            not fit, each with the reason, before anything is trained.
    """

    def __init__(
        self,
        model: str | PreTrainedModel | torch.nn.Module,
        reward_funcs: RewardFunc | Sequence[RewardFunc],
        args: GRPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        curriculum: Curriculum | Strategy | str | dict[str, Any] | None = None,
        category: Category = "difficulty",
        eval_reward_funcs: RewardFunc | Sequence[RewardFunc] | None = None,
        peft_config: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        args = args if args is not None else GRPOConfig(output_dir="grpo")
        if not isinstance(args, GRPOConfig):
            raise ValueError(f"args must be a GRPOConfig, got {type(args).__name__}")
        if args.n_gpu > 1:
            logger.warning("one process trains on one GPU; start %d with torchrun", args.n_gpu)
            args._n_gpu = 1
        self._prompts = PromptDataset(train_dataset, category)
        self._eval_prompts = (
            None
            if eval_dataset is None
            else PromptDataset(eval_dataset, category, argument="eval_dataset")
        )
        self._category = category
        self._rewards = RewardFunctions(reward_funcs, args.reward_weights)
        self._eval_rewards = (
            self._rewards if eval_reward_funcs is None else RewardFunctions(eval_reward_funcs, None)
        )
        self.generation_seed = args.seed if args.generation_seed is None else args.generation_seed
        self.curriculum = make_curriculum(curriculum, self._prompts, args, self.generation_seed)
        processing_class = load_tokenizer(model, processing_class)
        if isinstance(model, str):
            model = AutoModelForCausalLM.from_pretrained(model, **as_dict(args.model_init_kwargs))
        if peft_config is not None:
            from peft import get_peft_model

            model = get_peft_model(model, peft_config)
        self._reference = reference_model(model, args.beta)

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
        zero3 = self.is_deepspeed_enabled and (
            self.accelerator.state.deepspeed_plugin.zero_stage == 3
        )
        refuse_unsupported_model(self.model, sharded=self.is_fsdp_enabled or zero3)
        self._generation_config = make_generation_config(self.model, processing_class, args)
        if self._reference is not None:
            self._reference.to(self.args.device)
        if args.fused_lm_head:
            check_lm_head(self.model, torch.tensor([[0, 1]], device=self.args.device))

        self._metrics = MetricStore()
        self._processes = Processes(self.accelerator)
        self._stop = StopOnSignal(lambda stop: self._processes.sum(int(stop)) != [0])
        self.add_callback(self._stop)
        self._timer = StepTimer(self._metrics, self.args.device)
        self.add_callback(self._timer)
        self._completion_log = None
        if args.log_completions and self.is_world_process_zero():
            self._completion_log = CompletionLog(
                args.output_dir,
                num_to_print=args.num_completions_to_print,
                unique_prompts=args.log_unique_prompts,
                report_to=args.report_to,
            )
        self._collector = RolloutCollector(
            args=args,
            prompts=self._prompts,
            rewards=self._rewards,
            curriculum=DistributedCurriculum(self.curriculum, accelerator=self.accelerator),
            tokenizer=processing_class,
            generation_config=self._generation_config,
            max_positions=max_positions(self.model),
            processes=self._processes,
            metrics=self._metrics,
            timer=self._timer,
            completion_log=self._completion_log,
            seed=self.generation_seed,
        )
        for rows in (self._prompts, self._eval_prompts):
            if rows is not None:
                self._collector.check_prompts(rows)
        self._recorder = RunRecorder(
            args.output_dir, self.curriculum, enabled=self.is_world_process_zero()
        )
        self._rollouts: Rollouts | None = None
        self._staging: str | None = None
        self._training = False
        self._rng_states: str | None = None

    # ---- Set-up -------------------------------------------------------------------------------

    def _updates_per_epoch(self) -> int:
        """Optimizer steps in which as many prompts are drawn as there are, rounded up."""
        generations = math.ceil(len(self._prompts) / self.args.num_prompts)
        return generations * self.args.updates_per_generation

    def _total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        if self.args.max_steps > 0:
            return self.args.max_steps
        return math.ceil(self.args.num_train_epochs * self._updates_per_epoch())

    def get_train_dataloader(self) -> DataLoader:
        """A clock with one tick per micro-batch."""
        ticks = self._updates_per_epoch() * self.args.gradient_accumulation_steps
        return DataLoader(range(ticks), batch_size=1, sampler=SequentialSampler(range(ticks)))  # type: ignore[arg-type]

    # ---- Training -----------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train; see `transformers.Trainer.train`.

        Ctrl-C or SIGTERM finishes the optimizer step, saves a checkpoint and returns; a second one
        raises KeyboardInterrupt. A reward function that fails saves a checkpoint of the last
        finished step and raises `RewardError`.

        Raises:
            CheckpointError: `resume_from_checkpoint` is not a whole checkpoint of this data set,
                strategy and batch layout; nothing is changed.
        """
        self._rollouts = None
        if self.args.should_save:
            checkpoints.recover(Path(self.args.output_dir))
        self.accelerator.wait_for_everyone()
        path = checkpoints.find(Path(self.args.output_dir), resume_from_checkpoint)
        if self.args.check_reward_funcs:
            self._collector.check_reward_funcs(self._prompts, self._rewards, self.state)
            if self._eval_prompts is not None:
                self._collector.check_reward_funcs(
                    self._eval_prompts, self._eval_rewards, self.state
                )
        if path is not None:
            self._load_own_state(path)
        config = {name: getattr(self.args, name) for name in GRPOConfig.names()}
        step = 0 if path is None else self._load_trainer_state(path)
        if path is not None and step >= self._total_steps():
            # Trainer would take one more step before it looked.
            self._load_from_checkpoint(str(path))
            logger.warning("%s is the end of the run already: nothing to train", path)
            return TrainOutput(step, 0.0, {})
        self._recorder.start(config, step=step, resumed=path is not None)
        if self._completion_log is not None:
            self._completion_log.start(step, resumed=path is not None)
        self._rng_states = None if path is None else str(path)
        self._training = True
        try:
            with self._stop:
                return super().train(
                    resume_from_checkpoint=None if path is None else str(path), **kwargs
                )
        finally:
            self._training = False
            self._recorder.stop()

    def _load_trainer_state(self, path: Path) -> int:
        """The checkpoint's step; `self.state` is that of the checkpoint afterwards."""
        self.state = TrainerState.load_from_json(str(path / TRAINER_STATE_NAME))
        return self.state.global_step

    @property
    def stopped_by_signal(self) -> bool:
        """Whether the last `train` ended early because of Ctrl-C or SIGTERM."""
        return self._stop.stopped

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Nothing: Trainer calls this after the first rollouts, which need the states already."""

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], int]:
        """The micro-batches of the next optimizer step, generating when the last are used up."""
        for _ in range(num_batches):
            next(epoch_iterator, None)
        self._timer.start_step()
        if self._rng_states is not None:
            super()._load_rng_state(self._rng_states)
            self._rng_states = None
        position = self.state.global_step % self.args.updates_per_generation
        if position == 0:
            self._rollouts = self._collect()
        assert self._rollouts is not None
        batches, num_tokens = self._micro_batches(self._rollouts, position)
        # Counter-based, so that dropout too is the same after a resume.
        torch.manual_seed(self._collector.derive_seed("update", self.state.global_step))
        self._timer.start_update()
        return batches, num_tokens

    def _micro_batches(self, rollouts: Rollouts, position: int) -> tuple[list[dict[str, Any]], int]:
        """The model inputs of a generation's update number `position`, and their global tokens.

        Every row counts in the denominators, whether it is run or not: dead groups with their
        tokens, masked completions as sequences only (as in TRL).
        """
        args = self.args
        assert args.steps_per_generation is not None
        count, size = args.gradient_accumulation_steps, args.per_device_train_batch_size
        first = (position % (args.steps_per_generation // count)) * count
        slices = [slice(i * size, (i + 1) * size) for i in range(first, first + count)]
        kept = [rollouts.num_tokens(rows) for rows in slices]
        num_tokens = max(self._processes.sum(sum(kept))[0], 1)
        num_micro_batches = count * self._processes.size
        batches = []
        for rows, tokens in zip(slices, kept, strict=True):
            chosen = rollouts.learnable(rows, skip_zero_advantages=args.beta == 0)
            inputs = rollouts.inputs(chosen, self._generation_config.pad_token_id)
            # TRL's bnpo is the mean over micro-batches of the mean over a micro-batch's tokens.
            bnpo = max(tokens, 1) * num_micro_batches
            inputs["num_items_in_batch"] = bnpo if args.loss_type == "bnpo" else num_tokens
            inputs["num_sequences_in_batch"] = size * num_micro_batches
            batches.append(inputs)
        return batches, num_tokens

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        """The policy loss of one micro-batch; their sum over an optimizer step is the step's."""
        if return_outputs:
            raise ValueError("GRPOTrainer has no model outputs to return besides the loss")
        unwrapped = self.accelerator.unwrap_model(model)
        # Gradients are averaged over processes, the denominators are already global.
        loss = call_through(model, unwrapped, self._policy_loss, unwrapped, inputs)
        return loss * self._processes.size

    def _policy_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        args = self.args
        options = {
            "cu_seqlens": inputs["cu_seqlens"],
            "old_logprobs": inputs["old_logprobs"],
            "ref_logprobs": inputs["ref_logprobs"],
            "loss_type": args.loss_type,
            "importance_sampling_level": args.importance_sampling_level,
            "epsilon_low": args.epsilon,
            "epsilon_high": args.epsilon if args.epsilon_high is None else args.epsilon_high,
            "delta": args.delta,
            "beta": args.beta,
            "kl_bias_correction": args.use_bias_correction_kl,
            "sapo_temperature_pos": args.sapo_temperature_pos,
            "sapo_temperature_neg": args.sapo_temperature_neg,
            "vespo_k_pos": args.vespo_k_pos,
            "vespo_lambda_pos": args.vespo_lambda_pos,
            "vespo_k_neg": args.vespo_k_neg,
            "vespo_lambda_neg": args.vespo_lambda_neg,
            "num_items_in_batch": inputs["num_items_in_batch"],
            "num_sequences_in_batch": inputs["num_sequences_in_batch"],
            "max_completion_length": args.max_completion_length,
        }
        with self.accelerator.autocast():
            if args.fused_lm_head:
                head = lm_head(model)
                out = linear_policy_loss(
                    completion_hidden_states(model, inputs),
                    head.weight,
                    inputs["targets"],
                    inputs["advantages"],
                    bias=head.bias,
                    temperature=args.temperature,
                    logit_scale=head.logit_scale,
                    softcap=head.softcap,
                    off_policy_threshold=args.off_policy_mask_threshold,
                    top_entropy_quantile=args.top_entropy_quantile,
                    **options,
                )
                loss, metrics = out.loss, out.metrics
                logprobs, entropy = out.logprobs, out.entropy
            else:
                logprobs, entropy = completion_logprobs(
                    model, inputs, args.temperature, fused_lm_head=False
                )
                options["policy_mask"] = self._policy_mask(inputs, logprobs, entropy)
                plain = policy_loss(logprobs, inputs["advantages"], **options)
                loss, metrics = plain.loss, plain.metrics
        weight = float(inputs["targets"].numel())
        self._metrics.add("entropy", entropy.detach().mean(), weight)
        found = loss_metrics(metrics, loss_type=args.loss_type, has_kl=args.beta > 0)
        if "clip_ratio/low_mean" in found:
            found |= clip_extremes(
                logprobs,
                inputs["old_logprobs"],
                inputs["advantages"],
                inputs["cu_seqlens"],
                epsilon_low=options["epsilon_low"],
                epsilon_high=options["epsilon_high"],
                sequence_level=args.importance_sampling_level == "sequence",
            )
        for name, value in found.items():
            self._metrics.add(name, value, weight)
        # A micro-batch in which every completion was left out is run for its collectives only.
        return loss if inputs["in_loss"] else loss * 0.0

    def _policy_mask(
        self, inputs: dict[str, Any], logprobs: torch.Tensor, entropy: torch.Tensor
    ) -> torch.Tensor | None:
        """(N,) bool tokens whose policy term counts; None for all."""
        threshold, old = self.args.off_policy_mask_threshold, inputs["old_logprobs"]
        mask = None
        if threshold is not None and old is not None:
            offsets = inputs["cu_seqlens"]
            near = off_policy_mask(
                logprobs, old, inputs["advantages"], threshold=threshold, cu_seqlens=offsets
            )
            mask = near.repeat_interleave(offsets.diff())
        if self.args.top_entropy_quantile < 1:
            varied = top_entropy_mask(entropy, quantile=self.args.top_entropy_quantile)
            mask = varied if mask is None else mask & varied
        return mask

    # ---- Rollouts -----------------------------------------------------------------------------

    def _collect(self) -> Rollouts:
        """The next generation batch, with the log-probabilities that the loss will need."""
        generation = self.state.global_step // self.args.updates_per_generation
        try:
            rollouts = self._collector.collect(
                self.accelerator.unwrap_model(self.model), generation, self.state
            )
        except RewardError:
            self._rollouts = None
            self._save_before_stopping()
            raise
        with self._timer.part("logprobs"):
            if self.args.updates_per_generation > 1:
                rollouts.old_logprobs = self._logprobs_of(self.model, rollouts)
            if self.args.beta > 0:
                rollouts.ref_logprobs = self._reference_logprobs(rollouts)
        return rollouts

    def _save_before_stopping(self) -> None:
        """Save the last finished step when a reward function has failed in training."""
        if self._training and self.state.global_step > 0:
            self._save_checkpoint(self.model, None)
            logger.error(
                "a reward function failed; saved %s/checkpoint-%d before stopping",
                self.args.output_dir,
                self.state.global_step,
            )

    def _logprobs_of(self, model: torch.nn.Module, rollouts: Rollouts) -> list[torch.Tensor]:
        """Log-probabilities of the rollouts' tokens, B tensors (T_i,), without gradients."""
        size = self.args.per_device_train_batch_size
        out: list[torch.Tensor] = []
        was_training = model.training
        unwrapped = self.accelerator.unwrap_model(model)
        model.eval()
        try:
            with torch.no_grad(), self.accelerator.autocast():
                for start in range(0, len(rollouts), size):
                    rows = list(range(start, min(start + size, len(rollouts))))
                    inputs = self._prepare_inputs(
                        rollouts.inputs(rows, self._generation_config.pad_token_id)
                    )
                    logprobs, _ = completion_logprobs(
                        unwrapped, inputs, self.args.temperature, self.args.fused_lm_head
                    )
                    lengths = [len(rollouts.completion_ids[i]) for i in rows]
                    out += [part.clone() for part in logprobs.cpu().split(lengths)]
        finally:
            model.train(was_training)
        return out

    def _reference_logprobs(self, rollouts: Rollouts) -> list[torch.Tensor]:
        if self._reference is not None:
            return self._logprobs_of(self._reference, rollouts)
        with self.accelerator.unwrap_model(self.model).disable_adapter():
            return self._logprobs_of(self.model, rollouts)

    # ---- Evaluation ---------------------------------------------------------------------------

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Mean evaluation reward, in all and per category, over one completion a prompt.

        Args:
            eval_dataset: rows to evaluate instead of the trainer's `eval_dataset`.
            metric_key_prefix: put before every metric's name.

        Returns:
            `eval_reward`, `eval_reward/{category}` for every category, `eval_runtime` (seconds).
        """
        prompts = self._eval_prompts
        if eval_dataset is not None:
            prompts = PromptDataset(eval_dataset, self._category, argument="eval_dataset")
        if prompts is None:
            raise ValueError("evaluate needs an eval_dataset, here or in the trainer")
        started = time.perf_counter()
        try:
            rewards = self._collector.evaluate(
                self.accelerator.unwrap_model(self.model), prompts, self._eval_rewards, self.state
            )
        except RewardError:
            self._save_before_stopping()
            raise
        by_label: dict[Any, list[float]] = {}
        for label, reward in zip(prompts.categories, rewards, strict=True):
            by_label.setdefault(label, []).append(float(reward))
        arms = [arm for arm in self.curriculum.arms if arm in by_label]
        held_out = [label for label in by_label if label not in set(arms)]
        labels = arms + held_out
        accuracy = {str(label): float(np.mean(by_label[label])) for label in labels}
        metrics = {f"{metric_key_prefix}_reward": float(np.mean(rewards))}
        metrics |= {f"{metric_key_prefix}_reward/{k}": v for k, v in accuracy.items()}
        metrics[f"{metric_key_prefix}_runtime"] = time.perf_counter() - started
        self._recorder.evaluation(
            self.state.global_step,
            accuracy,
            {str(label): len(by_label[label]) for label in labels},
            [str(label) for label in held_out],
        )
        super().log(dict(metrics))
        control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.control: TrainerControl = control
        return metrics

    # ---- Logging ------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the step's metrics to the trackers and to `metrics.jsonl`."""
        if "loss" in logs:  # not the summary that Trainer logs at the end
            arms, groups = self._collector.groups.pop(self.curriculum.num_arms)
            metrics = self._metrics.pop(self._processes)
            logs = {
                **logs,
                **metrics,
                **groups,
                "num_tokens": self._collector.num_tokens,
                "num_completion_tokens": self._collector.num_completion_tokens,
            }
            self._recorder.step(self.state.global_step, logs, arms)
            logs |= {f"curriculum/{k}": v for k, v in self.curriculum.metrics().items()}
        super().log(logs, start_time)
        if self._completion_log is not None:
            self._completion_log.show()

    # ---- Checkpoints --------------------------------------------------------------------------

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Write a whole checkpoint into a staging folder, then rename it into place."""
        output_dir = Path(self.args.output_dir)
        staging = output_dir / checkpoints.STAGING_DIR
        name = f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            checkpoints.clear(staging)
        self.accelerator.wait_for_everyone()
        self._staging = str(staging)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = None
        self._name_best_checkpoint(staging, output_dir)
        pending = self.state.global_step % self.args.updates_per_generation != 0
        if pending and self._rollouts is not None:
            checkpoints.save_rollouts(
                staging / name, self._rollouts.state_dict(), self.args.process_index
            )
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            checkpoints.save_state(staging / name, self._own_state())
            checkpoints.publish(staging / name, output_dir / name)
            checkpoints.clear(staging)
            checkpoints.rotate(self, output_dir)
        self.accelerator.wait_for_everyone()

    def _name_best_checkpoint(self, staging: Path, output_dir: Path) -> None:
        """Undo the staging folder's name where Trainer has noted this checkpoint as the best."""
        best = self.state.best_model_checkpoint
        if best is not None and Path(best).parent == staging:
            self.state.best_model_checkpoint = str(output_dir / Path(best).name)
            if self.args.should_save:
                self.state.save_to_json(str(staging / Path(best).name / TRAINER_STATE_NAME))

    def _get_output_dir(self, trial: Any) -> str:
        return self._staging if self._staging is not None else super()._get_output_dir(trial)

    def _own_state(self) -> dict[str, Any]:
        return {
            "curriculum": self.curriculum.state_dict(),
            "num_tokens": self._collector.num_tokens,
            "num_completion_tokens": self._collector.num_completion_tokens,
            "elapsed": self._recorder.elapsed,
            "layout": self._layout(),
            "save_only_model": self.args.save_only_model,
        }

    def _layout(self) -> dict[str, int | str | None]:
        """What must not change between the parts of a resumed run."""
        return {
            "train_dataset": f"{len(self._prompts)} prompts {self._prompts.digest}",
            "model": f"parameters {parameter_digest(self.model)}",
            "generation_seed": self.generation_seed,
            "generation_batch_size": self.args.generation_batch_size,
            "num_generations": self.args.num_generations,
            "num_iterations": self.args.num_iterations,
            "updates_per_generation": self.args.updates_per_generation,
        }

    def _load_own_state(self, path: Path) -> None:
        state = checkpoints.load_state(path)
        if state["save_only_model"]:
            raise CheckpointError(
                f"{path} was saved with save_only_model=True and has no optimizer state to resume "
                "from; start a new run from its weights"
            )
        checkpoints.check_layout(path, state["layout"], self._layout())
        rollouts = checkpoints.load_rollouts(path, self.args.process_index, self.args.world_size)
        try:
            self.curriculum.load_state_dict(state["curriculum"])
        except ValueError as error:
            raise CheckpointError(f"{path} does not fit this run: {error}") from error
        self._rollouts = None if rollouts is None else Rollouts.from_state_dict(rollouts)
        self._collector.num_tokens = state["num_tokens"]
        self._collector.num_completion_tokens = state["num_completion_tokens"]
        self._recorder.restore(state["elapsed"])
