"""The linear head on a GPU: products by the vendor's library, all between them by Triton kernels.

Axes: N tokens, D hidden, V vocabulary, C rows of a chunk, S columns of a slice.

A chunk's logits are made slice by slice in float32, in a buffer that is small enough to stay in the
GPU's cache until a row kernel has read it; what goes to memory are exponentials or gradients in the
inputs' precision. `linear_operator` makes autograd of this; docs/kernels.md explains the design.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import triton
from torch import Tensor

from sec_grpo.kernels import linear_exp, policy_loss, row_exp
from sec_grpo.kernels.head import Gradients, Head, RowStatistics
from sec_grpo.kernels.matmul import accumulate, num_processors, product_into
from sec_grpo.kernels.reference import PolicyInputs, PolicyLossSpec
from sec_grpo.kernels.row_kernels import RowKernels
from sec_grpo.kernels.rows import SKIP, Chunk, even_rows, row_chunks

# How exponentials are made: "library" is its product and a row kernel, "fused" `linear_exp` where
# that fits. Which is faster has not been measured yet (benchmarks/tune_linear.py does).
PRODUCT: Literal["library", "fused"] = "library"
# Bytes of a chunk's exponentials (C, V): the larger, the fewer trips of the float32 gradient of the
# weight through memory. With the other buffers it stays below 1 GiB.
EXP_BYTES = 832 << 20
# In the mode of least memory, which stays below 0.3 GiB: bytes of a chunk's gradients (C, V), of a
# slice's (N, S), and of the float32 (N, D) up to which hidden's are made along with the slices.
LOW_ROWS_BYTES = 192 << 20
LOW_SLICE_BYTES = 64 << 20
LOW_HIDDEN_BYTES = 128 << 20
# Bytes of a slice's float32 logits (C, S), at most: an H100 has 50 MB of second-level cache.
SLICE_BYTES = 40 << 20
# Rows of a chunk where only log-probabilities are made, which need no (C, V) buffer.
FORWARD_ROWS = 4096
# A tile of the library's products; chunks and slices are whole tiles.
TILE_ROWS, TILE_COLUMNS = 128, 256


def _rows_of_buffer(num_bytes: int, row_bytes: int) -> int:
    return max(TILE_ROWS, num_bytes // max(1, row_bytes) // TILE_ROWS * TILE_ROWS)


def slice_columns(chunk_rows: int, num_vocab: int, processors: int) -> int:
    """S: whole blocks of the row kernels whose float32 logits fit the cache.

    Of these the one whose product keeps the GPU's processors busiest, taking them to work on one
    tile each at a time; of equals the largest.
    """
    block = row_exp.BLOCK
    most = max(1, SLICE_BYTES // (4 * max(1, chunk_rows) * block))
    tiles_m = triton.cdiv(chunk_rows, TILE_ROWS)

    def busy(blocks: int) -> float:
        tiles = tiles_m * triton.cdiv(blocks * block, TILE_COLUMNS)
        return tiles / (triton.cdiv(tiles, processors) * processors)

    best = max(range(1, most + 1), key=lambda blocks: (busy(blocks), blocks))
    return min(best * block, triton.cdiv(num_vocab, TILE_COLUMNS) * TILE_COLUMNS)


class _Slices:
    """The raw products (C, V) of chunks, one slice of the vocabulary at a time in one buffer."""

    def __init__(self, hidden: Tensor, weight: Tensor, chunk_rows: int, columns: int) -> None:
        self._weight = weight
        self.columns = columns
        self._buffer = hidden.new_empty((chunk_rows, columns), dtype=torch.float32)

    def make(self, states: Tensor, first_column: int) -> Tensor:
        """(C, at most S) products of states (C, D) with the weight's rows from `first_column`."""
        part = self._weight[first_column : first_column + self.columns]
        out = self._buffer[: states.shape[0], : part.shape[0]]
        return product_into(out, states, part.T)

    def __iter__(self) -> Iterator[int]:
        """First columns."""
        return iter(range(0, self._weight.shape[0], self.columns))


def _slices(hidden: Tensor, weight: Tensor, chunk_rows: int) -> _Slices:
    columns = slice_columns(chunk_rows, weight.shape[0], num_processors(hidden.device))
    return _Slices(hidden, weight, chunk_rows, columns)


