"""Log-probability and entropy of a linear head, in row chunks, logits recomputed in the backward.

Axes: N tokens, D hidden, V vocabulary, C rows of a chunk.

At most a few (C, V) buffers in float32 exist at once, never (N, V). Low-precision inputs are
multiplied with float32 accumulation and no rounding of the logits: on CUDA through
`torch.mm(..., out_dtype=torch.float32)`, elsewhere by casting slices of the weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sec_grpo.kernels.reference import accumulation_dtype

# Default size of one (C, V) float32 buffer. CUDA gets more rows because each chunk reads the whole
# weight: at V = 151936 and D = 2048, 441 rows keep the product compute-bound in bf16.
CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 256 << 20}
MIN_CHUNK_ROWS = 16
SLICE_BYTES = 64 << 20


def default_chunk_rows(device: torch.device, num_vocab: int, itemsize: int) -> int:
    """Rows whose logits fill the default buffer of `device`."""
    chunk_bytes = CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"])
    return max(MIN_CHUNK_ROWS, chunk_bytes // max(1, num_vocab * itemsize))


def _vocab_slices(weight: Tensor) -> Iterator[slice]:
    rows = max(1, SLICE_BYTES // max(1, 4 * weight.shape[1]))
    for start in range(0, weight.shape[0], rows):
        yield slice(start, start + rows)


def _has_mixed_mm(tensor: Tensor) -> bool:
    return tensor.is_cuda and tensor.dtype in (torch.float16, torch.bfloat16)


def raw_logits(hidden: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """hidden (C, D) x weight (V, D)^T -> (C, V) in `dtype`."""
    if hidden.dtype == dtype:
        return hidden @ weight.T
    if _has_mixed_mm(hidden):
        return torch.mm(hidden, weight.T, out_dtype=dtype)
    logits = hidden.new_empty(hidden.shape[0], weight.shape[0], dtype=dtype)
    wide = hidden.to(dtype)
    for part in _vocab_slices(weight):
        logits[:, part] = wide @ weight[part].to(dtype).T
    return logits


class Head:
    """The head's constants, and the map from raw products to logits z of one chunk."""

    def __init__(
        self,
        bias: Tensor | None,
        temperature: float | Tensor,
        logit_scale: float,
        softcap: float | None,
    ) -> None:
        self.bias = bias
        self.temperature = temperature
        self.logit_scale = logit_scale
        self.softcap = softcap

    def _divisor(self, rows: slice, dtype: torch.dtype) -> float | Tensor:
        if isinstance(self.temperature, Tensor):
            return self.temperature[rows].to(dtype)[:, None]
        return self.temperature

    def logits(self, raw: Tensor, rows: slice, need_slope: bool) -> tuple[Tensor, Tensor | None]:
        """z (C, V), overwriting `raw`, and d(capped)/d(uncapped) (C, V) where there is a cap."""
        z = raw
        if self.bias is not None:
            z += self.bias.to(z.dtype)
        if self.logit_scale != 1:
            z *= self.logit_scale
        slope = None
        if self.softcap is not None:
            # A banned token (bias -inf) stays banned: the cap alone would lift it to -softcap.
            banned = z == -torch.inf
            z.div_(self.softcap).tanh_()
            slope = 1 - z * z if need_slope else None
            z.mul_(self.softcap).masked_fill_(banned, -torch.inf)
        z /= self._divisor(rows, z.dtype)
        return z, slope

    def raw_gradient(self, grad_z: Tensor, slope: Tensor | None, rows: slice) -> Tensor:
        """d loss/d raw from d loss/d z, in place."""
        grad_z /= self._divisor(rows, grad_z.dtype)
        if slope is not None:
            grad_z *= slope
        if self.logit_scale != 1:
            grad_z *= self.logit_scale
        return grad_z


