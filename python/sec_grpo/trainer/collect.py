"""Collecting rollouts: draw prompts, sample completions, score them, feed the curriculum."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sec_grpo.curriculum import DynamicSampling
from sec_grpo.distributed import DistributedCurriculum, Processes
from sec_grpo.errors import RewardError
from sec_grpo.trainer.batch import Rollouts
from sec_grpo.trainer.completions import CompletionLog, ExtraColumns
from sec_grpo.trainer.config import GRPOConfig
from sec_grpo.trainer.draws import Draw, deal, dealable
from sec_grpo.trainer.encoding import Encoder
from sec_grpo.trainer.estimators import AdvantageEstimator, is_dead
from sec_grpo.trainer.group_statistics import GroupStatistics
from sec_grpo.trainer.metrics import MetricStore
from sec_grpo.trainer.prompts import PromptDataset
from sec_grpo.trainer.rewards import RewardFunctions
from sec_grpo.trainer.rollout import Sampler, derive_seed
from sec_grpo.trainer.scoring import Scores, everywhere, score
from sec_grpo.trainer.step_timer import StepTimer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerState

Critic = Callable[[Rollouts, torch.Tensor], None]
"""fills in values, returns and token advantages of rollouts from their rewards (B,)"""


class RolloutCollector:
    """Turns a curriculum and reward functions into generation batches.

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
        encoder: Encoder,
        sampler: Sampler,
        estimator: AdvantageEstimator,
        critic: Critic | None,
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
        self._encoder = encoder
        self._sampler = sampler
        self._estimator = estimator
        self._critic = critic
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
        before_draw = self._curriculum.state_dict()
        try:
            draws, indices, groups = self._draws(model, generation, trainer_state)
        except RewardError:
            self._curriculum.load_state_dict(before_draw)
            raise
        rewards = torch.cat([draw.rewards for draw in draws])
        everything = np.arange(len(rewards))
        rollouts = None
        if self._critic is None:
            advantages = self._advantages(draws, rewards, indices, everything)
        else:
            rollouts = self._rollouts(draws, indices, everything, None)
            advantages = self._criticise(rollouts, rewards)
        self._observe(indices, advantages, rewards)
        self._record_draws(draws, rewards)
        if rollouts is None:
            # Again, and not those that the curriculum saw: scale "batch" is that trained on.
            advantages = self._advantages(draws, rewards, indices, groups)
            rollouts = self._rollouts(draws, indices, groups, advantages)
        self._estimator.update(rewards, self._roles(indices))
        if self._completion_log is not None:
            step = trainer_state.global_step + 1
            self._log_completions(draws, indices, groups, advantages.flatten(), step)
        return rollouts

    def _draws(
        self, model: PreTrainedModel, generation: int, trainer_state: TrainerState
    ) -> tuple[list[Draw], np.ndarray, np.ndarray]:
        """Draws, their M prompts, and the positions (P,) among these of those to train on."""
        num_prompts = self._args.num_prompts
        if not self._args.dynamic_sampling_refills:
            seed = self.derive_seed("rollout", generation)
            draw = self._draw(model, num_prompts, seed, trainer_state)
            return [draw], draw.indices, np.arange(num_prompts)
        gate = DynamicSampling(max_refills=self._args.dynamic_sampling_refills)
        batch = gate.start(num_prompts)
        draws: list[Draw] = []
        while batch.num_missing:
            stream = f"refill {len(draws)}" if draws else "rollout"
            seed = self.derive_seed(stream, generation)
            draws.append(self._draw(model, batch.num_missing, seed, trainer_state))
            batch.add(draws[-1].indices, rewards=draws[-1].rewards)
        for name, value in batch.metrics().items():
            self._metrics.add(f"dynamic_sampling/{name}", value)
        return draws, batch.indices, batch.selected()

    def _observe(
        self, indices: np.ndarray, advantages: torch.Tensor, rewards: torch.Tensor
    ) -> None:
        """Give all groups (M,) to the curriculum; advantages and rewards (M, G)."""
        with self._timer.part("curriculum"):
            self._curriculum.observe_gathered(
                indices, advantages=advantages.numpy(), rewards=rewards.numpy()
            )
        arms = self._curriculum.curriculum.arm_indices(indices)
        self.groups.add(arms, rewards.numpy())

    def _criticise(self, rollouts: Rollouts, rewards: torch.Tensor) -> torch.Tensor:
        """(M, G) mean |A| over each completion's tokens, which the curriculum learns from."""
        assert self._critic is not None
        with self._timer.part("logprobs"):
            self._critic(rollouts, self._processes.local_slice(rewards.flatten()))
        assert rollouts.token_advantages is not None
        sizes = torch.stack([a.abs().mean() for a in rollouts.token_advantages])
        return self._processes.gather(sizes).reshape(rewards.shape)

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
        prompt_ids = self._encoder.encode(rows, local)
        with self._timer.part("rollout"):
            completion_ids = self._sampler.sample(model, prompt_ids, seed)
        completions = self._encoder.decode(rows, completion_ids)
        extra = ExtraColumns(len(rows))

        def judge() -> Scores:
            return score(
                self._prompts,
                self._rewards,
                rows,
                completions,
                completion_ids,
                trainer_state,
                log_metric=self._metrics.add,
                log_extra=extra,
            )

        with self._timer.part("reward"):
            rewards, each = everywhere(self._processes, judge)
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

    def _advantages(
        self, draws: list[Draw], rewards: torch.Tensor, indices: np.ndarray, groups: Any
    ) -> torch.Tensor:
        """Advantages (P, G) of some `groups` (P,) of the M drawn, from the estimator."""
        each = np.concatenate([draw.each for draw in draws])
        roles = self._roles(indices)
        chosen = [roles[k] for k in groups]
        return self._estimator(rewards[groups], each[groups], chosen)

    def _roles(self, indices: np.ndarray) -> list[Any]:
        """Whose baseline each prompt's rewards are compared with."""
        column = self._args.baseline_column
        if column is None:
            return [self._prompts.categories[i] for i in indices]
        return [self._prompts.row(i)[column] for i in indices]

    def _rollouts(
        self,
        draws: list[Draw],
        indices: np.ndarray,
        groups: np.ndarray,
        advantages: torch.Tensor | None,
    ) -> Rollouts:
        """This process's part of the batch that `groups` (P,) make, of M drawn.

        `indices` (M,) are those of all groups; `advantages` (P, G), 0 without them.
        """
        size = self._args.num_generations
        processes = self._processes
        completion_ids = deal(draws, (groups[:, None] * size + np.arange(size)).ravel(), processes)
        local = processes.local_slice(np.repeat(indices[groups], size))
        rows = [self._prompts.row(i) for i in local]
        if advantages is None:
            advantages = torch.zeros(len(groups), size)
        in_loss = torch.ones(len(completion_ids), dtype=torch.bool)
        if self._args.mask_truncated_completions:
            in_loss = torch.tensor([self._sampler.is_finished(ids) for ids in completion_ids])
        return Rollouts(
            self._encoder.encode(rows, local),
            completion_ids,
            advantages=processes.local_slice(advantages.flatten()).clone(),
            in_loss=in_loss,
        )

    def derive_seed(self, stream: str, counter: int) -> int:
        """The seed of one use of randomness in this process."""
        return derive_seed(self._seed, stream, counter, self._processes.rank)

    def _record_draws(self, draws: list[Draw], rewards: torch.Tensor) -> None:
        """Record rewards (M, G) and lengths of all draws."""
        self._metrics.add("reward", rewards.mean())
        self._metrics.add("reward_std", rewards.std())
        self._metrics.add("frac_reward_zero_std", is_dead(rewards).float().mean())
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
        finished = torch.tensor([self._sampler.is_finished(ids) for ids in completion_ids])
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
