"""Our log-probabilities under verl's fused kernels, in every worker that imports this module.

::

    actor_rollout_ref.model.use_fused_kernels=True
    actor_rollout_ref.model.external_lib=sec_grpo.integrations.verl.fused

verl's loss stays as it is: the two functions that it takes log-probabilities and entropies from,
whatever `fused_kernel_options.impl_backend` says, become ours.

N tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sec_grpo.integrations.methods import other_arguments
from sec_grpo.integrations.verl.installed import misfit
from sec_grpo.ops import linear_logprob

_REDUCTIONS = ("none", "sum", "mean")
# What verl calls both with.
_MODULE = ("hidden_states", "vocab_weights", "input_ids", "temperature")
_FUNCTION = ("hidden", "weight", "labels", "temperature", "reduction", "dist_process_group")


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    temperature: float = 1.0,
    reduction: str = "none",
    dist_process_group: Any = None,
) -> tuple[Tensor, Tensor]:
    """(log-probabilities, entropies) of a linear head, with verl's signature.

    Args:
        hidden: (N, D) or (B, T, D); differentiable.
        weight: (V, D), of hidden's dtype; differentiable.
        labels: (N,) or (B, T) token ids.
        reduction: of the log-probabilities; "none", "sum" or "mean".
        dist_process_group: None, or a group of one process.

    Returns:
        Log-probabilities (N,), or a scalar with a reduction, and entropies (N,), float32.

    Raises:
        NotImplementedError: the vocabulary is split over several processes.
        ValueError: reduction is unknown, or what `sec_grpo.linear_logprob` refuses.
    """
    if dist_process_group is not None and torch.distributed.get_world_size(dist_process_group) > 1:
        raise NotImplementedError(
            "sec_grpo has no vocabulary-parallel head; set tensor_model_parallel_size=1 for the "
            "actor, or leave external_lib out"
        )
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(_REDUCTIONS)}, got {reduction!r}")
    result = linear_logprob(
        hidden.reshape(-1, hidden.shape[-1]),
        weight,
        labels.reshape(-1).long(),
        temperature=temperature,
        return_entropy=True,
    )
    assert not isinstance(result, Tensor)
    if reduction == "none":
        return result.logprobs, result.entropy
    return getattr(result.logprobs, reduction)(), result.entropy


class FusedLinearForPPO(torch.nn.Module):
    """verl's module of this name on `sec_grpo.linear_logprob`.

    Args:
        chunk_size, impl_backend: accepted and of no effect.
    """

    def __init__(self, chunk_size: int = 512, impl_backend: str = "torch") -> None:
        super().__init__()
        self.chunk_size = chunk_size
        self.impl_backend = impl_backend

    def forward(
        self,
        hidden_states: Tensor,
        vocab_weights: Tensor,
        input_ids: Tensor,
        temperature: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """(log-probabilities float32, entropies), both in the shape of input_ids.

        Args:
            hidden_states: (N, D) or (B, T, D).
            vocab_weights: (V, D).
            input_ids: (N,) or (B, T) token ids.
        """
        logprobs, entropy = linear_cross_entropy(
            hidden_states, vocab_weights, input_ids, temperature
        )
        return logprobs.view(input_ids.shape), entropy.view(input_ids.shape)


def install() -> None:
    """Put ours in the place of verl's.

    Raises:
        ImportError: the installed verl has other functions; the message names the version.
    """
    from verl.utils.experimental import torch_functional
    from verl.utils.kernel import linear_cross_entropy as triton_module

    own = torch_functional.FusedLinearForPPO
    if own is not FusedLinearForPPO and (reason := other_arguments(own.forward, _MODULE)):
        raise misfit(f"FusedLinearForPPO.forward {reason}")
    if reason := other_arguments(triton_module.LinearCrossEntropy.forward, _FUNCTION):
        raise misfit(f"linear_cross_entropy {reason}")
    torch_functional.FusedLinearForPPO = FusedLinearForPPO
    triton_module.linear_cross_entropy = linear_cross_entropy


install()
