"""The reference model of the KL term."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

if TYPE_CHECKING:
    from sec_grpo.trainer.config import GRPOConfig


def reference_model(
    model: torch.nn.Module, beta: float, *, new_adapter: bool, sharded: bool
) -> torch.nn.Module | None:
    """A frozen copy for the KL term, or None: without one, or where the model is its own reference.

    It is with a new adapter, which is turned off for it. An adapter that was trained before is part
    of the policy that training starts from; the weights below it are then shared with the copy.

    Args:
        new_adapter: whether the model's adapter was made for this run.
        sharded: whether each model's weights will be spread over the processes.
    """
    if beta == 0 or new_adapter:
        return None
    shared = {}
    if hasattr(model, "disable_adapter") and not sharded:
        shared = {id(p): p for p in model.parameters() if not p.requires_grad}
    return copy.deepcopy(model, shared).eval().requires_grad_(False)


def reference_sync(
    policy: torch.nn.Module, reference: torch.nn.Module | None, args: GRPOConfig
) -> ReferenceSync:
    """The callback that `sync_ref_model` asks for; ValueError where no model can be moved."""
    if reference is None:
        raise ValueError(
            "sync_ref_model must be False with peft_config, where the reference is the model "
            "without its adapter"
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
