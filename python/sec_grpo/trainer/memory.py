"""What to lower when a device runs out of memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from sec_grpo.trainer.grpo_trainer import GRPOTrainer

PARTS = ("sampling", "the update", "evaluation", "the optimizer")


@contextmanager
def advice_on_memory(trainer: GRPOTrainer, part: str) -> Iterator[None]:
    """Say which settings take less memory if the device runs out of it in one of PARTS.

    Raises:
        torch.OutOfMemoryError: with the device's own message before the advice. One that has been
            through here already is left as it is.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        if getattr(error, "part", None) is not None:
            raise
        advice = "\n".join(f"- {line}" for line in _advice(trainer, part))
        explained = torch.OutOfMemoryError(
            f"{error}\nout of memory in {part} at step {trainer.state.global_step + 1}. What "
            f"takes less, the cheapest first:\n{advice}"
        )
        explained.part = part  # type: ignore[attr-defined]
        raise explained from error


def _advice(trainer: GRPOTrainer, part: str) -> list[str]:
    """Settings of the run that are not yet at their least, with what they are now."""
    args = trainer.args
    lines = {
        "sampling": _less_to_sample,
        "the update": _less_to_update,
        "evaluation": _less_to_evaluate,
        "the optimizer": lambda trainer: [
            "optim='adafactor' or an 8-bit optimizer (optim='adamw_bnb_8bit'), now "
            f"{getattr(args.optim, 'value', args.optim)!r}"
        ],
    }[part](trainer)
    if args.beta > 0 and getattr(trainer, "_reference", None) is not None:
        lines.append(f"beta=0, now {args.beta}: no reference model is held")
    if not hasattr(trainer.model, "peft_config"):
        lines.append("peft_config=LoraConfig(...): gradients and optimizer of the adapter alone")
    if args.world_size > 1 and not trainer.sharded:
        lines.append("FSDP2 (fsdp=True, fsdp_config={'version': 2}): shards instead of copies")
    lines.append("a smaller model")
    return lines


def _less_to_sample(trainer: GRPOTrainer) -> list[str]:
    args = trainer.args
    assert args.generation_batch_size is not None
    together = args.generation_batch_size // args.world_size
    together = min(together, args.rollout_batch_size or together)
    lines = []
    if together > 1:
        lines.append(f"rollout_batch_size={together // 2}: {together} are sampled together now")
    return [*lines, *_shorter(trainer)]


def _less_to_evaluate(trainer: GRPOTrainer) -> list[str]:
    size = trainer.args.per_device_eval_batch_size
    lines = [f"per_device_eval_batch_size={size // 2}, now {size}"] if size > 1 else []
    return [*lines, *_shorter(trainer)]


def _less_to_update(trainer: GRPOTrainer) -> list[str]:
    args = trainer.args
    size, count = args.per_device_train_batch_size, args.gradient_accumulation_steps
    lines = []
    if size > 1:
        now = args.max_tokens_per_micro_batch or "what a micro-batch holds on average"
        lines += [
            f"max_tokens_per_micro_batch, now {now}: the loss stays the same",
            f"per_device_train_batch_size={size // 2} with gradient_accumulation_steps={2 * count},"
            f" now {size} and {count}: the loss stays the same",
        ]
    if not args.gradient_checkpointing:
        lines.append("gradient_checkpointing=True: a third more time")
    if not args.fused_lm_head:
        lines.append("fused_lm_head=True: no (tokens, vocabulary) logits")
    return [*lines, *_shorter(trainer)]


def _shorter(trainer: GRPOTrainer) -> list[str]:
    args = trainer.args
    lines = [f"max_completion_length, now {args.max_completion_length}"]
    if not args.bf16 and not args.fp16:
        lines.insert(0, "bf16=True, and the model loaded in it (model_init_kwargs={'dtype': ...})")
    return lines