def _times_weight(grad: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
    """grad (C, V) x weight (V, D) -> (C, D) in grad's dtype."""
    if weight.dtype == grad.dtype:
        return grad @ weight
    if scale is not None:
        low = (grad / scale).to(weight.dtype)
        return torch.mm(low, weight, out_dtype=grad.dtype) * scale
    if _has_mixed_mm(weight):
        return torch.mm(grad.to(weight.dtype), weight, out_dtype=grad.dtype)
    result = grad.new_zeros(grad.shape[0], weight.shape[1])
    for part in _vocab_slices(weight):
        result += grad[:, part] @ weight[part].to(grad.dtype)
    return result


def _add_weight_gradient(total: Tensor, grad: Tensor, hidden: Tensor, scale: Tensor | None) -> None:
    """total (V, D) += grad (C, V)^T x hidden (C, D), accumulated in total's dtype."""
    if hidden.dtype == grad.dtype:
        total.addmm_(grad.T, hidden)
    elif _has_mixed_mm(hidden):
        low = (grad if scale is None else grad / scale).to(hidden.dtype).T
        for part in _vocab_slices(total):
            product = torch.mm(low[part], hidden, out_dtype=grad.dtype)
            total[part] += product if scale is None else product * scale
    else:
        total.addmm_(grad.T, hidden.to(grad.dtype))


def _float16_scale(grad: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The chunk's largest |gradient|, for float16 on CUDA, whose range 1 / num_tokens leaves."""
    if dtype != torch.float16 or not grad.is_cuda:
        return None
    largest = grad.abs().amax()
    return torch.where(largest > 0, largest, torch.ones_like(largest))


def _log_softmax(z: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row maximum, log of the rest's sum, and logp at the targets, all (C,); z less the maximum."""
    top = z.amax(-1)
    z -= top[:, None]
    at_target = z.gather(1, targets[:, None])[:, 0]
    # Two steps, not z - logsumexp: the sum is at least 1, so logp is never above 0.
    log_total = z.exp().sum(-1).log()
    return top, log_total, at_target - log_total


def _entropy(logp_all: Tensor) -> Tensor:
    """(C,) of log-probabilities (C, V); p log p is 0 where p is."""
    p = logp_all.exp()
    return -(p * logp_all.masked_fill(p == 0, 0.0)).sum(-1)


def _logits_gradient(
    logp_all: Tensor,
    targets: Tensor,
    grad_logp: Tensor | None,
    entropy: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """d loss/d z (C, V) from log-probabilities, which are overwritten.

    grad_logp (C,) is d loss/d logp of the targets; `entropy` is (d loss/d entropy, entropy).
    """
    grad_z = logp_all.exp()
    if entropy is None:
        assert grad_logp is not None
        grad_z *= -grad_logp[:, None]
    else:
        grad_entropy, value = entropy
        # d entropy/d z_j = -p_j (log p_j + entropy), whose limit at p_j = 0 is 0.
        logp_all.masked_fill_(grad_z == 0, 0.0).add_(value[:, None])
        logp_all *= grad_entropy[:, None]
        if grad_logp is not None:
            logp_all += grad_logp[:, None]
        grad_z *= logp_all.neg_()
    if grad_logp is not None:
        grad_z.scatter_add_(1, targets[:, None], grad_logp[:, None])
    return grad_z


@dataclass
class Gradients:
    """Gradients under accumulation over chunks; None where not needed."""

    hidden: Tensor | None
    weight: Tensor | None
    """(V, D) in the accumulation dtype"""
    bias: Tensor | None

    @classmethod
    def zeros(
        cls,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        needed: Sequence[bool],
        dtype: torch.dtype,
        hidden_dtype: torch.dtype | None = None,
    ) -> Gradients:
        """Zeros of `hidden_dtype`, by default its own, for hidden; of `dtype` for the others."""
        need_hidden, need_weight, need_bias = needed
        return cls(
            torch.zeros_like(hidden, dtype=hidden_dtype) if need_hidden else None,
            torch.zeros_like(weight, dtype=dtype) if need_weight else None,
            torch.zeros_like(bias, dtype=dtype) if need_bias and bias is not None else None,
        )

    def add(self, grad_raw: Tensor, hidden: Tensor, weight: Tensor, rows: slice | Tensor) -> None:
        """Take in d loss/d raw logits (C, V) of the rows with states `hidden` (C, D)."""
        scale = _float16_scale(grad_raw, hidden.dtype)
        if self.bias is not None:
            self.bias += grad_raw.sum(0)
        if self.hidden is not None:
            product = _times_weight(grad_raw, weight, scale)
            self.hidden[rows] = product.to(self.hidden.dtype)
        if self.weight is not None:
            _add_weight_gradient(self.weight, grad_raw, hidden, scale)

    def cast(self, dtypes: Sequence[torch.dtype | None]) -> tuple[Tensor | None, ...]:
        """(hidden, weight, bias) gradients in the given dtypes."""
        return tuple(
            None if gradient is None else gradient.to(dtype)
            for gradient, dtype in zip(self._all(), dtypes, strict=True)
        )

    def scaled(
        self, factor: Tensor, dtypes: Sequence[torch.dtype | None]
    ) -> tuple[Tensor | None, ...]:
        """`cast` of the gradients times a scalar, rounded once."""
        # out=, not a product and a cast: the float32 product would be as large as the weight.
        return tuple(
            None
            if gradient is None
            else torch.mul(gradient, factor, out=torch.empty_like(gradient, dtype=dtype))
            for gradient, dtype in zip(self._all(), dtypes, strict=True)
        )

    def _all(self) -> tuple[Tensor | None, ...]:
        return self.hidden, self.weight, self.bias


class LinearLogprob(torch.autograd.Function):
    """(hidden, weight, bias) -> (logp (N,), entropy (N,) or None); see `linear_logprob`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float | Tensor,
        logit_scale: float,
        softcap: float | None,
        return_entropy: bool,
        chunk_rows: int,
    ) -> tuple[Tensor, Tensor | None]:
        dtype = accumulation_dtype(hidden)
        num_tokens = hidden.shape[0]
        head = Head(bias, temperature, logit_scale, softcap)
        logp, row_max, log_sum = (hidden.new_empty(num_tokens, dtype=dtype) for _ in range(3))
        entropy = hidden.new_empty(num_tokens, dtype=dtype) if return_entropy else None
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, num_tokens, chunk_rows):
                rows = slice(start, start + chunk_rows)
                z, _ = head.logits(raw_logits(hidden[rows], weight, dtype), rows, False)
                row_max[rows], log_sum[rows], logp[rows] = _log_softmax(z, targets[rows])
                if entropy is not None:
                    z -= log_sum[rows, None]
                    entropy[rows] = _entropy(z)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(
            hidden,
            weight,
            bias,
            targets,
            temperature if isinstance(temperature, Tensor) else None,
            row_max,
            log_sum,
            entropy,
        )
        ctx.constants = (temperature, logit_scale, softcap, chunk_rows)
        if isinstance(temperature, Tensor):
            ctx.constants = (None, logit_scale, softcap, chunk_rows)
        return logp, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logp: Tensor | None, grad_entropy: Tensor | None) -> Any:
        hidden, weight, bias, targets, per_token, row_max, log_sum, entropy = ctx.saved_tensors
        temperature, logit_scale, softcap, chunk_rows = ctx.constants
        head = Head(bias, temperature if per_token is None else per_token, logit_scale, softcap)
        dtype = row_max.dtype
        gradients = Gradients.zeros(hidden, weight, bias, ctx.needs_input_grad[:3], dtype)
        idle = grad_logp is None and grad_entropy is None
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, 0 if idle else hidden.shape[0], chunk_rows):
                rows = slice(start, start + chunk_rows)
                raw = raw_logits(hidden[rows], weight, dtype)
                logp_all, slope = head.logits(raw, rows, True)
                logp_all -= row_max[rows, None]
                logp_all -= log_sum[rows, None]
                grad_z = _logits_gradient(
                    logp_all,
                    targets[rows],
                    None if grad_logp is None else grad_logp[rows],
                    None if grad_entropy is None else (grad_entropy[rows], entropy[rows]),
                )
                gradients.add(head.raw_gradient(grad_z, slope, rows), hidden[rows], weight, rows)
        dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        return (*gradients.cast(dtypes), *(None,) * 6)


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None,
    temperature: float | Tensor,
    logit_scale: float,
    softcap: float | None,
    return_entropy: bool,
    chunk_rows: int | None,
) -> tuple[Tensor, Tensor | None]:
    """logp (N,) and entropy (N,) or None, differentiable in hidden (N, D), weight (V, D), bias."""
    if chunk_rows is None:
        itemsize = accumulation_dtype(hidden).itemsize
        chunk_rows = default_chunk_rows(hidden.device, weight.shape[0], itemsize)
    logp, entropy = LinearLogprob.apply(
        hidden,
        weight,
        bias,
        targets,
        temperature,
        logit_scale,
        softcap,
        return_entropy,
        chunk_rows,
    )
    return logp, entropy
