"""Log-probabilities straight from hidden states and the head's weight.

Axes: N tokens (packed), T padded length, D hidden, V vocabulary, B rollouts (sequences).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sec_grpo.kernels import linear_operator
from sec_grpo.kernels.head import Head
from sec_grpo.ops import _checks


class LinearLogprob(NamedTuple):
    """What `linear_logprob` returns with `return_entropy=True`."""

    logprobs: Tensor
    """In the shape of targets; float32 (float64 for float64 hidden)."""
    entropy: Tensor
    """In the shape of targets, in nats; same dtype."""


def autocast(
    hidden: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The tensors as F.linear would take them under torch.autocast: float64 stays."""
    device_type = hidden.device.type
    if not torch.is_autocast_enabled(device_type):
        return hidden, weight, bias
    dtype = torch.get_autocast_dtype(device_type)

    def cast(tensor: Tensor) -> Tensor:
        return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)

    return cast(hidden), cast(weight), None if bias is None else cast(bias)


def check_head(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    temperature: float | Tensor,
    logit_scale: float,
    softcap: float | None,
    chunk_size: int | None,
) -> None:
    _checks.check_dtype("hidden", hidden, _checks.FLOAT_DTYPES)
    _checks.check_dtype("weight", weight, _checks.FLOAT_DTYPES)
    if hidden.dim() not in (2, 3):
        raise ValueError(f"hidden must have shape (N, D) or (B, T, D), got {tuple(hidden.shape)}")
    if weight.dim() != 2 or weight.shape[0] == 0 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"weight must have shape (V, D) with D = {hidden.shape[-1]} of hidden, got "
            f"{tuple(weight.shape)}"
        )
    if weight.dtype != hidden.dtype:
        raise TypeError(
            f"weight must have the dtype of hidden, {hidden.dtype}, got {weight.dtype}; cast one, "
            "or use torch.autocast"
        )
    _checks.check_device("weight", weight, hidden.device, "hidden")
    _checks.check_targets(targets, weight.shape[0])
    _checks.check_shape("targets", targets, tuple(hidden.shape[:-1]), "hidden without D")
    _checks.check_device("targets", targets, hidden.device, "hidden")
    if bias is not None:
        _checks.check_dtype("bias", bias, _checks.FLOAT_DTYPES)
        _checks.check_shape("bias", bias, (weight.shape[0],), "V of weight")
        _checks.check_device("bias", bias, hidden.device, "hidden")
    check_temperature(temperature, targets)
    _checks.check_number("logit_scale", logit_scale, 0, strict=True)
    if softcap is not None:
        _checks.check_number("softcap", softcap, 0, strict=True)
    if chunk_size is not None and (not isinstance(chunk_size, int) or chunk_size < 1):
        raise ValueError(f"chunk_size must be an integer above 0 (rows), got {chunk_size!r}")


def check_temperature(temperature: float | Tensor, targets: Tensor) -> None:
    if not isinstance(temperature, Tensor):
        _checks.check_number("temperature", temperature, 0, strict=True)
        return
    _checks.check_dtype("temperature", temperature, _checks.FLOAT_DTYPES)
    _checks.check_shape("temperature", temperature, tuple(targets.shape), "like targets")
    _checks.check_device("temperature", temperature, targets.device, "hidden")
    if temperature.requires_grad:
        raise ValueError("temperature must not require grad; pass temperature.detach()")
    if _checks.on_cpu(temperature) and not bool((temperature > 0).all()):
        raise ValueError(f"temperature must be above 0, got a minimum of {temperature.min()}")


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    return_entropy: bool = False,
    chunk_size: int | None = None,
    memory_mode: Literal["auto", "low"] = "auto",
    backend: Literal["auto", "triton", "torch"] = "auto",
) -> Tensor | LinearLogprob:
    """Log-probability of each target under a linear head, without the (N, V) logits in memory.

    ``z = (hidden weight^T + bias) logit_scale``; with a soft cap, ``z = softcap tanh(z / softcap)``
    (Gemma 2, arXiv 2408.00118); ``z = z / temperature``; then ``logp = z[target] - logsumexp(z)``
    and ``entropy = -sum_v p_v log p_v``, both in nats.

    Rows go through in chunks, and the backward recomputes their logits. The logits of bfloat16 and
    float16 inputs are accumulated and kept in float32, as is the weight's gradient over all chunks,
    rounded to the weight's dtype once. The operation is opaque to torch.compile, without a break
    in its graph.

    Args:
        hidden: (N, D) or (B, T, D), float; differentiable.
        weight: (V, D), hidden's dtype; differentiable. Under torch.autocast hidden, weight and bias
            are cast to its dtype first, as in F.linear.
        targets: (N,) or (B, T) int64 token ids in [0, V).
        bias: (V,); differentiable. -inf bans a token: probability 0, under a soft cap too.
        temperature: above 0; a number, or one for each token in the shape of targets (a constant:
            it gets no gradient).
        logit_scale, softcap: above 0.
        return_entropy: also return the entropy, differentiable.
        chunk_size: rows in a chunk; the result depends on it only by rounding. None takes what fits
            the default buffers: with torch 128 MiB (CPU) or 256 MiB (GPU) of float32 logits, of
            which about three are alive at once; with triton 832 MiB of exponentials or gradients in
            the inputs' dtype.
        memory_mode: "low" makes the backward on a GPU go through slices of the vocabulary: at most
            0.3 GiB of buffers and no float32 (V, D) gradient.
        backend: "triton" (GPU; no float64), "torch", or "auto": triton on a GPU, but torch for
            float64. The same call twice gives the same bits.

    Returns:
        logprobs in the shape of targets (float32, or float64 for float64 hidden); with
        ``return_entropy`` LinearLogprob(logprobs, entropy). Never above 0.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or range, naming the argument. Values of
            targets and temperature are looked at on the CPU only.
    """
    _checks.check_dtype("hidden", hidden, _checks.FLOAT_DTYPES)
    chosen = _checks.resolve_head_backend(backend, hidden)
    _checks.check_choice("memory_mode", memory_mode, ("auto", "low"))
    _checks.check_tensor("weight", weight)
    hidden, weight, bias = autocast(hidden, weight, bias)
    check_head(hidden, weight, targets, bias, temperature, logit_scale, softcap, chunk_size)
    if isinstance(temperature, Tensor):
        temperature = temperature.reshape(-1)
    logp, entropy = linear_operator.linear_logprob(
        hidden.reshape(-1, hidden.shape[-1]),
        weight,
        targets.reshape(-1),
        Head(bias, temperature, logit_scale, softcap),
        need_entropy=return_entropy,
        chunk_rows=chunk_size,
        backend=chosen,
        memory_mode=memory_mode,
    )
    logp = logp.reshape(targets.shape)
    return LinearLogprob(logp, entropy.reshape(targets.shape)) if return_entropy else logp
