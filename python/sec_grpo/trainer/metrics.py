"""Metrics of the steps since the last log, kept on the device until they are needed.

Names are those of TRL's GRPOTrainer where it has one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import torch

from sec_grpo.distributed import Processes

# The loss types whose clipping TRL reports, token by token, under clip_ratio/.
_CLIPPING = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")


class MetricStore:
    """Weighted means of scalars, fetched from the device in one go.

    A name that ends in `max` is reduced by its maximum, one that ends in `min` by its minimum, and
    every other by its weighted mean.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[torch.Tensor]] = defaultdict(list)
        self._weights: dict[str, list[float]] = defaultdict(list)

    def add(self, name: str, value: torch.Tensor | float, weight: float = 1.0) -> None:
        """Add one observation; a tensor stays on its device.

        Raises:
            ValueError: it is not one number.
        """
        number = torch.as_tensor(value, dtype=torch.float32).detach()
        if number.numel() != 1:
            raise ValueError(
                f"the metric {name!r} must be one number, got {number.numel()} of shape "
                f"{tuple(number.shape)}; log their mean"
            )
        self._values[name].append(number.reshape(()))
        self._weights[name].append(weight)

    def clear(self) -> None:
        """Forget what was not popped."""
        self._values.clear()
        self._weights.clear()

    def __bool__(self) -> bool:
        """Whether there is anything to pop."""
        return bool(self._values)

    def pop(self, processes: Processes | None = None) -> dict[str, float]:
        """The reduced metrics, over all `processes` where given; the store is empty afterwards."""
        fetched = _fetch([v for values in self._values.values() for v in values])
        reduced = {
            name: _reduce(name, [next(fetched) for _ in values], self._weights[name])
            for name, values in self._values.items()
        }
        self.clear()
        parts = [reduced] if processes is None else processes.gather_objects(reduced)
        out = {}
        for name in dict.fromkeys(name for part in parts for name in part):
            found = [part[name] for part in parts if name in part]
            out[name], _ = _reduce(name, [v for v, _ in found], [w for _, w in found])
        return out


def loss_metrics(
    metrics: dict[str, torch.Tensor], *, loss_type: str, has_kl: bool
) -> dict[str, torch.Tensor]:
    """The metrics of `policy_loss` to be logged for a loss type, under TRL's names.

    `clip_ratio/` is left to the losses that clip, `cispo_clip_ratio` takes its place for cispo, and
    `kl` is logged only where the loss has it.
    """
    out = {}
    for name, value in metrics.items():
        if name.startswith("clip_ratio/"):
            if loss_type == "cispo" and name == "clip_ratio/high_mean":
                out["cispo_clip_ratio"] = value
            if loss_type not in _CLIPPING:
                continue
        if name not in ("num_tokens", "entropy") and (name != "kl" or has_kl):
            out[name] = value
    return out


def clip_extremes(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor | None,
    advantages: torch.Tensor,
    cu_seqlens: torch.Tensor,
    *,
    epsilon_low: float,
    epsilon_high: float,
    sequence_level: bool,
) -> dict[str, torch.Tensor]:
    """`clip_ratio/low_min` and `clip_ratio/high_max` over completions, as TRL defines them.

    The least share of a completion's tokens whose ratio is clipped from below (A < 0), and the
    largest of those clipped from above (A > 0); at the sequence level a completion's share is 0
    or 1.

    Args:
        logprobs, old_logprobs: (N,) packed; without old_logprobs the ratio is 1.
        advantages: (b,) of the completions, or (N,). cu_seqlens: (b + 1,) their offsets.
    """
    if old_logprobs is None:
        zero = torch.zeros((), device=logprobs.device)
        return {"clip_ratio/low_min": zero, "clip_ratio/high_max": zero}
    lengths = cu_seqlens.diff().to(logprobs.device)
    count = len(lengths)
    rows = torch.repeat_interleave(
        torch.arange(count, device=logprobs.device), lengths, output_size=logprobs.numel()
    )

    def mean(values: torch.Tensor) -> torch.Tensor:
        total = values.new_zeros(count).index_add(0, rows, values)
        return total / lengths.clamp(min=1)

    log_ratio = (logprobs - old_logprobs).detach().float()
    if sequence_level:
        log_ratio = mean(log_ratio)[rows]
    ratio = log_ratio.exp()
    advantage = advantages[rows] if len(advantages) == count else advantages
    low = ((ratio < 1 - epsilon_low) & (advantage < 0)).float()
    high = ((ratio > 1 + epsilon_high) & (advantage > 0)).float()
    return {"clip_ratio/low_min": mean(low).amin(), "clip_ratio/high_max": mean(high).amax()}


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
