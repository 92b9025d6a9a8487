"""Policy loss of a linear head whose gradient is made in the forward, while the logits are there.

Axes: N tokens, D hidden, V vocabulary, C rows of a chunk.

Where the loss of a token depends on its own log-probability alone, d loss/d logp is known as soon
as the chunk's logits are: three products with the weight (logits, hidden's gradient, weight's
gradient) instead of the four of `linear_chunked`, which makes the logits again in the backward.
The price is that the gradients, float32 (V, D) among them, wait for the backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sec_grpo.kernels.linear_chunked import Gradients, Head, default_chunk_rows, raw_logits
from sec_grpo.kernels.reference import (
    PolicyInputs,
    PolicyLossSpec,
    accumulation_dtype,
    token_losses,
)


def depends_on_own_token_only(spec: PolicyLossSpec) -> bool:
    """Whether d loss/d logp of a token follows from that token, given its weight."""
    return spec.importance_sampling_level == "token" and spec.loss_type != "vespo"


def _loss_gradient(
    logp: Tensor, inputs: PolicyInputs, spec: PolicyLossSpec, weights: Tensor, rows: slice
) -> Tensor:
    """d loss/d logp (C,) of the rows."""
    with torch.enable_grad():
        leaf = logp.detach().requires_grad_()
        loss = (weights[rows] * token_losses(leaf, inputs.select(rows), spec).loss).sum()
    return torch.autograd.grad(loss, leaf)[0]


def _logits_gradient(
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


class LinearPolicyGradient(torch.autograd.Function):
    """(hidden, weight, bias) -> logp (N,), entropy (N,) and a zero that carries the gradient.

    The zero's gradient is that of sum_t weights_t loss_t + entropy_weights_t entropy_t.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        head: Head,
        inputs: PolicyInputs,
        spec: PolicyLossSpec,
        weights: Tensor,
        entropy_weights: Tensor | None,
        chunk_rows: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = accumulation_dtype(hidden)
        num_tokens = hidden.shape[0]
        logp, entropy = (hidden.new_empty(num_tokens, dtype=dtype) for _ in range(2))
        # float16 has no room for a gradient before the loss scale of the backward.
        kept_dtype = dtype if hidden.dtype == torch.float16 else hidden.dtype
        gradients = Gradients.zeros(
            hidden, weight, bias, ctx.needs_input_grad[:3], dtype, hidden_dtype=kept_dtype
        )
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, num_tokens, chunk_rows):
                rows: slice | Tensor = slice(start, start + chunk_rows)
                z, slope = head.logits(raw_logits(hidden[rows], weight, dtype), rows, True)
                z -= z.amax(-1, keepdim=True)
                at_target = z.gather(1, targets[rows, None])[:, 0]
                p = z.exp()
                sums = p.sum(-1)
                # The maximum is 0, so the sum is at least 1 and logp never above 0.
                logp[rows] = at_target - sums.log()
                if bias is not None:
                    z.masked_fill_(p == 0, 0.0)  # -inf times 0
                entropy[rows] = sums.log() - torch.linalg.vecdot(p, z) / sums
                grad_logp = _loss_gradient(logp[rows], inputs, spec, weights, rows)
                with_entropy = None
                if entropy_weights is not None:
                    with_entropy = (entropy_weights[rows], entropy[rows])
                elif not hidden.is_cuda:  # there, finding out would synchronise
                    alive = grad_logp.nonzero()[:, 0]
                    if alive.numel() < grad_logp.numel():
                        rows = alive + start
                        p, sums, grad_logp = p[alive], sums[alive], grad_logp[alive]
                        slope = None if slope is None else slope[alive]
                grad_z = _logits_gradient(p, z, targets[rows], sums, grad_logp, with_entropy)
                gradients.add(head.raw_gradient(grad_z, slope, rows), hidden[rows], weight, rows)
        ctx.gradients = gradients
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        ctx.mark_non_differentiable(logp, entropy)
        return logp, entropy, hidden.new_zeros((), dtype=dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _logp: Tensor, _entropy: Tensor, grad_loss: Tensor) -> Any:
        return (*ctx.gradients.scaled(grad_loss, ctx.dtypes), *(None,) * 7)


def linear_policy_gradient(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None,
    temperature: float | Tensor,
    logit_scale: float,
    softcap: float | None,
    inputs: PolicyInputs,
    spec: PolicyLossSpec,
    weights: Tensor,
    entropy_weights: Tensor | None,
    chunk_rows: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """logp (N,) and entropy (N,), detached, and a zero with the gradient of the weighted sum.

    The sum is sum_t weights_t loss_t + entropy_weights_t entropy_t, with (N,) weights.
    """
    if chunk_rows is None:
        itemsize = accumulation_dtype(hidden).itemsize
        chunk_rows = default_chunk_rows(hidden.device, weight.shape[0], itemsize)
    head = Head(bias, temperature, logit_scale, softcap)
    logp, entropy, carrier = LinearPolicyGradient.apply(
        hidden,
        weight,
        bias,
        targets,
        head,
        inputs,
        spec,
        weights,
        entropy_weights,
        chunk_rows,
    )
    return logp, entropy, carrier
