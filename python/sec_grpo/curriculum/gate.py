"""Which groups of completions a batch is made of, once their rewards are known.

P prompts a batch, G rollouts a prompt, M groups generated for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sec_grpo.curriculum._arrays import as_groups, as_indices
from sec_grpo.curriculum._parameters import count_parameter, real_parameter

_SHORTAGES = ("fill", "short", "error")


class ShortageError(ValueError):
    """Too few groups with different rewards, and `on_shortage="error"`."""


@dataclass(frozen=True)
class DynamicSampling:
    """Draw until enough groups have different rewards: dynamic sampling of DAPO (arXiv 2503.14476).

    A group whose rewards are all equal has advantage 0 and teaches nothing. Such groups are
    dropped, and prompts are drawn for the missing ones until the batch is full or the bound is
    reached. All groups that were generated, the dropped ones too, are to be observed by the
    curriculum: they are what tells it that an arm is too easy or too hard.

    Departures: 1. only the missing prompts are drawn again, not whole batches; 2. the number of
    refills is bounded.

    Args:
        max_refills: rounds of drawing after the first, at least 0.
        overdraw: prompts drawn for each missing one, at least 1.
        tolerance: rewards of a group count as equal when they differ by at most this, at least 0.
        on_shortage: when the bound is reached, "fill" takes dropped groups, the earliest first, so
            that the batch has P groups; "short" returns fewer; "error" raises ShortageError.

    Raises TypeError or ValueError, naming the parameter, for anything else.

    Example::

        batch = DynamicSampling(max_refills=3).start(256)
        while batch.num_missing:
            indices = curriculum.draw(batch.num_missing)
            batch.add(indices, rewards=generate_and_score(indices))  # (len(indices), G)
        groups = batch.selected()  # positions among all that were added
        curriculum.observe(batch.indices, rewards=batch.rewards, advantages=...)
    """

    max_refills: int = 3
    overdraw: float = 1.0
    tolerance: float = 0.0
    on_shortage: str = "fill"

    def __post_init__(self) -> None:
        refills = self.max_refills
        object.__setattr__(
            self, "max_refills", 0 if refills == 0 else count_parameter("max_refills", refills)
        )
        for name, least in (("overdraw", 1.0), ("tolerance", 0.0)):
            must = f"a finite number of at least {least:g}"
            value = real_parameter(name, getattr(self, name), must)
            if value < least:
                raise ValueError(f"{name} must be {must}, got {value!r}")
            object.__setattr__(self, name, value)
        if self.on_shortage not in _SHORTAGES:
            raise ValueError(
                f"on_shortage must be one of {', '.join(_SHORTAGES)}, got {self.on_shortage!r}"
            )

    def start(self, num_prompts: int) -> GatedBatch:
        """An empty batch that wants groups of `num_prompts` prompts."""
        return GatedBatch(self, count_parameter("num_prompts", num_prompts))


class GatedBatch:
    """One batch in the making; `DynamicSampling.start` makes it."""

    def __init__(self, gate: DynamicSampling, num_prompts: int) -> None:
        self._gate = gate
        self._num_prompts = num_prompts
        self._rounds = 0
        self._indices: list[NDArray[np.int64]] = []
        self._rewards: list[NDArray[Any]] = []
        self._differs: list[NDArray[np.bool_]] = []

    @property
    def num_missing(self) -> int:
        """Prompts to draw next; 0 when the batch is full or the bound is reached."""
        if self._rounds == 0:
            return self._num_prompts
        missing = self._num_prompts - self._num_kept
        if missing <= 0 or self._rounds > self._gate.max_refills:
            return 0
        return int(np.ceil(missing * self._gate.overdraw))

    def add(self, indices: Any, *, rewards: Any) -> None:
        """Take in the prompts (m,) that were drawn and the rewards (m, G) of their rollouts.

        Raises ValueError for wrong shapes and for NaN; then nothing was taken in.
        """
        index_array = as_indices(indices)
        reward_array = as_groups("rewards", rewards)
        if reward_array is None or reward_array.ndim != 2 or len(reward_array) != len(index_array):
            shape = None if reward_array is None else reward_array.shape
            raise ValueError(f"rewards must have shape ({len(index_array)}, G), got {shape}")
        if self._rewards and reward_array.shape[1] != self._rewards[0].shape[1]:
            raise ValueError(
                f"rewards must have G = {self._rewards[0].shape[1]} as before, got "
                f"{reward_array.shape[1]}"
            )
        if not np.isfinite(reward_array).all():
            raise ValueError("rewards must be finite, got NaN or infinity")
        spread = reward_array.max(axis=1) - reward_array.min(axis=1)
        self._indices.append(index_array)
        self._rewards.append(reward_array)
        self._differs.append(spread > self._gate.tolerance)
        self._rounds += 1

    @property
    def indices(self) -> NDArray[np.int64]:
        """(M,) prompts of all groups generated, in order."""
        return np.concatenate(self._indices)

    @property
    def rewards(self) -> NDArray[Any]:
        """(M, G) rewards of all groups generated."""
        return np.concatenate(self._rewards)

    def selected(self) -> NDArray[np.int64]:
        """Positions among the M groups of those that make the batch, in order.

        At most P; the groups with different rewards that come first, then by `on_shortage`.
        """
        differs = np.concatenate(self._differs)
        kept = np.flatnonzero(differs)[: self._num_prompts]
        missing = self._num_prompts - len(kept)
        if missing and self._gate.on_shortage == "error":
            raise ShortageError(
                f"only {len(kept)} of {self._num_prompts} groups have different rewards after "
                f"{self._gate.max_refills} refills; raise max_refills, choose prompts that are "
                'sometimes solved, or set on_shortage="fill"'
            )
        if missing and self._gate.on_shortage == "fill":
            kept = np.concatenate([kept, np.flatnonzero(~differs)[:missing]])
        return np.sort(kept)

    def metrics(self) -> dict[str, float]:
        """generated_groups; dropped_groups, those without a difference that are not in the batch;
        refill_groups, generated after the first round; refills, rounds after the first; kept, the
        share of the generated groups that have different rewards."""
        differs = np.concatenate(self._differs)
        chosen = np.zeros(len(differs), dtype=bool)
        chosen[self.selected()] = True
        return {
            "generated_groups": float(len(differs)),
            "dropped_groups": float((~differs & ~chosen).sum()),
            "refill_groups": float(len(differs) - len(self._differs[0])),
            "refills": float(self._rounds - 1),
            "kept": float(differs.mean()),
        }

    @property
    def _num_kept(self) -> int:
        return sum(int(differs.sum()) for differs in self._differs)