def _padded_columns(num_vocab: int) -> int:
    """Columns of a (C, V) buffer whose rows all start aligned."""
    return triton.cdiv(num_vocab, 64) * 64


def logprob_forward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    head: Head,
    row_class: Tensor | None,
    *,
    need_entropy: bool,
    chunk_rows: int | None,
) -> RowStatistics:
    """Statistics of all rows (N,); the entropy costs nothing here.

    Rows of the class SKIP get 0.
    """
    del need_entropy
    hidden, weight = hidden.contiguous(), weight.contiguous()
    num_rows = hidden.shape[0]
    results = RowStatistics(*(hidden.new_zeros(num_rows, dtype=torch.float32) for _ in range(4)))
    rows = chunk_rows or even_rows(num_rows, FORWARD_ROWS, TILE_ROWS)
    slices = _slices(hidden, weight, rows)
    with torch.autocast(hidden.device.type, enabled=False):
        for chunk in row_chunks(row_class, num_rows, rows):
            _, found, _ = _forward(chunk, hidden, weight, targets, head, slices, None)
            for result, values in zip(results, found, strict=True):
                result[chunk.rows] = values
    _zero_skipped(row_class, results.logp, results.entropy)
    return results


def _forward(
    chunk: Chunk,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    head: Head,
    slices: _Slices,
    exp: Tensor | None,
    *,
    keep_logits: bool = False,
) -> tuple[RowKernels, RowStatistics, Tensor]:
    """The chunk's kernels, statistics and states (C, D); its exponentials go to exp (C, V)."""
    states = chunk.take(hidden)
    kernels = RowKernels(chunk.take(targets), head.select(chunk), weight.shape[0])
    if PRODUCT == "fused" and _fits_fused(states, weight, head):
        kernels.start(states, weight, linear_exp.block_columns(weight.device))
        kernels.exponentials_of_product(states, weight, exp)
    else:
        kernels.start(states, weight)
        for first in slices:
            kernels.exponentials(slices.make(states, first), first, exp, keep_logits=keep_logits)
    return kernels, kernels.combine(), states


def _fits_fused(states: Tensor, weight: Tensor, head: Head) -> bool:
    return head.bias is None and head.softcap is None and linear_exp.fits(states, weight)


def _zero_skipped(row_class: Tensor | None, *tensors: Tensor) -> None:
    if row_class is not None:
        for tensor in tensors:
            tensor.masked_fill_(row_class == SKIP, 0.0)


def _float16_scale(dtype: torch.dtype, *tensors: Tensor | None) -> Tensor | None:
    """The largest magnitude (1 if all are 0) for float16, whose range 1 / num_tokens leaves."""
    if dtype != torch.float16:
        return None
    largest = torch.stack([t.abs().amax() for t in tensors if t is not None and t.numel()]).amax()
    return largest.float().where(largest > 0, 1.0)


