"""A curriculum as verl's sampler: for verl 0.5 to 0.7 by configuration, for 0.8 by `main_ppo`.

::

    data.sampler.class_path=pkg://sec_grpo.integrations.verl.sampler
    data.sampler.class_name=CurriculumSampler
    data.dataloader_num_workers=0
    +data.curriculum.name=sec
    +data.curriculum.category=extra_info.difficulty

B prompts a batch, N rows of the data set.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from torch.utils.data import Sampler

from sec_grpo.errors import CheckpointError
from sec_grpo.integrations.feedback import group_feedback, rollout_advantages
from sec_grpo.integrations.verl.installed import minor_version, misfit
from sec_grpo.integrations.verl.settings import curriculum_of

if minor_version() < (0, 8):
    try:
        from verl.experimental.dataset.sampler import AbstractCurriculumSampler as _Base
    except ImportError as error:
        raise misfit(f"AbstractCurriculumSampler cannot be imported ({error})") from error
elif minor_version() < (0, 9):
    _Base = Sampler
else:
    raise misfit(
        "it has no samplers by configuration. Set trainer.v1.trainer_mode=sec_grpo instead"
    )

logger = logging.getLogger(__name__)

_ROW = "sec_grpo_row"
"""the key in a row's extra_info that says which row it is"""


class CurriculumSampler(_Base):
    """Yields the rows that a curriculum draws, B at a time, and learns from verl's batches.

    An epoch has as many batches as verl counts, N // B, but no row need come once in it: the
    curriculum keeps its own epochs for each arm. A batch is drawn when its first row is asked for,
    so that with data.dataloader_num_workers=0, on which verl insists, no draw is stale.

    verl rearranges a batch before it trains on it, so that rows have to carry their number: it is
    put into `extra_info`, the one column that every version keeps. For this the class of
    `data_source` is replaced by a subclass of its own.

    verl keeps the state in the data loader's part of its checkpoints. Up to 0.7 it saves a step
    before it calls `update`, so a resumed run lacks that step's feedback.

    Args:
        data_source: verl's RLHFDataset, or one that has its rows in `dataframe` too.
        data_config: verl's `data` section; see `settings.curriculum_of`.

    Raises:
        ValueError, TypeError: data.curriculum is missing or does not fit.
    """

    def __init__(self, data_source: Any, data_config: Any) -> None:
        self.curriculum = curriculum_of(data_config, data_source)
        self._batch_size = data_config.get("gen_batch_size") or data_config.train_batch_size
        self._num_rows = len(data_source)
        if self._num_rows < self._batch_size:
            raise ValueError(
                f"data.train_batch_size must be at most the {self._num_rows} rows of "
                f"data.train_files, got {self._batch_size}"
            )
        self._batches = 0
        """batches yielded of the current epoch"""
        self._resumed = 0
        """those of them that a loaded state says are done"""
        _number_rows(data_source)

    def __len__(self) -> int:
        return self._num_rows

    def __iter__(self) -> Iterator[int]:
        # A generator: the loader makes an iterator or two that it never asks for a row.
        done, self._resumed = self._resumed, 0
        for number in range(done, self._num_rows // self._batch_size):
            self._batches = number + 1
            yield from self.curriculum.draw(self._batch_size).tolist()

    def update(self, batch: Any) -> None:
        """Learn from verl's batch (DataProto) after its advantages are computed.

        Raises:
            ValueError: its rows do not say which they are.
        """
        tensors, others = batch.batch, batch.non_tensor_batch
        try:
            rows = [info[_ROW] for info in others["extra_info"]]
        except (KeyError, TypeError):
            raise ValueError(
                f"the rows of the batch have lost extra_info[{_ROW!r}], by which the curriculum "
                "knows them; a custom data set or agent loop must hand extra_info on"
            ) from None
        # By uid: a row that is drawn twice makes two groups.
        keys = list(zip(others.get("uid", rows), rows, strict=True))
        found = group_feedback(
            keys,
            rollout_advantages(tensors["advantages"], tensors["response_mask"]),
            tensors["token_level_scores"].double().sum(-1).cpu().numpy(),
        )
        self.curriculum.observe(
            [row for _, row in found.keys], advantages=found.advantages, rewards=found.rewards
        )
        metrics = self.curriculum.metrics()
        logger.info(
            "curriculum: step %d, effective arms %.2f", metrics["step"], metrics["effective_arms"]
        )

    def state_dict(self) -> dict[str, Any]:
        """The curriculum's state and the place in the epoch."""
        return {"curriculum": self.curriculum.state_dict(), "batches": self._batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave.

        Raises:
            CheckpointError: it is of another sampler, or does not fit the curriculum.
        """
        if not isinstance(state, dict) or "curriculum" not in state:
            raise CheckpointError(
                "the checkpoint's data.pt holds no curriculum: it was saved by another sampler. "
                "Set trainer.resume_mode=disable, or train with the sampler that it was saved with"
            )
        try:
            self.curriculum.load_state_dict(state["curriculum"])
        except ValueError as error:
            raise CheckpointError(f"the curriculum in data.pt does not fit: {error}") from error
        # verl counts a checkpoint at the end of an epoch to the next one.
        self._batches = self._resumed = state["batches"] % (self._num_rows // self._batch_size)


def _number_rows(dataset: Any) -> None:
    """Make the data set's rows carry their number in extra_info."""

    class Numbered(type(dataset)):  # type: ignore[misc]
        def __getitem__(self, item: int) -> dict[str, Any]:
            row = super().__getitem__(item)
            return {**row, "extra_info": {**(row.get("extra_info") or {}), _ROW: int(item)}}

    Numbered.__name__ = Numbered.__qualname__ = type(dataset).__name__
    dataset.__class__ = Numbered
