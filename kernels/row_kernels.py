"""Launches of the row kernels of `row_exp`, for one chunk of rows."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from sec_grpo.kernels import linear_exp, row_exp
from sec_grpo.kernels.head import Head, RowStatistics


class RowKernels:
    """The kernels of one chunk of rows, and its statistics between them.

    Axes: C rows of the chunk, V vocabulary, K blocks of it.

    Either `exponentials` for every slice of the vocabulary, `combine` and, for a gradient,
    `finish`; or `gradients` for every slice, where the statistics are known already.
    """

    def __init__(self, targets: Tensor, head: Head, num_vocab: int) -> None:
        self.num_rows = targets.shape[0]
        self.num_vocab = num_vocab
        self._head = head
        self._targets = targets.contiguous()
        # Where there is no such tensor, a pointer that no kernel reads.
        self._bias = targets if head.bias is None else head.bias.contiguous()
        self._temperatures, temperature = targets, 1.0
        if isinstance(head.temperature, Tensor):
            self._temperatures = head.temperature.contiguous()
        else:
            temperature = float(head.temperature)
        softcap = 1.0 if head.softcap is None else float(head.softcap)
        self._scalars = (temperature, float(head.logit_scale), softcap)
        per_row = isinstance(head.temperature, Tensor)
        self._flags = {"CAP": head.softcap is not None, "PER_ROW": per_row}
        self._with_bias = {"HAS_BIAS": head.bias is not None, **self._flags}

    def _float32(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self._targets.device)

    def start(self, states: Tensor, weight: Tensor, block: int | None = None) -> None:
        """Find the targets' logits, the anchors, from states (C, D) and weight (V, D).

        `block` is the number of columns that statistics are of, by default that of `exponentials`.
        """
        self._block = block = row_exp.BLOCK if block is None else block
        self._num_blocks = triton.cdiv(self.num_vocab, block)
        self._num_blocks_padded = triton.next_power_of_2(self._num_blocks)
        self._target_logits = self._float32(self.num_rows)
        self._anchors, self._sums, self._moments = (
            self._float32(self.num_rows, self._num_blocks) for _ in range(3)
        )
        row_exp._target_logit_kernel[(self.num_rows,)](
            states,
            weight,
            self._bias,
            self._targets,
            self._temperatures,
            self._target_logits,
            states.stride(0),
            weight.stride(0),
            states.shape[1],
            *self._scalars,
            **self._with_bias,
            BLOCK_D=min(triton.next_power_of_2(states.shape[1]), 2048),
            num_warps=row_exp.TARGET_WARPS,
        )

    def exponentials(
        self, raw: Tensor, first_column: int, out: Tensor | None, *, keep_logits: bool = False
    ) -> None:
        """Statistics of raw products (C, columns), and their exponentials into out (C, V).

        With keep_logits the exponentials are stored without the cap's slope, so that `finish` can
        take the logits from them.
        """
        row_exp._exp_kernel[(self.num_rows, triton.cdiv(raw.shape[1], row_exp.BLOCK))](
            raw,
            self._bias,
            self._targets,
            self._temperatures,
            self._target_logits,
            raw if out is None else out,
            self._anchors,
            self._sums,
            self._moments,
            raw.stride(0),
            0 if out is None else out.stride(0),
            self._num_blocks,
            first_column,
            raw.shape[1],
            *self._scalars,
            **self._with_bias,
            STORE=out is not None,
            STORE_SLOPE=self._head.softcap is not None and not keep_logits,
            LIMIT=row_exp.STATISTICS_LIMIT if out is None else row_exp.LIMITS[out.dtype],
            BLOCK=row_exp.BLOCK,
            num_warps=row_exp.NUM_WARPS,
        )

    def exponentials_of_product(self, states: Tensor, weight: Tensor, out: Tensor | None) -> None:
        """`exponentials` of all columns, of products that are made on the way."""
        temperature, logit_scale, _ = self._scalars
        linear_exp.linear_exp(
            states,
            weight,
            out,
            self._targets,
            self._temperatures,
            self._target_logits,
            (self._anchors, self._sums, self._moments),
            temperature,
            logit_scale,
            per_row=self._flags["PER_ROW"],
            limit=row_exp.STATISTICS_LIMIT if out is None else row_exp.LIMITS[out.dtype],
        )

    def combine(self) -> RowStatistics:
        """Statistics of the rows, once all blocks are known."""
        found = RowStatistics(*(self._float32(self.num_rows) for _ in range(4)))
        self._statistics, self._rest = found, self._float32(self.num_rows)
        rows = max(1, row_exp.COMBINED_BLOCKS // self._num_blocks_padded)
        row_exp._combine_kernel[(triton.cdiv(self.num_rows, rows),)](
            self._target_logits,
            self._anchors,
            self._sums,
            self._moments,
            *found,
            self._rest,
            self.num_rows,
            self._num_blocks,
            ROWS=rows,
            BLOCKS=self._num_blocks_padded,
            num_warps=row_exp.COMBINE_WARPS,
        )
        return found

    def finish(self, exp: Tensor, grad_logp: Tensor, grad_entropy: Tensor | None) -> Tensor:
        """Row scales (C,): d loss/d raw logits is these times `exp` (C, V), which is changed."""
        row_scale = self._float32(self.num_rows)
        row_exp._finish_kernel[(self.num_rows,)](
            exp,
            self._targets,
            self._temperatures,
            self._target_logits,
            self._anchors,
            *self._statistics,
            self._rest,
            grad_logp,
            grad_logp if grad_entropy is None else grad_entropy,
            row_scale,
            exp.stride(0),
            self._num_blocks,
            self.num_vocab,
            *self._scalars,
            **self._flags,
            HAS_ENTROPY=grad_entropy is not None,
            BLOCKS=self._num_blocks_padded,
            BLOCK=self._block,
            num_warps=row_exp.FINISH_WARPS,
        )
        return row_scale

    def gradients(
        self,
        raw: Tensor,
        first_column: int,
        out: Tensor,
        statistics: RowStatistics,
        grad_logp: Tensor,
        grad_entropy: Tensor | None,
        scale: Tensor | None,
    ) -> None:
        """d loss/d raw logits, over `scale`, of raw products (C, columns) into out (C, columns)."""
        row_exp._gradient_kernel[(self.num_rows, triton.cdiv(raw.shape[1], row_exp.BLOCK))](
            raw,
            self._bias,
            self._targets,
            self._temperatures,
            *statistics,
            grad_logp,
            grad_logp if grad_entropy is None else grad_entropy,
            grad_logp if scale is None else scale,
            out,
            raw.stride(0),
            out.stride(0),
            first_column,
            raw.shape[1],
            *self._scalars,
            **self._with_bias,
            HAS_ENTROPY=grad_entropy is not None,
            HAS_SCALE=scale is not None,
            BLOCK=row_exp.BLOCK,
            num_warps=row_exp.NUM_WARPS,
        )