@dataclass(frozen=True)
class _Backward:
    """Gradients of log-probabilities (N,) and entropies, from statistics of the forward."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    head: Head
    row_class: Tensor | None
    statistics: RowStatistics
    grad_logp: Tensor
    grad_entropy: Tensor | None
    scale: Tensor | None

    def kernels(self, chunk: Chunk) -> RowKernels:
        return RowKernels(chunk.take(self.targets), self.head.select(chunk), self.weight.shape[0])

    def into(
        self, out: Tensor, chunk: Chunk, kernels: RowKernels, raw: Tensor, first_column: int
    ) -> None:
        """d loss/d raw logits (C, S), over the scale, of raw products (C, S)."""
        statistics = RowStatistics(*map(chunk.take, self.statistics))
        grad_entropy = None if self.grad_entropy is None else chunk.take(self.grad_entropy)
        grad_logp = chunk.take(self.grad_logp)
        kernels.gradients(raw, first_column, out, statistics, grad_logp, grad_entropy, self.scale)

    def by_rows(self, gradients: Gradients, chunk_rows: int) -> None:
        """Chunk after chunk of rows, with the whole vocabulary."""
        num_vocab = self.weight.shape[0]
        slices = _slices(self.hidden, self.weight, chunk_rows)
        buffer = self.hidden.new_empty((chunk_rows, _padded_columns(num_vocab)))
        for chunk in row_chunks(self.row_class, self.hidden.shape[0], chunk_rows):
            if not chunk.has_gradient:
                break
            states, kernels = chunk.take(self.hidden), self.kernels(chunk)
            out = buffer[: states.shape[0], :num_vocab]
            for first in slices:
                raw = slices.make(states, first)
                part = out[:, first : first + raw.shape[1]]
                self.into(part, chunk, kernels, raw, first)
            gradients.add(out, states, self.weight, chunk.rows, scale=self.scale)

    def by_vocabulary(self, gradients: Gradients, *, with_hidden: bool) -> None:
        """Slice after slice of the vocabulary, with all rows: a part of weight's and bias's
        gradients is final at once, and only hidden's is accumulated, in a float32 (N, D)."""
        chunks = [
            chunk
            for chunk in row_chunks(self.row_class, self.hidden.shape[0], FORWARD_ROWS)
            if chunk.has_gradient
        ]
        if not chunks:
            return
        states = [chunk.take(self.hidden) for chunk in chunks]
        sizes = [len(part) for part in states]
        together = self.hidden if self.row_class is None else torch.cat(states)
        launches = [self.kernels(chunk) for chunk in chunks]
        columns = min(LOW_SLICE_BYTES // (2 * sum(sizes)), SLICE_BYTES // (4 * max(sizes)))
        columns = max(columns // TILE_COLUMNS, 1) * TILE_COLUMNS
        slices = _Slices(self.hidden, self.weight, max(sizes), columns)
        buffer = self.hidden.new_empty((sum(sizes), columns))
        total = None
        if with_hidden:
            total = self.hidden.new_zeros(together.shape, dtype=torch.float32)
        for first in slices:
            part = self.weight[first : first + columns]
            factor = buffer[:, : part.shape[0]]
            for own, chunk, launch, out in zip(
                states, chunks, launches, factor.split(sizes), strict=True
            ):
                self.into(out, chunk, launch, slices.make(own, first), first)
            if total is not None:
                accumulate(total, factor, part, self.scale)
            own_part = Gradients(
                None,
                _float32_zeros(gradients.weight, first, columns),
                _float32_zeros(gradients.bias, first, columns),
            )
            own_part.add(factor, together, part, slice(None), scale=self.scale)
            for whole, found in (
                (gradients.weight, own_part.weight),
                (gradients.bias, own_part.bias),
            ):
                if whole is not None and found is not None:
                    whole[first : first + columns] = found
        gradients.weight_is_filled = True
        if gradients.hidden is not None and total is not None:
            for chunk, found in zip(chunks, total.split(sizes), strict=True):
                gradients.hidden[chunk.rows] = found.to(gradients.hidden.dtype)


def _float32_zeros(gradient: Tensor | None, first: int, columns: int) -> Tensor | None:
    """A part of a gradient, to be summed in float32."""
    if gradient is None:
        return None
    return torch.zeros_like(gradient[first : first + columns], dtype=torch.float32)


def logprob_backward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    head: Head,
    row_class: Tensor | None,
    statistics: RowStatistics,
    grad_logp: Tensor | None,
    grad_entropy: Tensor | None,
    needed: Sequence[bool],
    *,
    chunk_rows: int | None,
    memory_mode: str,
) -> tuple[Tensor | None, ...]:
    """Gradients of hidden, weight and bias where `needed`, the logits made a second time.

    In memory_mode "low" the weight's gradient is made slice by slice of the vocabulary, without a
    float32 (V, D), and hidden's along with it if its float32 (N, D) is small, else on its own.
    """
    hidden, weight = hidden.contiguous(), weight.contiguous()
    # The gradient of a sum is one number, expanded.
    grad_logp = torch.zeros_like(statistics.logp) if grad_logp is None else grad_logp.contiguous()
    grad_entropy = None if grad_entropy is None else grad_entropy.contiguous()
    backward = _Backward(
        hidden,
        weight,
        targets,
        head,
        row_class,
        statistics,
        grad_logp,
        grad_entropy,
        _float16_scale(hidden.dtype, grad_logp, grad_entropy),
    )
    low = memory_mode == "low"
    buffer_bytes = LOW_ROWS_BYTES if low else EXP_BYTES
    row_bytes = weight.shape[0] * hidden.dtype.itemsize
    most = _rows_of_buffer(buffer_bytes, row_bytes)
    rows = chunk_rows or even_rows(hidden.shape[0], most, TILE_ROWS)
    need_hidden, *others = needed
    with torch.autocast(hidden.device.type, enabled=False):
        if not low:
            gradients = Gradients.allocate(hidden, weight, head.bias, needed, torch.float32)
            backward.by_rows(gradients, rows)
        else:
            gradients = Gradients.allocate(hidden, weight, head.bias, needed, weight.dtype)
            together = any(others) and 4 * hidden.numel() <= LOW_HIDDEN_BYTES
            if need_hidden and not together:
                backward.by_rows(Gradients(gradients.hidden, None, None), rows)
            if any(others):
                backward.by_vocabulary(gradients, with_hidden=need_hidden and together)
    return gradients.cast(
        (hidden.dtype, weight.dtype, None if head.bias is None else head.bias.dtype)
    )


def policy_gradient(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    head: Head,
    row_class: Tensor | None,
    inputs: PolicyInputs,
    spec: PolicyLossSpec,
    weights: Tensor,
    entropy_weights: Tensor | None,
    needed: Sequence[bool],
    *,
    chunk_rows: int | None,
) -> tuple[Tensor, Tensor, Gradients]:
    """logp (N,), entropy (N,) and the gradients of sum_t weights_t loss_t + e_weights_t entropy_t.

    Rows of the class SKIP get 0.
    """
    hidden, weight = hidden.contiguous(), weight.contiguous()
    num_rows, num_vocab = hidden.shape[0], weight.shape[0]
    logp, entropy = (hidden.new_zeros(num_rows, dtype=torch.float32) for _ in range(2))
    kept_dtype = torch.float32 if hidden.dtype == torch.float16 else hidden.dtype
    gradients = Gradients.allocate(hidden, weight, head.bias, needed, torch.float32, kept_dtype)
    most = _rows_of_buffer(EXP_BYTES, num_vocab * hidden.dtype.itemsize)
    rows = chunk_rows or even_rows(num_rows, most, TILE_ROWS)
    slices = _slices(hidden, weight, rows)
    buffer = hidden.new_empty((rows, _padded_columns(num_vocab)))
    keep_logits = entropy_weights is not None
    with torch.autocast(hidden.device.type, enabled=False):
        for chunk in row_chunks(row_class, num_rows, rows):
            at = chunk.rows
            exp = None
            if chunk.has_gradient:
                exp = buffer[: len(chunk.take(targets)), :num_vocab]
            kernels, found, states = _forward(
                chunk, hidden, weight, targets, head, slices, exp, keep_logits=keep_logits
            )
            logp[at], entropy[at] = found.logp, found.entropy
            if exp is None:
                continue
            grad_logp = weights[at] * policy_loss.token_loss_slopes(
                found.logp, inputs.select(at), spec
            )
            grad_entropy = None if entropy_weights is None else entropy_weights[at]
            row_scale, scale = _finished(kernels, exp, grad_logp, grad_entropy)
            gradients.add(exp, states, weight, at, row_scale=row_scale, scale=scale)
    _zero_skipped(row_class, logp, entropy)
    return logp, entropy, gradients.settle()


def _finished(
    kernels: RowKernels, exp: Tensor, grad_logp: Tensor, grad_entropy: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Row scales (C,), and for float16 a scale, with which `exp` is d loss/d raw logits."""
    scale = None
    if grad_entropy is not None:
        # The gradients go into `exp` itself, not into the row scales.
        scale = _float16_scale(exp.dtype, grad_logp, grad_entropy)
        if scale is not None:
            grad_logp, grad_entropy = grad_logp / scale, grad_entropy / scale
    row_scale = kernels.finish(exp, grad_logp, grad_entropy)
    of_rows = _float16_scale(exp.dtype, row_scale)
    if of_rows is not None:
        row_scale = row_scale / of_rows
        scale = of_rows if scale is None else scale * of_rows
    return row_scale, scale
