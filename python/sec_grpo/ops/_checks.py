"""Argument checks and backend choice shared by the public functions.

Axes: N tokens, T padded length, V vocabulary, B rollouts (sequences).

Ranges of device tensors are checked on the CPU only: reading them from a GPU would synchronise.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

INTEGER_DTYPES = (torch.int32, torch.int64)
FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def resolve_backend(backend: str, tensor: Tensor) -> str:
    """`triton` or `torch` for a call whose main argument is `tensor`."""
    if backend == "auto":
        return "triton" if tensor.is_cuda else "torch"
    if backend == "torch":
        return "torch"
    if backend == "triton":
        interpreted = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on")
        if not tensor.is_cuda and not interpreted:
            raise ValueError(
                f"backend='triton' needs CUDA or ROCm tensors, got device {tensor.device}; move "
                "them to a GPU, use backend='torch', or set TRITON_INTERPRET=1 before Python "
                "starts to run the kernels in Triton's interpreter"
            )
        return "triton"
    raise ValueError(f"backend must be 'auto', 'triton' or 'torch', got {backend!r}")


def resolve_head_backend(backend: str, hidden: Tensor) -> str:
    """`triton` or `torch` for the head; float64, which Triton's kernels lack, is torch's."""
    if hidden.dtype != torch.float64:
        return resolve_backend(backend, hidden)
    if backend == "triton":
        raise TypeError(
            "hidden must not be float64 with backend='triton', whose math is float32; cast it, or "
            "use backend='torch'"
        )
    return resolve_backend("torch" if backend == "auto" else backend, hidden)


def check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")


def check_dtype(name: str, tensor: Tensor, allowed: Sequence[torch.dtype]) -> None:
    check_tensor(name, tensor)
    if tensor.dtype not in allowed:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise TypeError(f"{name} must have dtype {names}, got {tensor.dtype}")


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...], meaning: str) -> None:
    check_tensor(name, tensor)
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have shape {shape} ({meaning}), got {tuple(tensor.shape)}")


def check_device(name: str, tensor: Tensor, device: torch.device, reference: str) -> None:
    if tensor.device != device:
        raise ValueError(
            f"{name} must be on {device} like {reference}, got {tensor.device}; move it there"
        )


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_number(
    name: str, value: float, low: float, *, strict: bool = False, high: float = float("inf")
) -> None:
    """low <= value <= high, or low < value with `strict`; NaN is refused."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not (low < value if strict else low <= value) or not value <= high or value == float("inf"):
        sign = "greater than" if strict else "at least"
        bound = "" if high == float("inf") else f" and at most {high:g}"
        raise ValueError(f"{name} must be finite, {sign} {low:g}{bound}, got {value}")


def check_count(name: str, value: float | Tensor | None, device: torch.device) -> None:
    """A positive number, or a tensor of one element on `device`; None passes."""
    if value is None:
        return
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name} must hold one number, got shape {tuple(value.shape)}")
        if value.device.type != "cpu":
            check_device(name, value, device, "logprobs")
    else:
        check_number(name, value, 0)


def on_cpu(tensor: Tensor) -> bool:
    """Whether the tensor's values can be read: without a synchronisation, nor under torch.compile,
    whose graph would break there."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def check_targets(targets: Tensor, num_vocab: int) -> None:
    check_dtype("targets", targets, (torch.int64,))
    if on_cpu(targets) and targets.numel() > 0:
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= num_vocab:
            raise ValueError(
                f"targets must be in [0, {num_vocab}) (the rows of weight), got values in "
                f"[{low}, {high}]"
            )


def check_cu_seqlens(cu_seqlens: Tensor, num_tokens: int, device: torch.device) -> None:
    check_dtype("cu_seqlens", cu_seqlens, INTEGER_DTYPES)
    if cu_seqlens.dim() != 1 or cu_seqlens.numel() < 1:
        raise ValueError(
            f"cu_seqlens must have shape (B + 1,) with B sequences, got {tuple(cu_seqlens.shape)}"
        )
    check_device("cu_seqlens", cu_seqlens, device, "logprobs")
    if not on_cpu(cu_seqlens):
        return
    first, last = int(cu_seqlens[0]), int(cu_seqlens[-1])
    if first != 0 or last != num_tokens or bool((cu_seqlens.diff() < 0).any()):
        raise ValueError(
            f"cu_seqlens must rise from 0 to the {num_tokens} packed tokens without falling, got "
            f"{cu_seqlens.tolist() if cu_seqlens.numel() <= 9 else f'{first} ... {last}'}"
        )


@dataclass(frozen=True)
class Layout:
    """Where the tokens of each sequence lie in a tensor flattened to (N,).

    Packed: sequence i is cu_seqlens[i]:cu_seqlens[i + 1]. Padded: row i of (B, T), and N = B T.
    """

    shape: tuple[int, ...]
    num_sequences: int
    cu_seqlens: Tensor | None
    mask: Tensor | None

    @property
    def num_tokens(self) -> int:
        return int(torch.Size(self.shape).numel())

    def flat(self, tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.reshape(-1)

    def flat_mask(self, device: torch.device) -> Tensor:
        """(N,) bool, all true without a mask."""
        if self.mask is None:
            return torch.ones(self.num_tokens, dtype=torch.bool, device=device)
        flat = self.mask.reshape(-1)
        return flat if flat.dtype == torch.bool else flat != 0

    def offsets(self, device: torch.device) -> Tensor:
        """(B + 1,) int64 offsets of the sequences in the flat tensor."""
        if self.cu_seqlens is not None:
            return self.cu_seqlens.long()
        length = self.shape[1]
        return torch.arange(self.num_sequences + 1, device=device) * length

    def spread_rows(self, values: Tensor) -> Tensor:
        """(N,) of padded tokens, from one value per sequence (B,)."""
        return values[:, None].expand(self.shape).reshape(-1)

    def seq_index(self, device: torch.device) -> Tensor:
        """(N,) int64 sequence of each token; no synchronisation."""
        if self.cu_seqlens is None:
            return self.spread_rows(torch.arange(self.num_sequences, device=device))
        positions = torch.arange(self.num_tokens, device=device)
        return torch.searchsorted(self.offsets(device)[1:].contiguous(), positions, right=True)


def check_layout(
    name: str,
    shape: tuple[int, ...],
    device: torch.device,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
) -> Layout:
    """The layout of a (B, T) or (N,) argument called `name`."""
    if len(shape) not in (1, 2):
        raise ValueError(f"{name} must have shape (B, T) or (N,), got {shape}")
    if mask is not None:
        check_dtype("mask", mask, (torch.bool, torch.uint8, *INTEGER_DTYPES))
        check_shape("mask", mask, shape, f"like {name}")
        check_device("mask", mask, device, name)
    if len(shape) == 2:
        if cu_seqlens is not None:
            raise ValueError(
                f"cu_seqlens goes with packed {name} (N,), got {name} of shape {shape}; leave it "
                "out, or pack the tokens"
            )
        return Layout(shape, shape[0], None, mask)
    if cu_seqlens is None:
        raise ValueError(
            f"cu_seqlens (B + 1,) must come with packed {name} of shape {shape}; for padded "
            "tensors pass shape (B, T)"
        )
    check_cu_seqlens(cu_seqlens, shape[0], device)
    return Layout(shape, cu_seqlens.numel() - 1, cu_seqlens, mask)
