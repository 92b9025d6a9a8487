"""Which groups of rollouts make a batch, once their rewards are known.

P prompts a batch, G rollouts a prompt (a group), M groups generated for a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sec_grpo.curriculum._arrays import as_groups, as_indices
from sec_grpo.curriculum._parameters import count_parameter, real_parameter

_SHORTAGES = ("fill", "fewer", "error")


class ShortageError(ValueError):
    """Too few groups whose rewards differ, and `on_shortage="error"`."""


@dataclass(frozen=True)
class DynamicSampling:
    """Draw again for groups that teach nothing: dynamic sampling of DAPO (arXiv 2503.14476).

    DAPO trains on groups with 0 < #correct < G; the others have advantage 0. Here a group is kept
    when std(r_1, ..., r_G) > atol, for rewards of any kind. For the groups that are missing then,
    other prompts are drawn, until P groups are kept or the refills are used up.

    All groups belong into one `Curriculum.observe` at the end, the dropped ones too: that an arm
    is too easy or too hard is what the curriculum has to learn, and a strategy updates once a
    batch however often it was refilled. Every refill is a draw, so schedules counted in draws
    (`Ordered`, `Staged`) run ahead by it.

    Departures: 1. prompts are drawn again for the missing groups only, not a whole batch; 2. the
    number of refills is bounded, and `on_shortage` says what happens then; 3. the standard
    deviation decides, not the mean, which is the same for rewards 0 and 1.

    Args:
        max_refills: most draws after the first, at least 0; 0 keeps every batch as it was drawn.
        min_groups: enough groups to stop drawing, from 1 to P; by default P.
        atol: a group is kept when the standard deviation of its rewards (over G - 1) is above
            this, at least 0. Equal rewards have exactly 0.
        on_shortage: what a batch with fewer than P kept groups holds besides: "fill" the groups
            without a difference, as many as it takes, the first ones first, so that the batch
            keeps its shape; "fewer" nothing; "error" is "fewer", and raises ShortageError when
            even min_groups are not reached.

    Raises TypeError or ValueError, naming the parameter, for anything else.

    A step::

        batch = DynamicSampling(max_refills=3).start(num_prompts=64)
        while batch.num_missing:
            indices = curriculum.draw(batch.num_missing)
            batch.add(indices, rewards=rollouts(indices))           # (len(indices), G)
        advantages = group_advantages(batch.rewards)                # (M, G), of all groups
        curriculum.observe(batch.indices, advantages=advantages, rewards=batch.rewards)
        train_on(batch.selected())                                  # positions among the M groups
    """

    max_refills: int = 3
    min_groups: int | None = None
    atol: float = 0.0
    on_shortage: str = "fill"

    def __post_init__(self) -> None:
        refills = self.max_refills
        if isinstance(refills, bool) or refills != 0:
            refills = count_parameter("max_refills", refills)
        object.__setattr__(self, "max_refills", int(refills))
        if self.min_groups is not None:
            object.__setattr__(self, "min_groups", count_parameter("min_groups", self.min_groups))
        must = "a finite number of at least 0"
        atol = real_parameter("atol", self.atol, must)
        if atol < 0:
            raise ValueError(f"atol must be {must}, got {self.atol!r}")
        object.__setattr__(self, "atol", atol)
        if self.on_shortage not in _SHORTAGES:
            raise ValueError(
                f"on_shortage must be one of {', '.join(_SHORTAGES)}; got {self.on_shortage!r}"
            )

    def start(self, num_prompts: int) -> GatedBatch:
        """An empty batch that wants groups of `num_prompts` (P) prompts.

        Raises TypeError or ValueError unless P is an integer of at least 1 and of min_groups.
        """
        wanted = count_parameter("num_prompts", num_prompts)
        if self.min_groups is not None and self.min_groups > wanted:
            raise ValueError(
                f"min_groups must be at most the {wanted} prompts of a batch, got {self.min_groups}"
            )
        return GatedBatch(self, wanted)


class GatedBatch:
    """One batch in the making; `DynamicSampling.start` makes it."""

    def __init__(self, gate: DynamicSampling, num_prompts: int) -> None:
        self._gate = gate
        self._num_prompts = num_prompts
        self._indices: list[NDArray[np.int64]] = []
        self._rewards: list[NDArray[Any]] = []
        self._differ: list[NDArray[np.bool_]] = []

    @property
    def num_missing(self) -> int:
        """Prompts to draw next; 0 when the batch is complete or the refills are used up."""
        if not self._differ:
            return self._num_prompts
        kept = int(sum(differ.sum() for differ in self._differ))
        enough = self._gate.min_groups or self._num_prompts
        if kept >= enough or len(self._differ) > self._gate.max_refills:
            return 0
        return self._num_prompts - kept

    def add(self, indices: Any, *, rewards: Any) -> None:
        """Take in the prompts of a draw and the rewards of their rollouts.

        Args:
            indices: (m,) prompts, as many as `num_missing` said, or more where they have to be
                dealt to processes evenly; those beyond the P kept first are dropped.
            rewards: (m, G) rewards; G is the same in all draws.

        Raises ValueError for wrong shapes, for NaN and infinity, and when nothing is missing;
        TypeError for values that are not numbers. Then nothing was taken in.
        """
        if self.num_missing == 0:
            raise ValueError("the batch must miss prompts to add some; start another batch")
        index_array = as_indices(indices)
        reward_array = as_groups("rewards", rewards)
        self._check_shape(reward_array, len(index_array))
        assert reward_array is not None
        if not np.isfinite(reward_array).all():
            row = int(np.argmin(np.isfinite(reward_array).all(axis=1)))
            raise ValueError(f"rewards must be finite, got {reward_array[row]} in row {row}")
        # Equality apart: the deviation of equal rewards such as 0.1 is not 0 in floating point.
        differ = reward_array.max(axis=1) != reward_array.min(axis=1)
        differ &= reward_array.std(axis=1, ddof=1, dtype=np.float64) > self._gate.atol
        self._indices.append(index_array)
        self._rewards.append(reward_array)
        self._differ.append(differ)

    @property
    def indices(self) -> NDArray[np.int64]:
        """(M,) int64 prompts of all groups, in the order in which they were added."""
        self._require_groups()
        return np.concatenate(self._indices)

    @property
    def rewards(self) -> NDArray[Any]:
        """(M, G) rewards of all groups."""
        self._require_groups()
        return np.concatenate(self._rewards)

    def selected(self) -> NDArray[np.int64]:
        """(p,) int64 positions among the M groups of those that make the batch, ascending.

        The first P that are kept and, with "fill", the first of the others up to P. Raises
        ShortageError with "error" when fewer than min_groups are kept.
        """
        self._require_groups()
        differ = np.concatenate(self._differ)
        kept = np.flatnonzero(differ)[: self._num_prompts]
        enough = self._gate.min_groups or self._num_prompts
        if self._gate.on_shortage == "error" and len(kept) < enough:
            raise ShortageError(
                f"only {len(kept)} of {enough} groups have rewards that differ after "
                f"{len(self._differ) - 1} refills; raise max_refills, choose prompts that are "
                'solved now and then, or set on_shortage="fill"'
            )
        if self._gate.on_shortage == "fill":
            kept = np.concatenate([kept, np.flatnonzero(~differ)[: self._num_prompts - len(kept)]])
        return np.sort(kept)

    def metrics(self) -> dict[str, float]:
        """Scalars for a logger.

        dropped_groups, generated but not in the batch; filled_groups, in the batch without a
        difference; refills, draws after the first, and refill_rollouts, generated for them;
        share_kept, the share of the M groups whose rewards differ.
        """
        selected = self.selected()
        differ = np.concatenate(self._differ)
        return {
            "dropped_groups": float(len(differ) - len(selected)),
            "filled_groups": float(len(selected) - differ[selected].sum()),
            "refills": float(len(self._differ) - 1),
            "refill_rollouts": float(sum(rewards.size for rewards in self._rewards[1:])),
            "share_kept": float(differ.mean()),
        }

    def _check_shape(self, rewards: NDArray[Any] | None, num_groups: int) -> None:
        shape = () if rewards is None else rewards.shape
        size = self._rewards[0].shape[1] if self._rewards else None
        good = len(shape) == 2 and shape[0] == num_groups and shape[1] >= 2
        if not good or size not in (None, shape[1]):
            raise ValueError(
                f"rewards must have shape ({num_groups}, {size or 'G'}), G at least 2, got "
                f"{None if rewards is None else shape}"
            )

    def _require_groups(self) -> None:
        if not self._differ:
            raise ValueError("the batch must have groups: add those of num_missing prompts first")
