"""Collecting rollouts: draw prompts, sample completions, score them, feed the curriculum."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sec_grpo.curriculum import DynamicSampling
from sec_grpo.distributed import DistributedCurriculum, Processes
from sec_grpo.errors import RewardError
from sec_grpo.ops import GroupAdvantages, group_advantages
from sec_grpo.trainer.batch import Rollouts
from sec_grpo.trainer.completions import CompletionLog, ExtraColumns
from sec_grpo.trainer.config import GRPOConfig
from sec_grpo.trainer.draws import Draw, deal, dealable
from sec_grpo.trainer.group_statistics import GroupStatistics
from sec_grpo.trainer.metrics import MetricStore
from sec_grpo.trainer.prompts import PromptDataset, is_chat, tokenize_prompt
from sec_grpo.trainer.rewards import RewardFunctions
from sec_grpo.trainer.rollout import derive_seed, sample_completions
from sec_grpo.trainer.step_timer import StepTimer

if TYPE_CHECKING:
    from transformers import (
        GenerationConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
        TrainerState,
    )


class RolloutCollector:
    """Turns a curriculum and reward functions into generation batches, and evaluates.

    Sampling is seeded by counters (`seed`, the generation's number, the process), so that a batch
    depends on the model and the curriculum alone.
    """

    def __init__(
        self,
        *,
        args: GRPOConfig,
        prompts: PromptDataset,
        rewards: RewardFunctions,
        curriculum: DistributedCurriculum,
        tokenizer: PreTrainedTokenizerBase,
        generation_config: GenerationConfig,
        max_positions: int | None,
        processes: Processes,
        metrics: MetricStore,
        timer: StepTimer,
        completion_log: CompletionLog | None,
        seed: int,
    ) -> None:
        self._args = args
        self._prompts = prompts
        self._rewards = rewards
        self._curriculum = curriculum
        self._tokenizer = tokenizer
        self._generation_config = generation_config
        self._max_positions = max_positions
        self._processes = processes
        self._metrics = metrics
        self._timer = timer
        self._completion_log = completion_log
        self._seed = seed
        self.groups = GroupStatistics(args.success_threshold)
        """all groups observed since the last log"""
        self.num_tokens = 0
        """tokens of prompts and completions so far, over all processes"""
        self.num_completion_tokens = 0
        """those of completions alone"""

    def collect(
        self, model: PreTrainedModel, generation: int, trainer_state: TrainerState
    ) -> Rollouts:
        """The completions of one generation batch that belong to this process.

        With dynamic sampling, groups whose rewards are all equal give way to those of prompts
        drawn after them, as far as the refills go. Every process decides from the rewards of all.
        The curriculum observes all groups at once, and the metrics are of all of them.

        Raises:
            RewardError: a reward function failed on any process; the curriculum is then as it was
                before the call, on every process.
        """
        args = self._args
        before_draw = self._curriculum.state_dict()
        gate = DynamicSampling(max_refills=args.dynamic_sampling_refills)
        batch = gate.start(args.num_prompts)
        draws: list[Draw] = []
        try:
            while batch.num_missing:
                stream = f"refill {len(draws)}" if draws else "rollout"
                seed = self.derive_seed(stream, generation)
                draws.append(self._draw(model, batch.num_missing, seed, trainer_state))
                batch.add(draws[-1].indices, rewards=draws[-1].rewards)
        except RewardError:
            self._curriculum.load_state_dict(before_draw)
            raise
        rewards = torch.cat([draw.rewards for draw in draws])
        result = self._advantages(rewards)
        with self._timer.part("curriculum"):
            self._curriculum.observe_gathered(
                batch.indices,
                advantages=result.advantages.reshape(rewards.shape).numpy(),
                rewards=rewards.numpy(),
            )
        arms = self._curriculum.curriculum.arm_indices(batch.indices)
        self.groups.add(arms, rewards.numpy())
        self._record_draws(draws, rewards, result.dead)
        if args.dynamic_sampling_refills:
            for name, value in batch.metrics().items():
                self._metrics.add(f"dynamic_sampling/{name}", value)
        return self._rollouts(draws, batch.indices, rewards, batch.selected(), trainer_state)

    def _draw(
        self, model: PreTrainedModel, num_prompts: int, seed: int, trainer_state: TrainerState
    ) -> Draw:
        """Draw prompts, at least as many as given, sample their completions and score them."""
        args = self._args
        count = dealable(num_prompts, args.num_generations, self._processes.size)
        with self._timer.part("curriculum"):
            indices = self._curriculum.draw(count)
        local = self._processes.local_slice(np.repeat(indices, args.num_generations))
        rows = [self._prompts.row(i) for i in local]
        prompt_ids = self._tokenize(rows, local)
        with self._timer.part("rollout"):
            completion_ids = sample_completions(
                model,
                prompt_ids,
                self._generation_config,
                seed=seed,
                batch_size=args.rollout_batch_size,
            )
        completions = self._decode(rows, completion_ids)
        extra = ExtraColumns(len(rows))
        with self._timer.part("reward"):
            rewards, each = self._score_everywhere(
                rows, completions, completion_ids, trainer_state, extra
            )
            all_rewards = self._processes.gather(torch.as_tensor(rewards, dtype=torch.float32))
            all_each = self._processes.gather(torch.as_tensor(each)).numpy()
        logged = None
        if args.log_completions:
            logged = self._gather_columns({"completion": completions, **extra.columns})
        shape = (count, args.num_generations)
        return Draw(
            indices,
            completion_ids,
            all_rewards.reshape(shape),
            all_each.reshape(*shape, -1),
            num_prompt_tokens=sum(map(len, prompt_ids)),
            logged=logged,
        )

    def _gather_columns(self, columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """The columns of all processes, joined; None where a process lacks one."""
        count = len(columns["completion"])
        parts = self._processes.gather_objects(columns)
        return {
            name: [value for part in parts for value in part.get(name, [None] * count)]
            for name in dict.fromkeys(name for part in parts for name in part)
        }

    def _advantages(self, rewards: torch.Tensor) -> GroupAdvantages:
        return group_advantages(rewards, scale=self._args.scale_rewards)  # type: ignore[arg-type]

    def _rollouts(
        self,
        draws: list[Draw],
        indices: np.ndarray,
        rewards: torch.Tensor,
        groups: np.ndarray,
        trainer_state: TrainerState,
    ) -> Rollouts:
        """This process's part of the batch that `groups` (P,) make, of M drawn.

        `indices` (M,) and `rewards` (M, G) are those of all groups.
        """
        size = self._args.num_generations
        processes = self._processes
        completion_ids = deal(draws, (groups[:, None] * size + np.arange(size)).ravel(), processes)
        local = processes.local_slice(np.repeat(indices[groups], size))
        rows = [self._prompts.row(i) for i in local]
        finished = torch.tensor([self._is_finished(ids) for ids in completion_ids])
        # Again, and not those that the curriculum saw: "batch" scales by the batch trained on.
        advantages = self._advantages(rewards[groups]).advantages.flatten()
        if self._completion_log is not None:
            self._log_completions(draws, indices, groups, advantages, trainer_state.global_step + 1)
        return Rollouts(
            self._tokenize(rows, local),
            completion_ids,
            advantages=processes.local_slice(advantages).clone(),
            in_loss=(
                finished if self._args.mask_truncated_completions else torch.ones_like(finished)
            ),
        )

    def evaluate(
        self,
        model: PreTrainedModel,
        prompts: PromptDataset,
        rewards: RewardFunctions,
        trainer_state: TrainerState,
    ) -> np.ndarray:
        """Rewards (N,) of one completion per row; the rows are dealt to the processes in turn.

        Raises:
            RewardError: a reward function failed on any process.
        """
        config = copy.deepcopy(self._generation_config)
        if self._args.eval_temperature > 0:
            config.temperature = self._args.eval_temperature
        else:
            config.do_sample = False
            config.temperature = config.top_p = config.top_k = config.min_p = None
        processes = self._processes
        indices = list(range(processes.rank, len(prompts), processes.size))
        out = np.full(math.ceil(len(prompts) / processes.size), math.nan)
        size = self._args.per_device_eval_batch_size
        failure: RewardError | None = None
        try:
            for start in range(0, len(indices), size):
                chunk = indices[start : start + size]
                rows = [prompts.row(i) for i in chunk]
                seed = self.derive_seed("evaluation", start)
                ids = sample_completions(model, self._tokenize(rows, chunk), config, seed=seed)
                completions = self._decode(rows, ids)
                scores, _ = self._score(prompts, rewards, rows, completions, ids, trainer_state)
                out[start : start + len(chunk)] = scores
        except RewardError as error:
            failure = error
        self._raise_everywhere(failure)
        gathered = processes.gather(torch.as_tensor(out)).numpy()
        return gathered.reshape(processes.size, -1).T.reshape(-1)[: len(prompts)]

    def check_reward_funcs(
        self, prompts: PromptDataset, rewards: RewardFunctions, trainer_state: TrainerState
    ) -> None:
        """Call reward functions on empty completions of the first row.

        Raises:
            RewardError: they fail or return something other than one reward per completion.
        """
        rows = [prompts.row(0)] * self._args.num_generations
        try:
            ids: list[list[int]] = [[] for _ in rows]
            self._score(prompts, rewards, rows, self._decode(rows, ids), ids, trainer_state)
        except RewardError as error:
            raise RewardError(
                f"{error}. This was the check on empty completions before training; if only those "
                "are the matter, set check_reward_funcs=False"
            ) from error

    def check_prompts(self, prompts: PromptDataset) -> None:
        """Tokenize the first prompt and those that may not fit the model's positions.

        A prompt is taken to fit unseen when its UTF-8 bytes are at most half of what is left for
        it: tokens are no more than bytes, and the other half is for the chat template.

        Raises:
            ValueError: a prompt does not fit, or the tokenizer cannot take the first.
        """
        fits = math.inf
        if self._max_positions is not None:
            fits = (self._max_positions - self._args.max_completion_length) / 2
        long = [i for i, length in enumerate(prompts.lengths) if length > fits]
        for index in dict.fromkeys([0, *long]):
            self._tokenize([prompts.row(index)], [index])

    def derive_seed(self, stream: str, counter: int) -> int:
        """The seed of one use of randomness in this process."""
        return derive_seed(self._seed, stream, counter, self._processes.rank)

    def _tokenize(self, rows: list[dict[str, Any]], indices: Any) -> list[list[int]]:
        cache: dict[int, list[int]] = {}
        for index, row in zip(map(int, indices), rows, strict=True):
            if index not in cache:
                cache[index] = tokenize_prompt(row["prompt"], self._tokenizer)
                self._check_length(index, len(cache[index]))
        return [cache[int(index)] for index in indices]

    def _check_length(self, index: int, length: int) -> None:
        new = self._args.max_completion_length
        if self._max_positions is not None and length + new > self._max_positions:
            raise ValueError(
                f"row {index}: the prompt's {length} tokens and max_completion_length={new} exceed "
                f"the model's {self._max_positions} positions; shorten the prompt or the completion"
            )

    def _raise_everywhere(self, failure: RewardError | None) -> None:
        """Raise on every process when one has a failure, so that none waits for ever."""
        if self._processes.sum(int(failure is not None)) != [0]:
            raise failure or RewardError("a reward function failed on another process")

    def _score_everywhere(
        self,
        rows: list[dict[str, Any]],
        completions: list[Any],
        completion_ids: list[list[int]],
        state: TrainerState,
        extra: ExtraColumns,
    ) -> tuple[np.ndarray, np.ndarray]:
        """`_score` of training rows, failing on every process when it fails on one."""
        failure: RewardError | None = None
        scored = None
        try:
            scored = self._score(
                self._prompts,
                self._rewards,
                rows,
                completions,
                completion_ids,
                state,
                log_metric=self._metrics.add,
                log_extra=extra,
            )
        except RewardError as error:
            failure = error
        self._raise_everywhere(failure)
        assert scored is not None
        return scored

    def _decode(self, rows: list[dict[str, Any]], completion_ids: list[list[int]]) -> list[Any]:
        """Completions as reward functions get them: text, or a message where the prompt is chat."""
        texts = self._tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
        return [
            [{"role": "assistant", "content": text}] if is_chat(row["prompt"]) else text
            for row, text in zip(rows, texts, strict=True)
        ]

    def _score(
        self,
        prompts: PromptDataset,
        rewards: RewardFunctions,
        rows: list[dict[str, Any]],
        completions: list[Any],
        completion_ids: list[list[int]],
        trainer_state: TrainerState,
        *,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, Sequence[Any]], None] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rewards of completions of `rows` of `prompts`."""
        passed = ("prompt", "completion", "completion_ids")
        names = [name for name in prompts.columns if name not in passed]
        return rewards(
            prompts=[row["prompt"] for row in rows],
            completions=completions,
            completion_ids=completion_ids,
            columns={name: [row.get(name) for row in rows] for name in names},
            trainer_state=trainer_state,
            log_metric=log_metric,
            log_extra=log_extra,
        )

    def _is_finished(self, ids: list[int]) -> bool:
        eos = self._generation_config.eos_token_id
        return bool(ids) and ids[-1] in (eos if isinstance(eos, list) else [eos])

    def _record_draws(self, draws: list[Draw], rewards: torch.Tensor, dead: torch.Tensor) -> None:
        """Record rewards and lengths of all draws: rewards (M, G), dead (M,)."""
        self._metrics.add("reward", rewards.mean())
        self._metrics.add("reward_std", rewards.std())
        self._metrics.add("frac_reward_zero_std", dead.float().mean())
        each = np.concatenate([draw.each for draw in draws])
        for k, name in enumerate(self._rewards.names):
            applies = each[..., k][~np.isnan(each[..., k])]
            if applies.size:
                self._metrics.add(f"rewards/{name}/mean", float(applies.mean()))
                std = applies.std(ddof=1) if applies.size > 1 else 0.0
                self._metrics.add(f"rewards/{name}/std", float(std))
        self.num_tokens += self._processes.sum(sum(draw.num_prompt_tokens for draw in draws))[0]
        self._record_lengths([ids for draw in draws for ids in draw.completion_ids])

    def _record_lengths(self, completion_ids: list[list[int]]) -> None:
        """Record lengths in tokens; "terminated" are the completions that ended by themselves."""
        lengths = self._processes.gather(torch.tensor([len(ids) for ids in completion_ids]))
        finished = torch.tensor([self._is_finished(ids) for ids in completion_ids])
        ended = self._processes.gather(finished)
        self.num_completion_tokens += int(lengths.sum())
        self.num_tokens += int(lengths.sum())
        lengths = lengths.float()
        # As in TRL: 0 where none ended.
        terminated = lengths[ended] if ended.any() else torch.zeros(1)
        for kind, found in (("", lengths), ("terminated_", terminated)):
            self._metrics.add(f"completions/mean_{kind}length", found.mean())
            self._metrics.add(f"completions/min_{kind}length", found.min())
            self._metrics.add(f"completions/max_{kind}length", found.max())
        self._metrics.add("completions/clipped_ratio", 1 - ended.float().mean())

    def _log_completions(
        self,
        draws: list[Draw],
        indices: np.ndarray,
        groups: np.ndarray,
        advantages: torch.Tensor,
        step: int,
    ) -> None:
        """Log the P trained groups of the M drawn: indices (M,), groups (P,), advantages (P G,)."""
        assert self._completion_log is not None
        size = self._args.num_generations
        rows = (groups[:, None] * size + np.arange(size)).ravel()
        columns: dict[str, list[Any]] = {}
        for name in dict.fromkeys(name for draw in draws for name in draw.logged or {}):
            parts = [(draw.logged or {}).get(name, [None] * draw.rewards.numel()) for draw in draws]
            joined = [value for part in parts for value in part]
            columns[name] = [joined[row] for row in rows]
        each = np.concatenate([draw.each for draw in draws]).reshape(-1, len(self._rewards.names))
        totals = torch.cat([draw.rewards.flatten() for draw in draws])
        curriculum = self._curriculum.curriculum
        trained = indices[groups]
        prompts = [self._prompts.row(i)["prompt"] for i in trained]
        arms = [str(curriculum.arms[k]) for k in curriculum.arm_indices(trained)]
        self._completion_log.add(
            step,
            prompts=[prompt for prompt in prompts for _ in range(size)],
            completions=columns.pop("completion"),
            rewards={
                name: [None if np.isnan(value) else float(value) for value in each[rows, k]]
                for k, name in enumerate(self._rewards.names)
            },
            total_rewards=totals[torch.from_numpy(rows)].tolist(),
            extra=columns,
            advantages=advantages.tolist(),
            arms=[arm for arm in arms for _ in range(size)],
        )
