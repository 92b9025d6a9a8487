"""The linear head in plain torch, in chunks of rows whose logits fit in a buffer.

Axes: N tokens, D hidden, V vocabulary, C rows of a chunk.

At most a few (C, V) buffers in float32 exist at once, never (N, V). The logits of low-precision
inputs are accumulated and kept in float32. `linear_operator` makes autograd of this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sec_grpo.kernels.head import Gradients, Head, RowStatistics
from sec_grpo.kernels.matmul import product
from sec_grpo.kernels.reference import PolicyInputs, PolicyLossSpec, accumulation_dtype
from sec_grpo.kernels.rows import SKIP, Chunk, even_rows, row_chunks
from sec_grpo.kernels.slopes import token_loss_slopes

# Default size of one (C, V) float32 buffer. CUDA gets more rows because each chunk reads the whole
# weight: at V = 151936 and D = 2048, 441 rows keep the product compute-bound in bf16.
CHUNK_BYTES = {"cpu": 128 << 20, "cuda": 256 << 20}
MIN_CHUNK_ROWS = 16


def default_chunk_rows(device: torch.device, num_vocab: int, itemsize: int) -> int:
    """Rows whose logits fill the default buffer of `device`."""
    chunk_bytes = CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"])
    return max(MIN_CHUNK_ROWS, chunk_bytes // max(1, num_vocab * itemsize))


def _chunks(
    hidden: Tensor, weight: Tensor, row_class: Tensor | None, chunk_rows: int | None
) -> Iterator[Chunk]:
    if chunk_rows is None:
        itemsize = accumulation_dtype(hidden).itemsize
        most = default_chunk_rows(hidden.device, weight.shape[0], itemsize)
        chunk_rows = even_rows(hidden.shape[0], most)
    return row_chunks(row_class, hidden.shape[0], chunk_rows)


def _logits(
    states: Tensor, weight: Tensor, head: Head, need_slope: bool
) -> tuple[Tensor, Tensor | None]:
    """z (C, V) of states (C, D), and d(capped)/d(uncapped) (C, V) where there is a cap."""
    z = product(states, weight.T, accumulation_dtype(states))
    if head.bias is not None:
        z += head.bias.to(z.dtype)
    if head.logit_scale != 1:
        z *= head.logit_scale
    slope = None
    if head.softcap is not None:
        # A banned token (bias -inf) stays banned: the cap alone would lift it to -softcap.
        banned = z == -torch.inf
        z.div_(head.softcap).tanh_()
        slope = 1 - z * z if need_slope else None
        z.mul_(head.softcap).masked_fill_(banned, -torch.inf)
    z /= _divisor(head, z.dtype)
    return z, slope


def _divisor(head: Head, dtype: torch.dtype) -> float | Tensor:
    if isinstance(head.temperature, Tensor):
        return head.temperature.to(dtype)[:, None]
    return head.temperature


def _raw_gradient(grad_z: Tensor, slope: Tensor | None, head: Head) -> Tensor:
    """d loss/d raw from d loss/d z, in place."""
    grad_z /= _divisor(head, grad_z.dtype)
    if slope is not None:
        grad_z *= slope
    if head.logit_scale != 1:
        grad_z *= head.logit_scale
    return grad_z


def _add(
    gradients: Gradients, grad_raw: Tensor, states: Tensor, weight: Tensor, rows: slice | Tensor
) -> None:
    """Take in d loss/d raw logits (C, V), in low precision where the library multiplies that."""
    if not grad_raw.is_cuda or states.dtype == grad_raw.dtype:
        gradients.add(grad_raw, states, weight, rows)
    elif states.dtype == torch.float16:
        # 1 / num_tokens may be below float16's range: the largest gradient becomes 1.
        scale = grad_raw.abs().amax()
        scale = scale.where(scale > 0, 1.0)
        gradients.add((grad_raw / scale).half(), states, weight, rows, scale=scale)
    else:
        gradients.add(grad_raw.to(states.dtype), states, weight, rows)


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
    """Statistics of all rows (N,): the anchor is the maximum, entropy 0 without need_entropy.

    Rows of the class SKIP get 0.
    """
    dtype = accumulation_dtype(hidden)
    logp, entropy, row_max, log_sum = (
        hidden.new_zeros(hidden.shape[0], dtype=dtype) for _ in range(4)
    )
    with torch.autocast(hidden.device.type, enabled=False):
        for chunk in _chunks(hidden, weight, row_class, chunk_rows):
            rows, chosen = chunk.rows, chunk.take(targets)
            z, _ = _logits(chunk.take(hidden), weight, head.select(chunk), False)
            row_max[rows], log_sum[rows], logp[rows] = _log_softmax(z, chosen)
            if need_entropy:
                z -= log_sum[rows][:, None]
                entropy[rows] = _entropy(z)
    if row_class is not None:
        for values in (logp, entropy):
            values.masked_fill_(row_class == SKIP, 0.0)
    return RowStatistics(logp, entropy, row_max, log_sum)


def _logprob_gradient(
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

    Both memory modes are the same here: off the GPU the weight's dtype is mostly float32 anyway.
    """
    del memory_mode
    gradients = Gradients.allocate(hidden, weight, head.bias, needed, statistics.logp.dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        for chunk in _chunks(hidden, weight, row_class, chunk_rows):
            if not chunk.has_gradient:
                break
            states, own_head = chunk.take(hidden), head.select(chunk)
            logp_all, slope = _logits(states, weight, own_head, True)
            logp_all -= chunk.take(statistics.anchor)[:, None]
            logp_all -= chunk.take(statistics.log_sum)[:, None]
            grad_z = _logprob_gradient(
                logp_all,
                chunk.take(targets),
                None if grad_logp is None else chunk.take(grad_logp),
                None
                if grad_entropy is None
                else (chunk.take(grad_entropy), chunk.take(statistics.entropy)),
            )
            _add(gradients, _raw_gradient(grad_z, slope, own_head), states, weight, chunk.rows)
    bias_dtype = None if head.bias is None else head.bias.dtype
    return gradients.cast((hidden.dtype, weight.dtype, bias_dtype))


def _policy_gradient(
    p: Tensor,
    z: Tensor,
    targets: Tensor,
    sums: Tensor,
    grad_logp: Tensor,
    entropy: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """d loss/d logits (C, V), in place of p = exp(z) whose row sums are `sums`.

    `entropy` is (d loss/d entropy, entropy), each (C,); z is overwritten with it.
    """
    if entropy is None:
        p *= (-grad_logp / sums)[:, None]
    else:
        grad_entropy, value = entropy
        # d entropy/d z_j = -p_j (log p_j + entropy), whose limit at p_j = 0 is 0.
        z.masked_fill_(p == 0, 0.0).add_((value - sums.log())[:, None])
        z *= grad_entropy[:, None]
        z += grad_logp[:, None]
        z /= -sums[:, None]
        p *= z
    return p.scatter_add_(1, targets[:, None], grad_logp[:, None])


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

    Three products with the weight instead of four, because the gradient in logp of a token-level
    loss is known as soon as the logits are. Rows of the class SKIP get 0.
    """
    dtype = accumulation_dtype(hidden)
    logp, entropy = (hidden.new_zeros(hidden.shape[0], dtype=dtype) for _ in range(2))
    # float16 has no room for a gradient before the loss scale of the backward.
    kept_dtype = dtype if hidden.dtype == torch.float16 else hidden.dtype
    gradients = Gradients.allocate(hidden, weight, head.bias, needed, dtype, kept_dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        for chunk in _chunks(hidden, weight, row_class, chunk_rows):
            rows, states, chosen = chunk.rows, chunk.take(hidden), chunk.take(targets)
            own_head = head.select(chunk)
            z, slope = _logits(states, weight, own_head, chunk.has_gradient)
            z -= z.amax(-1, keepdim=True)
            at_target = z.gather(1, chosen[:, None])[:, 0]
            p = z.exp()
            sums = p.sum(-1)
            # The maximum is 0, so the sum is at least 1 and logp never above 0.
            logp[rows] = at_target - sums.log()
            if head.bias is not None:
                z.masked_fill_(p == 0, 0.0)  # -inf times 0
            entropy[rows] = sums.log() - torch.linalg.vecdot(p, z) / sums
            if not chunk.has_gradient:
                continue
            grad_logp = weights[rows] * token_loss_slopes(logp[rows], inputs.select(rows), spec)
            with_entropy = None
            if entropy_weights is not None:
                with_entropy = (entropy_weights[rows], entropy[rows])
            elif hidden.device.type == "cpu":  # elsewhere, finding out would synchronise
                alive = grad_logp.nonzero()[:, 0]
                if alive.numel() < grad_logp.numel():
                    positions = torch.arange(hidden.shape[0])[rows]
                    rows, states, chosen = positions[alive], states[alive], chosen[alive]
                    p, sums, grad_logp = p[alive], sums[alive], grad_logp[alive]
                    slope = None if slope is None else slope[alive]
                    own_head = own_head.select(Chunk(alive, True))
            grad_z = _policy_gradient(p, z, chosen, sums, grad_logp, with_entropy)
            _add(gradients, _raw_gradient(grad_z, slope, own_head), states, weight, rows)
    if row_class is not None:
        for values in (logp, entropy):
            values.masked_fill_(row_class == SKIP, 0.0)
    return logp, entropy, gradients.settle()
