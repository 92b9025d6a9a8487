"""The reference model of the KL term."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

if TYPE_CHECKING:
    from sec_grpo.trainer.config import GRPOConfig


def reference_model(model: torch.nn.Module, beta: float) -> torch.nn.Module | None:
    """A frozen copy for the KL term; a PEFT model is its own reference with adapters off."""
    if beta == 0 or hasattr(model, "disable_adapter"):
        return None
    return copy.deepcopy(model).eval().requires_grad_(False)


def reference_sync(
    policy: torch.nn.Module, reference: torch.nn.Module | None, args: GRPOConfig
) -> ReferenceSync:
    """The callback that `sync_ref_model` asks for; ValueError where no model can be moved."""
    if reference is None:
        raise ValueError(
            "sync_ref_model must be False with a PEFT model, whose reference is the model without "
            "its adapter"
        )
    return ReferenceSync(
        policy, reference, alpha=args.ref_model_mixup_alpha, every=args.ref_model_sync_steps
    )


class ReferenceSync(TrainerCallback):
    """Moves the reference towards the policy every few steps (TR-DPO, arXiv 2404.09656).

    ref <- alpha policy + (1 - alpha) ref, parameter by parameter.

    Args:
        policy, reference: models with the same parameters, each whole on this process.
        alpha: in [0, 1]; 1 replaces the reference.
        every: optimizer steps between two moves.
    """

    def __init__(
        self, policy: torch.nn.Module, reference: torch.nn.Module, *, alpha: float, every: int
    ) -> None:
        self._policy = policy
        self._reference = reference
        self._alpha = alpha
        self._every = every

    @torch.no_grad()
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step % self._every:
            return
        policy = dict(self._policy.named_parameters())
        for name, parameter in self._reference.named_parameters():
            parameter.lerp_(policy[name].to(parameter.dtype), self._alpha)
