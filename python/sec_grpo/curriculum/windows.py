"""The last values of each arm, in memory that grows with the arms seen. Axes: K arms."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Windows:
    """The mean of the last `size` values of each of K arms.

    An arm's row of `size` float32 is made when its first value comes, so unseen arms cost eight
    bytes. The mean of a changed row is summed anew, which keeps it from drifting.

    Args:
        memory: a strategy's memory, in which all of it is kept.
        num_arms: K.
        size: values remembered of each arm.
    """

    def __init__(self, memory: dict[str, Any], num_arms: int, size: int) -> None:
        self._memory = memory
        self._size = size
        if "row" not in memory:
            memory["row"] = np.full(num_arms, -1, dtype=np.int64)
            memory["seen"] = np.zeros(num_arms, dtype=np.int64)
            memory["mean"] = np.zeros(num_arms)
            memory["recent"] = np.zeros((0, size), dtype=np.float32)

    @property
    def seen(self) -> NDArray[np.int64]:
        """(K,) values ever added."""
        return self._memory["seen"]

    @property
    def mean(self) -> NDArray[np.float64]:
        """(K,) mean of the remembered values, 0 before the first."""
        return self._memory["mean"]

    def add(self, arms: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        """Add values (B,) of `arms` (B,), in order; the oldest of an arm make room."""
        order = np.argsort(arms, kind="stable")
        arms, values = arms[order], values[order]
        distinct, first, counts = np.unique(arms, return_index=True, return_counts=True)
        row, seen, mean = (self._memory[name] for name in ("row", "seen", "mean"))
        recent = self._with_rows(row, distinct)
        place = np.arange(len(arms)) - np.repeat(first, counts)
        # Of an arm with more values than the window holds, only the last are written.
        kept = place >= np.repeat(counts, counts) - self._size
        slots = (seen[arms] + place) % self._size
        recent[row[arms[kept]], slots[kept]] = values[kept]
        seen[distinct] += counts
        filled = np.minimum(seen[distinct], self._size)
        mean[distinct] = recent[row[distinct]].sum(axis=1, dtype=np.float64) / filled

    def _with_rows(
        self, row: NDArray[np.int64], distinct: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """The rows, with new ones for the arms that have none, whose numbers go into `row`."""
        recent: NDArray[np.float32] = self._memory["recent"]
        new = distinct[row[distinct] < 0]
        used = int(row.max()) + 1
        if used + len(new) > len(recent):
            grown = np.zeros((max(2 * len(recent), used + len(new)), self._size), np.float32)
            grown[: len(recent)] = recent
            self._memory["recent"] = recent = grown
        row[new] = used + np.arange(len(new))
        return recent
