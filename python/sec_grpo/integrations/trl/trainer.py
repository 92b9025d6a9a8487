"""TRL's GRPOTrainer on prompts that a curriculum chooses.

Private methods of TRL are wrapped, none is copied: `_generate_and_score_completions` (the drawn
rows are put in the place of the loader's), `_calculate_rewards` (its gathered result is read),
`_save_checkpoint` and `_load_optimizer_and_scheduler` (the state goes along); `_metrics`,
`_buffered_inputs` and `_step` are its attributes.

P prompts of the global generation batch, G completions of each, F reward functions.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.utils import logging
from trl import GRPOTrainer

from sec_grpo.curriculum import Curriculum, Strategy
from sec_grpo.distributed import DistributedCurriculum
from sec_grpo.integrations.trl import checkpoint as checkpoints
from sec_grpo.integrations.trl.installed import check_attributes
from sec_grpo.integrations.trl.prompts import (
    arguments_of,
    curriculum_of,
    rows_of,
    total_prompts,
)
from sec_grpo.trainer.prompts import DEFAULT_CATEGORY, Category

if TYPE_CHECKING:
    from trl import GRPOTrainer as _Trainer
else:
    _Trainer = object

logger = logging.get_logger(__name__)


class CurriculumMixin(_Trainer):
    """Lets a curriculum choose the prompts of a `trl.GRPOTrainer` subclass; put it first.

    The data loader's rows are replaced by drawn ones just before the completions are generated, so
    no draw is ever stale, and the advantages go back to the curriculum right after. Every process
    draws the same global batch and takes its slice, G completions a prompt, groups across
    processes where TRL has them; the feedback is gathered in the order of the processes.
    Evaluation is left as it is.

    Args:
        curriculum: a strategy (`SEC(temperature=0.2)`), its name (`"sec"`), a dict with `name` and
            its parameters, or a `Curriculum` over the rows of train_dataset. None draws every
            prompt equally often. `ordered`, `reverse` and `e2h_gaussian` by name take their length
            from args.max_steps.
        category: the column whose value is the row's arm, several columns, a function of the row,
            or None for a single arm; of no use with a `Curriculum`. Without a curriculum
            the default column may be missing, which is as None.

    All other arguments are the trainer's. `curriculum/...` in the logs is the state at the time of
    the log (see `Curriculum.metrics`).

    Completions for which every reward function returned None do not teach the curriculum: it gets
    the mean of the rest of their group, and nothing of a group without any reward.

    Raises:
        ValueError, TypeError: train_dataset has no random access, the category or the strategy
            does not fit; before the model is loaded.
        CurriculumDesyncError: the copies of the curriculum differ between the processes, at the
            start or in a step.
    """

    def __init__(
        self,
        *args: Any,
        curriculum: Curriculum | Strategy | str | dict[str, Any] | None = None,
        category: Category = DEFAULT_CATEGORY,
        **kwargs: Any,
    ) -> None:
        given = arguments_of(super().__init__, args, kwargs)
        self.curriculum = curriculum_of(
            curriculum, category, given.get("train_dataset"), given.get("args")
        )
        super().__init__(*args, **kwargs)
        check_attributes(self)
        if not self.args.shuffle_dataset:
            logger.warning(
                "shuffle_dataset=False has no effect: the curriculum draws the prompts, in its own "
                "order. curriculum='ordered' goes from category to category"
            )
        self._shared = DistributedCurriculum(self.curriculum, accelerator=self.accelerator)
        self._rewards_per_func: torch.Tensor | None = None

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if not self.model.training:
            return super()._generate_and_score_completions(inputs)
        total = len(inputs) * self._shared.size
        size = self.args.num_generations
        indices = self._shared.draw(total_prompts(total, size))
        mine = self._shared.local_slice(np.repeat(indices, size))
        columns = inputs[0] if self.args.remove_unused_columns else None
        self._rewards_per_func = None
        output = super()._generate_and_score_completions(rows_of(self.train_dataset, mine, columns))
        self._learn(indices, self.accelerator.gather(output["advantages"].contiguous()))
        for name, value in self.curriculum.metrics().items():
            if not math.isnan(value):
                # One value: TRL logs the mean of the list, and counters have none.
                self._metrics["train"][f"curriculum/{name}"] = [value]
        return output

    def _learn(self, indices: NDArray[np.int64], advantages: torch.Tensor) -> None:
        """Feed back the gathered advantages (P G,) of the prompts (P,), and their rewards."""
        shape = (len(indices), self.args.num_generations)
        if advantages.numel() != shape[0] * shape[1]:
            raise ValueError(
                f"{type(self).__name__} must return one advantage for each of {shape[0]} x "
                f"{shape[1]} completions, got shape {tuple(advantages.shape)}; CurriculumMixin "
                "does not fit trainers that add or drop completions"
            )
        values = advantages.reshape(shape).double().cpu().numpy()
        rewards = self._gathered_rewards(shape)
        scored: NDArray[np.bool_] = np.ones(shape[0], bool)
        if rewards is not None:
            scored = np.logical_not(np.isnan(rewards).all(axis=1))
            rewards = _filled(rewards[scored])
        if scored.any():
            self._shared.observe_gathered(
                indices[scored], advantages=values[scored], rewards=rewards
            )

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        rewards = super()._calculate_rewards(*args, **kwargs)
        self._rewards_per_func = rewards
        return rewards

    def _gathered_rewards(self, shape: tuple[int, int]) -> NDArray[np.float64] | None:
        """(P, G) weighted sums of the rewards that apply, NaN where none does."""
        found = self._rewards_per_func
        if found is None or found.shape[0] != shape[0] * shape[1]:
            return None
        weighted = found.double() * self.reward_weights.to(found.device)
        total = weighted.nansum(dim=1).masked_fill(found.isnan().all(dim=1), math.nan)
        return np.asarray(total.reshape(shape).cpu().numpy())

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # Before TRL's files, of which trainer_state.json is the last: where it is, this is too.
        checkpoints.save(self, trial, self.curriculum)
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoints.load_curriculum(self, checkpoint, self.curriculum)
            self._shared.check()
            checkpoints.load_pending(self, checkpoint, self.curriculum)
        super()._load_optimizer_and_scheduler(checkpoint)


class CurriculumGRPOTrainer(CurriculumMixin, GRPOTrainer):
    """`trl.GRPOTrainer` with `curriculum=` and `category=`; see `CurriculumMixin`."""


def _filled(rewards: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rewards (P, G) with the mean of the group's others in the place of NaN."""
    missing = np.isnan(rewards)
    if not missing.any():
        return rewards
    return np.where(missing, np.nanmean(rewards, axis=1, keepdims=True), rewards)
