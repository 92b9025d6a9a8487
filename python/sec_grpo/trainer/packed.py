"""A `transformers.Trainer` whose optimizer step is any number of packs."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Trainer

from sec_grpo.trainer.batch import to_device

Packs = list[dict[str, Any]]


class PackedTrainer(Trainer):
    """Runs forward and backward pack by pack; their losses add up to the step's.

    Trainer counts micro-batches and reduces gradients with the last. To it a step is as many lists
    of packs as there are micro-batches, of which the last holds them all.
    """

    @staticmethod
    def as_micro_batches(packs: Packs, count: int) -> list[Packs]:
        """What `get_batch_samples` returns for a step of `count` micro-batches."""
        return [*([] for _ in range(count - 1)), packs]

    def end_of_packs(self) -> None:
        """Called after the backward of a step's last pack."""

    def training_step(
        self, model: torch.nn.Module, inputs: Packs, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Forward and backward of packs one after another; returns the sum of their losses."""
        total = torch.zeros((), device=self.args.device)
        for number, pack in enumerate(inputs):
            is_last = number == len(inputs) - 1
            self.accelerator.gradient_state._set_sync_gradients(is_last)
            if is_last:
                total = total + super().training_step(model, pack, num_items_in_batch)
                self.end_of_packs()
                continue
            with self.accelerator.no_sync(model):
                total = total + super().training_step(model, pack, num_items_in_batch)
        return total

    def _prepare_inputs(self, inputs: Any) -> Any:
        return to_device(inputs, self.args.device)

    def floating_point_ops(self, inputs: Packs) -> int:
        """The model's estimate, of all packs."""
        return sum(super(PackedTrainer, self).floating_point_ops(pack) for pack in inputs)

    def _track_num_input_tokens(self, inputs: Packs) -> None:
        for pack in inputs:
            super()._track_num_input_tokens(pack)
