"""Training in several processes: replicate the draws, gather the feedback.

Every process holds the same curriculum and draws the same global batch of prompts, of which it
takes its slice. Feedback is gathered before the curriculum sees it, so that all copies stay equal;
groups of completions may span processes.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from accelerate import Accelerator


class Processes:
    """The collectives the trainer needs, on top of an `accelerate.Accelerator`."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self.size: int = accelerator.num_processes
        self.rank: int = accelerator.process_index

    def local_slice(self, values: Any) -> Any:
        """This process's contiguous part of a global batch whose length `size` divides."""
        count = len(values) // self.size
        return values[self.rank * count : (self.rank + 1) * count]

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Every process's tensor, concatenated along the first axis in rank order, on the CPU.

        All processes must pass the same shape.
        """
        gathered: torch.Tensor = self._accelerator.gather(tensor.to(self._accelerator.device))
        return gathered.cpu()

    def sum(self, *numbers: int) -> list[int]:
        """The sum over the processes of each number."""
        if self.size == 1:
            return list(numbers)
        local = torch.tensor(numbers, device=self._accelerator.device)
        return [int(n) for n in self._accelerator.reduce(local, reduction="sum").tolist()]

    def gather_objects(self, value: Any) -> list[Any]:
        """Every process's value, in rank order; it must be picklable."""
        from accelerate.utils import gather_object

        return list(gather_object([value])) if self.size > 1 else [value]

    def check_equal(self, values: np.ndarray, what: str) -> None:
        """Compare an array across the processes by its checksum.

        Raises:
            RuntimeError: it differs; every process raises.
        """
        if self.size == 1:
            return
        checksums = self.gather(torch.tensor([zlib.crc32(values.tobytes())])).tolist()
        if len(set(checksums)) > 1:
            raise RuntimeError(
                f"{what} differs between the processes (checksums {checksums}); every process must "
                "be given the same data set, strategy, seed and gathered feedback"
            )
