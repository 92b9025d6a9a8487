"""The last values of each arm, in memory that grows with the arms seen. K arms, C columns."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_FIRST_WIDTH = 8


class Windows:
    """The last `size` values of each of K arms, or the last `size` rows of C values.

    The values of an arm lie in a row of their own, made when its first value comes; all rows are as
    wide as the longest needs, doubling up to `size`. So arms never seen take 16 bytes, and of many
    arms that are seen now and then each takes little.

    Args:
        memory: a strategy's memory, in which all of it is kept.
        num_arms: K.
        size: values remembered of each arm.
        columns: C.
        dtype: float32 or float64.
    """

    def __init__(
        self,
        memory: dict[str, Any],
        num_arms: int,
        size: int,
        columns: int = 1,
        dtype: type[np.floating[Any]] = np.float32,
    ) -> None:
        self._memory = memory
        self._size = size
        if "row" not in memory:
            memory["row"] = np.full(num_arms, -1, dtype=np.int64)
            memory["seen"] = np.zeros(num_arms, dtype=np.int64)
            width = min(_FIRST_WIDTH, size)
            memory["recent"] = np.zeros((0, width, columns), dtype=dtype)

    @property
    def seen(self) -> NDArray[np.int64]:
        """(K,) values ever added."""
        return self._memory["seen"]

    def add(self, arms: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.int64]:
        """Add values (B,) or (B, C) of `arms` (B,), in order; the oldest of an arm make room.

        Returns the (D,) distinct arms, ascending.
        """
        order = np.argsort(arms, kind="stable")
        arms, values = arms[order], values[order].reshape(len(arms), -1)
        distinct, first, counts = np.unique(arms, return_index=True, return_counts=True)
        row, seen = self._memory["row"], self._memory["seen"]
        recent = self._with_room(row, distinct, int((seen[distinct] + counts).max()))
        place = np.arange(len(arms)) - np.repeat(first, counts)
        # Of an arm with more values than the window holds, only the last are written.
        kept = place >= np.repeat(counts, counts) - self._size
        slots = (seen[arms] + place) % self._size
        recent[row[arms[kept]], slots[kept]] = values[kept]
        seen[distinct] += counts
        return distinct

    def of(self, arms: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """(D, W, C) what is remembered of arms that were seen, and (D, W) where there is something.

        The order inside a row is that of a ring.
        """
        recent = self._memory["recent"]
        filled = np.arange(recent.shape[1]) < self.seen[arms, None]
        return recent[self._memory["row"][arms]].astype(np.float64), filled

    def _with_room(
        self, row: NDArray[np.int64], distinct: NDArray[np.int64], longest: int
    ) -> NDArray[Any]:
        """The rows, wide enough for `longest` values, with new ones for the arms that have none."""
        recent: NDArray[Any] = self._memory["recent"]
        new = distinct[row[distinct] < 0]
        used = int(row.max()) + 1
        count, width, columns = recent.shape
        # No row has come round as long as it is narrower than the window: places stay.
        if longest > width and width < self._size:
            width = min(max(2 * width, longest), self._size)
        if used + len(new) > count:
            count = max(2 * count, used + len(new))
        if recent.shape != (count, width, columns):
            grown = np.zeros((count, width, columns), recent.dtype)
            grown[: len(recent), : recent.shape[1]] = recent
            self._memory["recent"] = recent = grown
        row[new] = used + np.arange(len(new))
        return recent


class MeanWindows(Windows):
    """`Windows` of one column that keeps the mean of each arm, summed anew from its row."""

    def __init__(self, memory: dict[str, Any], num_arms: int, size: int) -> None:
        super().__init__(memory, num_arms, size)
        if "mean" not in memory:
            memory["mean"] = np.zeros(num_arms)

    @property
    def mean(self) -> NDArray[np.float64]:
        """(K,) mean of the remembered values, 0 before the first."""
        return self._memory["mean"]

    def add(self, arms: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.int64]:
        """Add values (B,) of `arms` (B,), in order; the oldest of an arm make room."""
        distinct = super().add(arms, values)
        rows = self._memory["recent"][self._memory["row"][distinct]]
        # Places not filled hold 0.
        filled = np.minimum(self.seen[distinct], self._size)
        self.mean[distinct] = rows.sum(axis=(1, 2), dtype=np.float64) / filled
        return distinct
