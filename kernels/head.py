"""What both backends of the linear head share: its constants, and gradients over chunks of rows.

Axes: N tokens, D hidden, V vocabulary, C rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sec_grpo.kernels.matmul import accumulate, product, product_into
from sec_grpo.kernels.rows import Chunk


class RowStatistics(NamedTuple):
    """Statistics of rows, all (N,) or (C,) in the accumulation dtype.

    log p_v = z_v - anchor - log_sum for every column v.
    """

    logp: Tensor
    """log p of the target"""
    entropy: Tensor
    anchor: Tensor
    log_sum: Tensor
    """log of the sum of exp(z - anchor)"""


@dataclass(frozen=True)
class Head:
    """The head's constants: logits = softcap(logit_scale (hidden weight^T + bias)) / temperature.

    softcap(z) is softcap tanh(z / softcap), or z without a cap.
    """

    bias: Tensor | None
    """(V,)"""
    temperature: float | Tensor
    """a number, or (N,)"""
    logit_scale: float
    softcap: float | None

    def select(self, chunk: Chunk) -> Head:
        """The head of a chunk's rows."""
        if not isinstance(self.temperature, Tensor):
            return self
        # Not chunk.take: a temperature of 0 would make NaN of rows that are to be 0.
        temperature = self.temperature[chunk.rows]
        if chunk.kept is not None:
            temperature = temperature.where(chunk.kept, 1.0)
        return Head(self.bias, temperature, self.logit_scale, self.softcap)


@dataclass
class Gradients:
    """Gradients under accumulation over chunks; None where not needed."""

    hidden: Tensor | None
    weight: Tensor | None
    """(V, D), not filled until the first chunk, which writes it instead of adding to zeros"""
    bias: Tensor | None
    weight_is_filled: bool = False

    @classmethod
    def allocate(
        cls,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        needed: Sequence[bool],
        dtype: torch.dtype,
        hidden_dtype: torch.dtype | None = None,
    ) -> Gradients:
        """Buffers of `hidden_dtype`, by default its own, for hidden; of `dtype` for the others."""
        need_hidden, need_weight, need_bias = needed
        return cls(
            torch.zeros_like(hidden, dtype=hidden_dtype) if need_hidden else None,
            torch.empty_like(weight, dtype=dtype) if need_weight else None,
            torch.zeros_like(bias, dtype=dtype) if need_bias and bias is not None else None,
        )

    def add(
        self,
        factor: Tensor,
        states: Tensor,
        weight: Tensor,
        rows: slice | Tensor,
        *,
        row_scale: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> None:
        """Take in d loss/d raw logits = scale row_scale_i factor_iv of rows with `states` (C, D).

        `factor` is (C, V), `row_scale` (C,) and `scale` a scalar, each float32 and 1 by default.
        """
        dtype = torch.promote_types(factor.dtype, torch.float32)
        both = row_scale if scale is None else scale if row_scale is None else row_scale * scale
        if self.hidden is not None:
            result = product(factor, weight, dtype)
            if both is not None:
                result *= both.reshape(-1, 1)
            self.hidden[rows] = result.to(self.hidden.dtype)
        if self.weight is not None:
            if row_scale is not None:
                states = (states * row_scale[:, None]).to(states.dtype)
            self._add_to_weight(self.weight, factor.T, states, scale)
        if self.bias is not None:
            self.bias += _weighted_column_sums(factor, both, dtype)

    def _add_to_weight(
        self, total: Tensor, factor: Tensor, states: Tensor, scale: Tensor | None
    ) -> None:
        if self.weight_is_filled:
            accumulate(total, factor, states, scale)
            return
        product_into(total, factor, states)
        if scale is not None:
            total *= scale
        self.weight_is_filled = True

    def settle(self) -> Gradients:
        """All of it final: zeros where no chunk has come."""
        if self.weight is not None and not self.weight_is_filled:
            self.weight.zero_()
            self.weight_is_filled = True
        return self

    def cast(self, dtypes: Sequence[torch.dtype | None]) -> tuple[Tensor | None, ...]:
        """(hidden, weight, bias) gradients in the given dtypes."""
        self.settle()
        return tuple(
            None if gradient is None or dtype is None else gradient.to(dtype)
            for gradient, dtype in zip((self.hidden, self.weight, self.bias), dtypes, strict=True)
        )


def scaled(tensor: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """tensor * factor in `dtype`; out=, because the float32 product may be as large as a weight."""
    return torch.mul(tensor, factor, out=torch.empty_like(tensor, dtype=dtype))


def _weighted_column_sums(factor: Tensor, weights: Tensor | None, dtype: torch.dtype) -> Tensor:
    """(V,) of factor (C, V) and weights (C,) or scalar."""
    if weights is None or weights.dim() == 0:
        total = factor.sum(0, dtype=dtype)
        return total if weights is None else total * weights
    if factor.dtype == dtype:
        return weights @ factor
    # In two parts, which together have the digits of float32 that one in low precision lacks.
    largest = weights.abs().amax().clamp(min=torch.finfo(dtype).tiny)
    relative = weights / largest
    high = relative.to(factor.dtype)
    low = (relative - high).to(factor.dtype)
    parts = product(factor.T, torch.stack([high, low], 1), dtype)
    return parts.sum(1) * largest
