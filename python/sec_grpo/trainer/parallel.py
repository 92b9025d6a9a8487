"""Models whose parameters are spread over the processes: FSDP2 and DeepSpeed ZeRO-3."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.distributed.fsdp import FSDPModule

if TYPE_CHECKING:
    from transformers import Trainer


def is_sharded(trainer: Trainer) -> bool:
    """Whether every forward is a collective of all processes.

    Raises:
        ValueError: the parallelism is one that GRPOTrainer does not support.
    """
    args = trainer.args
    if getattr(args, "fsdp", None) and not trainer.is_fsdp_enabled:
        kind = trainer.accelerator.distributed_type.value
        raise ValueError(
            f"fsdp was asked for, but accelerate runs {kind}: FSDP needs several processes, each "
            "with a GPU; start them with torchrun, or leave fsdp out"
        )
    if trainer.is_fsdp_enabled:
        version = getattr(trainer.accelerator.state.fsdp_plugin, "fsdp_version", 1)
        if version != 2:
            raise ValueError(
                f"GRPOTrainer supports FSDP2 only, got version {version}: set "
                "fsdp_config={'version': 2}"
            )
    zero3 = is_zero3(trainer)
    if not trainer.is_fsdp_enabled and not zero3:
        return False
    kind = "DeepSpeed ZeRO-3" if zero3 else "FSDP"
    if args.advantage_estimator == "ppo":
        raise ValueError(f"advantage_estimator='ppo' is not supported with {kind}; use DDP")
    if args.torch_compile:
        raise ValueError(f"torch_compile is not supported with {kind}; use DDP")
    if args.sync_ref_model:
        raise ValueError(f"sync_ref_model is not supported with {kind}; use DDP")
    if zero3 and getattr(trainer, "_reference", None) is not None:
        raise ValueError(
            "beta must be 0 with DeepSpeed ZeRO-3, which would have to shard a reference model. "
            "Use FSDP2 (fsdp_config={'version': 2}), or a new adapter (peft_config), whose model "
            "is its own reference"
        )
    return True


def is_zero3(trainer: Trainer) -> bool:
    """Whether DeepSpeed spreads the parameters."""
    if not trainer.is_deepspeed_enabled:
        return False
    return bool(trainer.accelerator.state.deepspeed_plugin.zero_stage == 3)


def whole_parameters(trainer: Trainer) -> contextlib.AbstractContextManager[Any]:
    """Inside, every process holds all parameters, so that sampling gathers them once.

    And not once a token. All processes have to enter it together.
    """
    if is_zero3(trainer):
        from deepspeed.runtime.zero import unwrap_model_for_generation

        context: contextlib.AbstractContextManager[Any]
        context = unwrap_model_for_generation(trainer.model_wrapped)
        return context
    return parameters_kept_whole(trainer.model)


def shard_reference(reference: nn.Module, accelerator: Any) -> nn.Module:
    """A reference model sharded as the policy will be."""
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    sharded: nn.Module = fsdp2_prepare_model(accelerator, reference)
    return sharded


def is_fsdp_root(model: Any) -> bool:
    """Whether FSDP2 has been applied to the model itself."""
    return isinstance(model, FSDPModule)


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a module is nn.Linear itself, apart from the class that FSDP puts around it."""
    plain = [
        kind
        for kind in type(module).__mro__
        if kind is not FSDPModule and not issubclass(kind, FSDPModule)
    ]
    return plain[0] is nn.Linear


@contextlib.contextmanager
def parameters_kept_whole(model: nn.Module) -> Iterator[None]:
    """Inside, FSDP2 keeps what the first forward has gathered; nothing for other models."""
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    before = [[group.post_forward_mesh_info for group in _groups(unit)] for unit in units]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for unit, infos in zip(units, before, strict=True):
            for group, info in zip(_groups(unit), infos, strict=True):
                group.post_forward_mesh_info = info
            unit.reshard()


def _groups(unit: Any) -> list[Any]:
    """FSDP2's parameter groups of a unit; torch has no public way to read its resharding."""
    state = unit._get_fsdp_state()
    if hasattr(state, "_fsdp_param_groups"):
        return list(state._fsdp_param_groups)
    group = state._fsdp_param_group  # before torch 2.13
    return [] if group is None else [group]
