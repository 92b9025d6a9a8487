"""Metrics of the steps since the last log, kept on the device until they are needed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import torch

from sec_grpo.distributed import Processes


class MetricStore:
    """Weighted means of scalars, fetched from the device in one go.

    A name that ends in `max` is reduced by its maximum, one that ends in `min` by its minimum, and
    every other by its weighted mean.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[torch.Tensor]] = defaultdict(list)
        self._weights: dict[str, list[float]] = defaultdict(list)

    def add(self, name: str, value: torch.Tensor | float, weight: float = 1.0) -> None:
        """Add one observation; a tensor stays on its device."""
        self._values[name].append(torch.as_tensor(value, dtype=torch.float32).detach())
        self._weights[name].append(weight)

    def pop(self, processes: Processes | None = None) -> dict[str, float]:
        """The reduced metrics, over all `processes` where given; the store is empty afterwards."""
        fetched = _fetch([v for values in self._values.values() for v in values])
        reduced = {
            name: _reduce(name, [next(fetched) for _ in values], self._weights[name])
            for name, values in self._values.items()
        }
        self._values.clear()
        self._weights.clear()
        parts = [reduced] if processes is None else processes.gather_objects(reduced)
        out = {}
        for name in dict.fromkeys(name for part in parts for name in part):
            found = [part[name] for part in parts if name in part]
            out[name], _ = _reduce(name, [v for v, _ in found], [w for _, w in found])
        return out


def _reduce(name: str, numbers: list[float], weights: list[float]) -> tuple[float, float]:
    """The reduced number and its weight."""
    total = sum(weights)
    if name.endswith("max"):
        return max(numbers), total
    if name.endswith("min"):
        return min(numbers), total
    if len(numbers) == 1:
        return numbers[0], total
    weighted = sum(n * w for n, w in zip(numbers, weights, strict=True) if w)
    return (weighted / total if total else 0.0), total


def _fetch(tensors: list[torch.Tensor]) -> Iterator[float]:
    """The tensors' values in order, with one transfer per device."""
    by_device: dict[torch.device, list[torch.Tensor]] = defaultdict(list)
    for tensor in tensors:
        by_device[tensor.device].append(tensor)
    numbers = {device: iter(torch.stack(ts).tolist()) for device, ts in by_device.items()}
    return iter([next(numbers[tensor.device]) for tensor in tensors])
