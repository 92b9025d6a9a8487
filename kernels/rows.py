"""Which rows a head is applied to, in which order, and in chunks of how many.

Axes: N rows (tokens), C rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

GRADIENT, FORWARD, SKIP = range(3)
"""classes of rows: the loss has a gradient in them; only their log-probability is asked for; not
even that is"""


def even_rows(num_rows: int, most: int, multiple: int = 1) -> int:
    """Rows of a chunk, when chunks of at most `most` are as few and as equal as possible.

    A multiple of `multiple`, as `most` is.
    """
    chunks = max(1, -(-num_rows // most))
    rows = -(-num_rows // chunks)
    return max(1, -(-rows // multiple)) * multiple


@dataclass(frozen=True)
class Chunk:
    """Rows to run together."""

    rows: slice | Tensor
    """(C,) positions, where not consecutive"""
    has_gradient: bool
    kept: Tensor | None = None
    """(C,) bool, where some of the rows are to be skipped after all"""

    def take(self, tensor: Tensor) -> Tensor:
        """(C, ...) entries of a tensor (N, ...): 0 for rows to be skipped, which may hold NaN."""
        part = tensor[self.rows]
        if self.kept is None:
            return part
        return torch.where(self.kept.view(-1, *(1,) * (part.dim() - 1)), part, 0)


def row_chunks(row_class: Tensor | None, num_rows: int, chunk_rows: int) -> Iterator[Chunk]:
    """Chunks of at most `chunk_rows` rows, those with a gradient first and those skipped left out.

    `row_class` (N,) uint8 holds the class of each row; None is a gradient in all. On a GPU the
    host learns how many rows there are of each class only after the first chunk has been queued,
    so that the GPU is busy while the host waits.
    """
    if row_class is None:
        for start in range(0, num_rows, chunk_rows):
            yield Chunk(slice(start, min(start + chunk_rows, num_rows)), True)
        return
    if num_rows == 0:
        return
    classes = torch.arange(2, dtype=row_class.dtype, device=row_class.device)
    counts = (row_class == classes[:, None]).sum(1)
    order = row_class.argsort(stable=True)
    start = 0
    if row_class.is_cuda:
        on_host = torch.empty(2, dtype=counts.dtype, pin_memory=True)
        on_host.copy_(counts, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        rows = order[:chunk_rows]
        yield Chunk(rows, True, kept=row_class[rows] != SKIP)
        copied.synchronize()
        counts, start = on_host, chunk_rows
    with_gradient, forward_only = counts.tolist()
    for begin, end, has_gradient in (
        (start, with_gradient, True),
        (max(start, with_gradient), with_gradient + forward_only, False),
    ):
        for at in range(begin, end, chunk_rows):
            yield Chunk(order[at : min(at + chunk_rows, end)], has_gradient)
