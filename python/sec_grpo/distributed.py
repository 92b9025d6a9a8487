"""Training in several processes: replicate the draws, gather the feedback.

Every process holds the same curriculum and draws the same global batch of prompts, of which it
takes its slice. Feedback is gathered before the curriculum sees it, so that all copies stay equal;
groups of completions may span processes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sec_grpo.curriculum import Curriculum, CurriculumStateError
from sec_grpo.curriculum._arrays import as_groups, as_indices
from sec_grpo.errors import CurriculumDesyncError

if TYPE_CHECKING:
    import torch
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
        import torch

        local = torch.tensor(numbers, device=self._accelerator.device)
        return [int(n) for n in self._accelerator.reduce(local, reduction="sum").tolist()]

    def gather_objects(self, value: Any) -> list[Any]:
        """Every process's value, in rank order; it must be picklable."""
        from accelerate.utils import gather_object

        return list(gather_object([value])) if self.size > 1 else [value]


class DistributedCurriculum:
    """One curriculum, replicated on every process of a training run.

    Every process makes the same `Curriculum` (same data set, strategy and seed), wraps it, and
    calls the methods below in the same order; all but `local_slice` and `state_dict` are
    collective. Draws count global prompts, so that a state saved by W processes goes on with any
    other number. Copies are compared by a digest: of the data set, the arms and all that is drawn
    at the start; of what was drawn and observed, the probabilities and the values before each draw
    and after each observation. In one process nothing is communicated.

    Args:
        curriculum: this process's copy, afterwards to be changed through this object only:
            feedback that one process alone gives it is what the digest is there to detect.
        accelerator: the `accelerate.Accelerator` whose processes take part.
        process_group: or the `torch.distributed` group whose processes do. With neither, those of
            the default group where `torch.distributed` is initialised, else this process alone.

    Raises:
        TypeError: `curriculum` is no Curriculum.
        ValueError: both are given, this process is not in the group, or the environment says that
            there are several processes but `torch.distributed` is not initialised.
        CurriculumDesyncError: the copies differ from the start; every process raises.

    A step, with rewards (b, G) of this process's b prompts::

        indices = shared.draw(batch_size)       # the same on every process
        local = shared.local_slice(indices)
        advantages, rewards = rollouts(local)
        shared.observe(local, advantages=advantages, rewards=rewards)
    """

    def __init__(
        self,
        curriculum: Curriculum,
        *,
        accelerator: Accelerator | None = None,
        process_group: Any = None,
    ) -> None:
        if not isinstance(curriculum, Curriculum):
            raise TypeError(f"curriculum must be a Curriculum, got {curriculum!r:.60}")
        self._curriculum = curriculum
        self._group = process_group
        self._rank, self._size = _rank_and_size(accelerator, process_group)
        self._check(whole=True)

    @property
    def curriculum(self) -> Curriculum:
        """This process's copy, for reading: probabilities, values, tables, metrics."""
        return self._curriculum

    @property
    def rank(self) -> int:
        """Number of this process among those that take part."""
        return self._rank

    @property
    def size(self) -> int:
        """Number of processes that take part."""
        return self._size

    def draw(self, batch_size: int) -> NDArray[np.int64]:
        """(batch_size,) int64 prompt indices of the next global batch, the same on every process.

        Raises CurriculumDesyncError on every process, and draws nothing, when the copies differ.
        """
        self.check()
        return self._curriculum.draw(batch_size)

    def local_slice(self, values: Any) -> Any:
        """This process's contiguous part of a global batch; sizes differ by one at most."""
        count = len(values)
        first, end = (number * count // self._size for number in (self._rank, self._rank + 1))
        return values[first:end]

    def observe(self, indices: Any, *, advantages: Any = None, rewards: Any = None) -> None:
        """Learn from the rollouts of a global batch, of which each process passes its part.

        The parts are joined in the order of the processes and given to every copy in one piece.

        Args:
            indices: (b,) prompts of this process, each with its whole group; b may differ between
                processes and be 0.
            advantages: (b, G) group-relative advantages.
            rewards: (b, G) rewards of the same rollouts.

        Raises what `Curriculum.observe` raises, on every process and with nothing of the batch
        used, also when one process's part alone is refused. Raises CurriculumDesyncError on every
        process when the copies differ afterwards.
        """
        failure: Exception | None = None
        part: Any = None
        try:
            part = _part(indices, advantages, rewards)
        except Exception as error:  # raised below, once no process waits for this one
            failure = error
        parts = self._gather((None if failure is None else str(failure), part))
        if failure is not None:
            raise failure
        for rank, (refused, _) in enumerate(parts):
            if refused is not None:
                raise ValueError(f"process {rank} passed feedback that is refused: {refused}")
        self.observe_gathered(**_join([part for _, part in parts]))

    def observe_gathered(
        self, indices: Any, *, advantages: Any = None, rewards: Any = None
    ) -> None:
        """`observe` for callers that hold the global batch on every process already.

        Raises what `Curriculum.observe` raises, and CurriculumDesyncError on every process when
        the copies differ afterwards: because they did before, or because the batch is not equal.
        """
        failure: Exception | None = None
        try:
            self._curriculum.observe(indices, advantages=advantages, rewards=rewards)
        except Exception as error:  # raised below, once no process waits for this one
            failure = error
        refused = self._gather(failure is not None)
        if failure is not None:
            raise failure
        if any(refused):
            raise CurriculumDesyncError(
                f"process {refused.index(True)} refused feedback that this one accepted; give "
                "every process the same data set, strategy and batch"
            )
        self.check()

    def state_dict(self) -> dict[str, Any]:
        """The curriculum's state; not collective, so that the first process alone may save it."""
        return self._curriculum.state_dict()

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Continue on every process from the state that the first one passes.

        Args:
            state: what `state_dict` gave, also under another number of processes; the others may
                pass None, or the same state.

        Raises:
            CurriculumStateError: the state does not fit the curriculum of some process; every
                process raises and none is changed.
            CurriculumDesyncError: the processes passed different states; none is changed.
        """
        states = self._gather(None if state is None else dict(state))
        if any(other is not None and other != states[0] for other in states):
            raise CurriculumDesyncError(
                "state must be that of the first process, or None on the others; got different "
                "states: load the same file everywhere"
            )
        before = self._curriculum.state_dict()
        failure: Exception | None = None
        try:
            self._curriculum.load_state_dict(states[0])
        except Exception as error:  # as in observe
            failure = error
        refused = self._gather(None if failure is None else str(failure))
        if failure is not None:
            raise failure
        for rank, reason in enumerate(refused):
            if reason is not None:
                self._curriculum.load_state_dict(before)
                raise CurriculumStateError(f"process {rank} refuses the state: {reason}")
        self.check()

    def check(self) -> None:
        """Compare the copies by their digest; CurriculumDesyncError everywhere if they differ."""
        self._check(whole=False)

    def _check(self, whole: bool) -> None:
        if self._size == 1:
            return
        seen = self._gather((self._curriculum.step, _digest(self._curriculum, whole)))
        if len(set(seen)) > 1:
            shown = ", ".join(
                f"process {rank}: step {step}, {digest[:8]}"
                for rank, (step, digest) in enumerate(seen)
            )
            raise CurriculumDesyncError(
                f"the curriculum differs between the processes ({shown}); give every process the "
                "same data set, strategy and seed, draw and observe through DistributedCurriculum "
                "on all of them, and go on from the last checkpoint"
            )

    def _gather(self, value: Any) -> list[Any]:
        """Every process's value, in rank order."""
        if self._size == 1:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self._size
        distributed.all_gather_object(values, value, group=self._group)
        return values


def _rank_and_size(accelerator: Accelerator | None, process_group: Any) -> tuple[int, int]:
    if accelerator is not None and process_group is not None:
        raise ValueError("give accelerator or process_group, not both")
    if accelerator is not None:
        return accelerator.process_index, accelerator.num_processes
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        world = os.environ.get("WORLD_SIZE", "1")
        if process_group is not None or world != "1":
            raise ValueError(
                f"torch.distributed must be initialised in a run of several processes (WORLD_SIZE "
                f"is {world}): call torch.distributed.init_process_group first, or pass accelerator"
            )
        return 0, 1
    rank = distributed.get_rank(process_group)
    if rank < 0:
        raise ValueError("process_group must hold this process, which is not in it")
    return rank, distributed.get_world_size(process_group)


def _part(indices: Any, advantages: Any, rewards: Any) -> dict[str, NDArray[Any] | None]:
    """This process's rows as arrays that agree in length."""
    empty = hasattr(indices, "__len__") and len(indices) == 0
    part: dict[str, NDArray[Any] | None] = {
        "indices": np.zeros(0, np.int64) if empty else as_indices(indices),
        "advantages": as_groups("advantages", advantages),
        "rewards": as_groups("rewards", rewards),
    }
    rows = len(part["indices"])  # type: ignore[arg-type]
    for name in ("advantages", "rewards"):
        values = part[name]
        if values is not None and (values.ndim == 0 or len(values) != rows):
            raise ValueError(
                f"{name} must have shape ({rows}, G), one row for each of indices, got "
                f"{values.shape}"
            )
    return part


def _join(parts: list[dict[str, NDArray[Any] | None]]) -> dict[str, Any]:
    """The parts that have rows, in order; ValueError where they are not of one kind."""
    filled = [part for part in parts if len(part["indices"])] or parts  # type: ignore[arg-type]
    joined: dict[str, Any] = {}
    for name in ("indices", "advantages", "rewards"):
        arrays = [part[name] for part in filled]
        given = [array for array in arrays if array is not None]
        if given and len(given) < len(arrays):
            raise ValueError(
                f"{name} must be given by every process or by none, got them from {len(given)} of "
                f"{len(arrays)}"
            )
        if len({array.shape[1:] for array in given}) > 1:
            raise ValueError(
                f"{name} must have the same G on every process, got shapes "
                f"{', '.join(str(array.shape) for array in given)}"
            )
        joined[name] = np.concatenate(given) if given else None
    return joined


def _digest(curriculum: Curriculum, whole: bool) -> str:
    """What copies that go on alike have in common, each time or once in a while (`whole`)."""
    engine = curriculum._engine
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{engine.seed} {engine.num_prompts} {engine.summary()} ".encode())
    if whole:
        # The categories of the prompts in their order, the arms, the place in each.
        digest.update(engine.serialize("", b""))
    digest.update(curriculum.probabilities().tobytes())
    digest.update(curriculum.values().tobytes())
    return digest.hexdigest()
