"""Metrics of the steps since the last log, kept on the device until they are needed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import torch


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

    def pop(self) -> dict[str, float]:
        """The reduced metrics; the store is empty afterwards."""
        fetched = _fetch([v for values in self._values.values() for v in values])
        out = {}
        for name, values in self._values.items():
            numbers = [next(fetched) for _ in values]
            if name.endswith("max"):
                out[name] = max(numbers)
            elif name.endswith("min"):
                out[name] = min(numbers)
            else:
                weights = self._weights[name]
                total = sum(weights)
                weighted = sum(n * w for n, w in zip(numbers, weights, strict=True))
                out[name] = weighted / total if total else 0.0
        self._values.clear()
        self._weights.clear()
        return out


def _fetch(tensors: list[torch.Tensor]) -> Iterator[float]:
    """The tensors' values in order, with one transfer per device."""
    by_device: dict[torch.device, list[torch.Tensor]] = defaultdict(list)
    for tensor in tensors:
        by_device[tensor.device].append(tensor)
    numbers = {device: iter(torch.stack(ts).tolist()) for device, ts in by_device.items()}
    return iter([next(numbers[tensor.device]) for tensor in tensors])
