"""Triton: exponentials and row statistics of a linear head straight from its product.

Axes: C rows of a chunk, D hidden, V vocabulary; tiles of BLOCK_M rows x BLOCK_N columns.

A persistent matrix product whose epilogue is `row_exp._exp_kernel`: the logits of a tile stay in
registers, and what leaves them are exponentials in the inputs' precision and three numbers for
each row and half tile. Beside the library's product and a row kernel it saves a float32 trip of the
logits through the cache; whether that pays for a slower product, a GPU has to say. For heads
without bias and cap, on GPUs with tensor memory access (sm_90 and newer): elsewhere, and with more
in its epilogue, the tile does not fit the registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from sec_grpo.kernels.matmul import num_processors
from sec_grpo.kernels.row_exp import anchor_of, distance_from, mask_logits

BLOCK_M, BLOCK_K = 128, 64
# By compute capability: the largest tile without spilled registers.
BLOCK_N = {9: 256, 10: 128}
NUM_WARPS = 8
NUM_STAGES = 3
_ALIGNMENT = 16


@triton.jit
def _halves(tile):
    """The left and the right half of the columns of a tile."""
    shape: tl.constexpr = [tile.shape[0], 2, tile.shape[1] // 2]
    return tl.split(tl.permute(tl.reshape(tile, shape), [0, 2, 1]))


@triton.jit
def _epilogue(
    raw,
    factor,
    row,
    first_row,
    first_column,
    exp_desc,
    targets_ptr,
    target_logits_ptr,
    anchors_ptr,
    sums_ptr,
    moments_ptr,
    num_rows,
    num_columns,
    num_blocks,
    STORE: tl.constexpr,
    LIMIT: tl.constexpr,
):
    """`row_exp._exp_kernel` of one block in each row, of logits raw * factor (rows, BLOCK)."""
    BLOCK: tl.constexpr = raw.shape[1]
    valid = row < num_rows
    column = first_column + tl.arange(0, BLOCK)
    target_logit = tl.load(target_logits_ptr + row, mask=valid, other=0.0)
    target = tl.load(targets_ptr + row, mask=valid, other=0).to(tl.int32)
    keep = (column < num_columns)[None, :] & (column[None, :] != target[:, None])
    z = mask_logits(raw * factor, keep, False)
    anchor = anchor_of(tl.max(z, 1), target_logit, LIMIT)
    sums = tl.zeros_like(anchor)
    moments = tl.zeros_like(anchor)
    # Half by half: exponentials, distances and logits at once would not fit the registers.
    halves = _halves(z)
    for half in tl.static_range(2):
        distance = distance_from(halves[half], anchor[:, None])
        e = tl.exp(distance)
        if STORE:
            start = first_column + half * (BLOCK // 2)
            exp_desc.store([first_row, start], e.to(exp_desc.dtype))
        sums += tl.sum(e, 1)
        moments += tl.sum(e * distance, 1)
    at = row.to(tl.int64) * num_blocks + first_column // BLOCK
    # A block past the vocabulary's end has no place in the statistics.
    valid = valid & (row * 0 + first_column < num_columns)
    tl.store(anchors_ptr + at, anchor, mask=valid)
    tl.store(sums_ptr + at, sums, mask=valid)
    tl.store(moments_ptr + at, moments, mask=valid)


@triton.jit(do_not_specialize=["num_rows", "temperature", "logit_scale"])
def _linear_exp_kernel(
    states_desc,
    weight_desc,
    exp_desc,
    targets_ptr,
    temperatures_ptr,
    target_logits_ptr,
    anchors_ptr,
    sums_ptr,
    moments_ptr,
    num_rows,
    num_columns,
    num_hidden,
    num_blocks,
    temperature,
    logit_scale,
    PER_ROW: tl.constexpr,
    STORE: tl.constexpr,
    LIMIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """exp (C, V) and block statistics of states (C, D) x weight (V, D)^T, tile by tile."""
    tiles_m = tl.cdiv(num_rows, BLOCK_M)
    tiles_n = tl.cdiv(num_columns, BLOCK_N)
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0), flatten=True):
        # Down the rows first: their states stay in the cache, and so does a tile of the weight.
        first_row = (tile % tiles_m) * BLOCK_M
        first_column = (tile // tiles_m) * BLOCK_N
        product = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for k in range(0, num_hidden, BLOCK_K):
            x = states_desc.load([first_row, k])
            w = weight_desc.load([first_column, k])
            product = tl.dot(x, w.T, product)
        row = first_row + tl.arange(0, BLOCK_M)
        if PER_ROW:
            temperatures = tl.load(temperatures_ptr + row, mask=row < num_rows, other=1.0)
            factor = (logit_scale / temperatures.to(tl.float32))[:, None]
        else:
            factor = logit_scale / temperature
        halves = _halves(product)
        for half in tl.static_range(2):
            _epilogue(
                halves[half],
                factor,
                row,
                first_row,
                first_column + half * (BLOCK_N // 2),
                exp_desc,
                targets_ptr,
                target_logits_ptr,
                anchors_ptr,
                sums_ptr,
                moments_ptr,
                num_rows,
                num_columns,
                num_blocks,
                STORE,
                LIMIT,
            )


def _tile_columns(device: torch.device) -> int | None:
    """BLOCK_N on the device, or None where the kernel is not to be used."""
    if device.type != "cuda":
        return min(BLOCK_N.values())  # Triton's interpreter
    if torch.version.hip is not None:
        return None
    return BLOCK_N.get(torch.cuda.get_device_capability(device)[0])


def fits(states: Tensor, weight: Tensor) -> bool:
    """Whether the kernel takes such states and weight."""
    aligned = all(
        t.data_ptr() % _ALIGNMENT == 0 and t.stride(0) * t.element_size() % _ALIGNMENT == 0
        for t in (states, weight)
    )
    low = states.dtype in (torch.bfloat16, torch.float16)
    return low and aligned and _tile_columns(weight.device) is not None


def block_columns(device: torch.device) -> int:
    """Columns of a block of the statistics, half a tile."""
    columns = _tile_columns(device)
    assert columns is not None
    return columns // 2


def linear_exp(
    states: Tensor,
    weight: Tensor,
    exp: Tensor | None,
    targets: Tensor,
    temperatures: Tensor,
    target_logits: Tensor,
    statistics: tuple[Tensor, Tensor, Tensor],
    temperature: float,
    logit_scale: float,
    *,
    per_row: bool,
    limit: float,
) -> None:
    """Fill exp (C, V), if given, and anchors, sums and moments (C, blocks) of the statistics."""
    block_n = 2 * block_columns(weight.device)
    tiles = triton.cdiv(states.shape[0], BLOCK_M) * triton.cdiv(weight.shape[0], block_n)
    states_desc = TensorDescriptor.from_tensor(states, [BLOCK_M, BLOCK_K])
    out = states if exp is None else exp
    _linear_exp_kernel[(min(num_processors(weight.device), tiles),)](
        states_desc,
        TensorDescriptor.from_tensor(weight, [block_n, BLOCK_K]),
        TensorDescriptor.from_tensor(out, [BLOCK_M, block_n // 4]),
        targets,
        temperatures,
        target_logits,
        *statistics,
        states.shape[0],
        weight.shape[0],
        states.shape[1],
        statistics[0].shape[1],
        temperature,
        logit_scale,
        PER_ROW=per_row,
        STORE=exp is not None,
        LIMIT=limit,
        BLOCK_M=BLOCK_M,
        BLOCK_N=block_n,
        BLOCK_K=BLOCK_K,
        num_warps=NUM_WARPS,
        num_stages=NUM_STAGES,
    )
