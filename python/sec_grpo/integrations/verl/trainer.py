"""A curriculum inside verl's synchronous trainer (verl 0.9).

Private methods of verl's trainer are wrapped, none is copied: `_fetch_one_gen_batch` (its loader
yields the drawn rows), `_compute_advantage` (what it wrote is read), `_save_checkpoint` and
`_load_checkpoint` (the state goes along), `_build_replay_buffer` (groups that verl drops for equal
rewards are noted before they are gone).

N rows of the data set, B prompts a batch.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np
import transfer_queue as tq
from omegaconf import open_dict
from verl.trainer.ppo.v1 import PPOTrainerSync, register_trainer

from sec_grpo.integrations.feedback import group_feedback, rollout_advantages
from sec_grpo.integrations.verl import checkpoint
from sec_grpo.integrations.verl.installed import TRAINER, check_methods
from sec_grpo.integrations.verl.settings import curriculum_of

check_methods(PPOTrainerSync, TRAINER)

MODE = "sec_grpo"
"""the value of trainer.v1.trainer_mode that chooses this trainer"""


@register_trainer(MODE)
class CurriculumPPOTrainerSync(PPOTrainerSync):
    """verl's synchronous trainer on prompts that a curriculum chooses.

    Chosen by ``trainer.v1.trainer_mode=sec_grpo``; `settings.curriculum_of` says what
    ``data.curriculum`` holds. Prompts are drawn when they are sent off to be answered, all of a
    batch at once and refills of dynamic sampling too, so no draw is stale. The advantages that verl
    computes go back to the curriculum at once, with the groups that ``algorithm.filter_groups``
    dropped because their rewards were equal. ``curriculum/...`` appears in verl's metrics.

    Raises:
        ValueError, TypeError: data.curriculum is missing or does not fit.
        CheckpointError: resuming from a checkpoint without a curriculum, or with another one.
    """

    def __init__(self, config: Any) -> None:
        with open_dict(config):
            # verl compares the mode with "sync" in many places.
            config.trainer.v1.trainer_mode = "sync"
        self._queue: deque[int] = deque()
        """rows drawn and not yet fetched"""
        self._row_of: dict[str, int] = {}
        """uid -> row of the prompts under way"""
        self._dead: dict[str, list[float]] = {}
        """uid -> equal rewards of groups that verl dropped"""
        super().__init__(config)

    def _init_dataloader(self) -> None:
        super()._init_dataloader()
        self.curriculum = curriculum_of(
            self.config.data, self.train_dataset, self.total_training_steps
        )

    def _next_train_batch(self, num_prompts: int | None = None) -> Any:
        size = self.config.data.train_batch_size if num_prompts is None else num_prompts
        self._queue.extend(self.curriculum.draw(size).tolist())
        return super()._next_train_batch(num_prompts)

    def _fetch_one_gen_batch(self) -> Any:
        size = self.config.data.get("gen_batch_size") or self.config.data.train_batch_size
        rows = [self._queue.popleft() for _ in range(size)]
        items = [self.train_dataset[row] for row in rows]
        self.train_dataloader_it = iter([self.train_dataloader.collate_fn(items)])
        batch = super()._fetch_one_gen_batch()
        self._row_of.update(zip(list(batch["uid"]), rows, strict=True))
        return batch

    def _build_replay_buffer(self) -> Any:
        buffer = super()._build_replay_buffer()
        if getattr(buffer, "filter_groups_metric", None) is not None:
            _note_filtered(buffer, self._dead)
        return buffer

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        result = super()._compute_advantage(batch, metrics)
        self._learn(batch)
        metrics.update(
            (f"curriculum/{name}", value)
            for name, value in self.curriculum.metrics().items()
            if not math.isnan(value)
        )
        return result

    def _learn(self, batch: Any) -> None:
        """Feed back a batch whose advantages are in the transfer queue, and the dead groups."""
        final = _final_outputs(batch)
        data = tq.kv_batch_get(
            keys=[key for key, _ in final],
            partition_id=batch.partition_id,
            select_fields=["advantages", "response_mask", "rm_scores"],
        ).to_padded_tensor()
        uids = [uid for _, uid in final]
        advantages = rollout_advantages(data["advantages"], data["response_mask"])
        rewards = data["rm_scores"].double().sum(-1).cpu().numpy()
        for uid, equal in self._dead.items():
            uids += [uid] * len(equal)
            advantages = np.append(advantages, np.zeros(len(equal)))
            rewards = np.append(rewards, equal)
        self._dead.clear()
        known = [place for place, uid in enumerate(uids) if uid in self._row_of]
        found = group_feedback([uids[k] for k in known], advantages[known], rewards[known])
        rows = [self._row_of.pop(str(uid)) for uid in found.keys]
        self.curriculum.observe(rows, advantages=found.advantages, rewards=found.rewards)

    def on_step_end(self) -> None:
        super().on_step_end()
        # What is left was dropped by verl: failed, or more than the batch needed.
        self._row_of.clear()

    def _save_checkpoint(self) -> None:
        # Before verl's latest_checkpointed_iteration.txt: what that names is whole.
        checkpoint.save(self, self.curriculum)
        super()._save_checkpoint()

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        checkpoint.load(self, self.curriculum)


def _final_outputs(batch: Any) -> list[tuple[str, str]]:
    """(key, uid) of the last output of every session of a batch, padding left out.

    A key is uid_session_index; GRPO's advantage is that of the last index.
    """
    last: dict[tuple[str, str], tuple[int, str]] = {}
    for key, tag in zip(batch.keys, batch.tags, strict=True):
        if tag.get("is_padding", False):
            continue
        uid, session, index = key.rsplit("_", 2)
        if int(index) >= last.get((uid, session), (-1, ""))[0]:
            last[uid, session] = (int(index), key)
    return [(key, uid) for (uid, _), (_, key) in last.items()]


def _note_filtered(buffer: Any, dead: dict[str, list[float]]) -> None:
    """Keep the rewards of the groups that the buffer finds to be equal, before it drops them."""
    filtered_keys = buffer._dapo_filtered_keys

    def noting(partition_id: str) -> Any:
        uids, counts = filtered_keys(partition_id)
        keys = [key for key in buffer.partitions[partition_id] if key.rsplit("_", 2)[0] in uids]
        if keys:
            data = tq.kv_batch_get(
                keys=keys, partition_id=partition_id, select_fields=["rm_scores"]
            ).to_padded_tensor()
            rewards = data["rm_scores"].double().sum(-1).tolist()
            found: dict[str, list[float]] = {}
            for key, reward in zip(keys, rewards, strict=True):
                found.setdefault(key.rsplit("_", 2)[0], []).append(reward)
            dead.update(found)
        return uids, counts

    buffer._dapo_filtered_keys = noting
