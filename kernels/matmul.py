"""Products of matrices in low precision with float32 results, from the vendor's library.

On CUDA the library itself multiplies bfloat16 and float16 into float32. Elsewhere operands are
widened first, the larger one in slices, so that no float32 copy of a whole weight is made.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

SLICE_BYTES = 64 << 20
_LOW = (torch.float16, torch.bfloat16)


def is_mixed(a: Tensor, b: Tensor, dtype: torch.dtype) -> bool:
    """Whether the library multiplies `a` and `b` into `dtype` without widening them."""
    return a.is_cuda and a.dtype in _LOW and a.dtype == b.dtype and dtype == torch.float32


def _slices(size: int, row_bytes: int) -> list[slice]:
    rows = max(1, SLICE_BYTES // max(1, row_bytes))
    return [slice(start, start + rows) for start in range(0, size, rows)]


def num_processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; 1 elsewhere."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a (M, K) x b (K, N) -> (M, N) in `dtype`."""
    return product_into(a.new_empty(a.shape[0], b.shape[1], dtype=dtype), a, b)


def product_into(out: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """out (M, N) = a (M, K) x b (K, N), summed in out's dtype; returns `out`."""
    dtype = out.dtype
    if a.dtype == b.dtype == dtype:
        return torch.mm(a, b, out=out)
    if is_mixed(a, b, dtype):
        return torch.ops.aten.mm.dtype_out(a, b, dtype, out=out)
    a = a.to(dtype)
    if b.shape[1] >= b.shape[0]:
        for part in _slices(b.shape[1], b.shape[0] * dtype.itemsize):
            out[:, part] = a @ b[:, part].to(dtype)
        return out
    out.zero_()
    for part in _slices(b.shape[0], b.shape[1] * dtype.itemsize):
        out.addmm_(a[:, part], b[part].to(dtype))
    return out


def accumulate(total: Tensor, a: Tensor, b: Tensor, scale: Tensor | None = None) -> None:
    """total (M, N) += scale * a (M, K) x b (K, N), summed in total's dtype."""
    dtype = total.dtype
    if scale is None and is_mixed(a, b, dtype) and _accumulates_in_place(total.device):
        torch.ops.aten.addmm.dtype_out(total, a, b, dtype, out=total)
    elif scale is None and not is_mixed(a, b, dtype):
        total.addmm_(a.to(dtype), b.to(dtype))
    else:
        for part in _slices(total.shape[0], total.shape[1] * dtype.itemsize):
            partial = product(a[part], b, dtype)
            total[part] += partial if scale is None else partial * scale


@lru_cache
def _accumulates_in_place(device: torch.device) -> bool:
    """Whether this torch adds a product of bfloat16 to a float32 matrix; older ones refuse."""
    total = torch.zeros(16, 16, device=device)
    low = torch.zeros(16, 16, device=device, dtype=torch.bfloat16)
    try:
        torch.ops.aten.addmm.dtype_out(total, low, low, total.dtype, out=total)
    except RuntimeError:
        return False
    return True
