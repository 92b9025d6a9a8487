"""Our log-probabilities under TRL's losses.

TRL 1.15 and newer stream log-probabilities through one function, which is replaced. Older ones
make the whole logits in `GRPOTrainer._get_per_token_logps_and_entropies`, which is replaced for
text models.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer
from trl.trainer import utils

from sec_grpo.integrations.methods import other_arguments
from sec_grpo.integrations.trl.installed import TESTED, installed_version
from sec_grpo.ops import linear_logprob
from sec_grpo.trainer.policy import call_through, check_lm_head, decoder, lm_head

_NOT_COMPUTED = frozenset({"log_sum_sq_probs", "mean_logits", "is_top1"})
_STREAMED = (
    "hidden",
    "weight",
    "bias",
    "targets",
    "temperature",
    "chunk_size",
    "final_logit_softcapping",
    "logit_scale",
    "outputs",
    "*",
)
_SCORED = ("model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "*")


class use_fused_loss(contextlib.AbstractContextManager):
    """From here on TRL takes log-probabilities and entropies from `sec_grpo.linear_logprob`.

    ``use_fused_loss()`` holds for the rest of the program, or until ``use_fused_loss(False)``; as
    a context manager, ``with use_fused_loss(): trainer.train()``, until the end of the block. TRL's
    losses and metrics stay as they are: only the function under them is another, with the
    temperature, soft cap, logit scale and bias that TRL passes to it. It is the same for all
    trainers of the program.

    From TRL 1.15 on this replaces the function that streams log-probabilities; what a trainer asks
    of it beyond log-probabilities and entropy (SFT's and DPO's metrics do) raises
    NotImplementedError in the step. Before 1.15 it replaces the log-probabilities from whole logits
    in GRPOTrainer, for text models without the MoE auxiliary loss; their dtype is then float32
    also for bfloat16 models, and padding gets 0.

    Args:
        enabled: False puts TRL's own function back.

    Raises:
        ImportError: the installed TRL has neither; the message names the version.
    """

    def __init__(self, enabled: bool = True) -> None:
        self._before = bool(_OWN)
        _switch(enabled)

    def __exit__(self, *exception: object) -> None:
        _switch(self._before)


_OWN: dict[tuple[Any, str], Any] = {}


def _switch(enabled: bool) -> None:
    if enabled and not _OWN:
        for owner, name, ours in _replacements():
            _OWN[owner, name] = getattr(owner, name)
            setattr(owner, name, ours)
    elif not enabled:
        while _OWN:
            (owner, name), own = _OWN.popitem()
            setattr(owner, name, own)


def _replacements() -> list[tuple[Any, str, Any]]:
    """(owner, name, ours) of what the installed TRL has to replace."""
    if hasattr(utils, "add_fused_lm_head"):
        own = getattr(utils, "_ChunkedLogProbFunction", None)
        # None: TRL 1.15.0 without Triton.
        reason = None if own is None else other_arguments(own.forward, _STREAMED)
        found: list[tuple[Any, str, Any]] = [(utils, "_ChunkedLogProbFunction", FusedLogProb)]
    else:
        name = "_get_per_token_logps_and_entropies"
        own = getattr(GRPOTrainer, name, None)
        reason = f"GRPOTrainer has no {name}"
        if own is not None:
            # 1.14 passes its arguments on.
            scored = getattr(GRPOTrainer, "_full_logits_logps", own)
            reason = other_arguments(scored, _SCORED)
        found = [] if reason else [(GRPOTrainer, name, _scorer(own))]
        if hasattr(GRPOTrainer, "compute_liger_loss"):
            found.append((GRPOTrainer, "compute_liger_loss", _refuse_liger))
    if reason is not None:
        raise ImportError(
            f"use_fused_loss() does not fit trl {installed_version()}: {reason}. It is tested with "
            f"trl {TESTED}"
        )
    return found


class FusedLogProb:
    """Stands where TRL (1.15 and newer) has its streamed log-probability."""

    @staticmethod
    def apply(
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_size: int,
        final_logit_softcapping: float | None = None,
        logit_scale: float = 1.0,
        outputs: Sequence[str] = (*sorted(_NOT_COMPUTED), "entropy"),
    ) -> tuple[Tensor | None, ...]:
        """(log-probabilities (N,), entropy (N,) or None, None, None, None), in TRL's order.

        `chunk_size`, TRL's slice of the vocabulary, is not used: chunks are of rows here.
        """
        if unknown := sorted(set(outputs) & _NOT_COMPUTED):
            raise NotImplementedError(
                f"use_fused_loss() does not compute {', '.join(unknown)}, which this trainer asks "
                "for; call use_fused_loss(False) before it trains"
            )
        if hasattr(weight, "ds_id"):
            raise NotImplementedError(
                "use_fused_loss() does not support DeepSpeed ZeRO-3, whose weights are gone by the "
                "backward; use ZeRO-2, or TRL's own function"
            )
        logprobs, entropy = _logprobs(
            hidden,
            weight,
            bias,
            targets,
            temperature=temperature,
            softcap=final_logit_softcapping,
            logit_scale=logit_scale,
            need_entropy="entropy" in outputs,
        )
        return logprobs, entropy, None, None, None


def _logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    temperature: float,
    softcap: float | None,
    logit_scale: float,
    need_entropy: bool,
) -> tuple[Tensor, Tensor | None]:
    """`linear_logprob` in the dtype of `hidden`, as TRL computes."""
    result = linear_logprob(
        hidden,
        weight.to(hidden.dtype),
        targets,
        bias=None if bias is None else bias.to(hidden.dtype),
        temperature=temperature,
        logit_scale=logit_scale,
        softcap=softcap,
        return_entropy=need_entropy,
    )
    return result if isinstance(result, tuple) else (result, None)


def _scorer(own: Any) -> Any:
    """What replaces the log-probabilities from whole logits of TRL before 1.15."""
    # Versions that know the auxiliary loss of mixture models return it as a third output.
    with_aux_loss = "compute_aux_loss" in inspect.signature(own).parameters

    def _get_per_token_logps_and_entropies(
        self: Any,
        model: torch.nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **others: Any,
    ) -> tuple[Tensor | None, ...]:
        inner = self.accelerator.unwrap_model(model)
        _refuse_unsupported(self, inner, input_ids, compute_aux_loss, others)
        parts = [
            call_through(model, inner, _score, self, inner, ids, mask, logits_to_keep)
            for ids, mask in zip(
                input_ids.split(batch_size or len(input_ids)),
                attention_mask.split(batch_size or len(input_ids)),
                strict=True,
            )
        ]
        logprobs = torch.cat([part[0] for part in parts])
        entropy = torch.cat([part[1] for part in parts]) if compute_entropy else None
        if entropy is not None and not getattr(self, "_entropy_bonus_enabled", False):
            entropy = entropy.detach()
        return (logprobs, entropy, None) if with_aux_loss else (logprobs, entropy)

    return _get_per_token_logps_and_entropies


def _score(
    trainer: Any, model: torch.nn.Module, input_ids: Tensor, attention_mask: Tensor, keep: int
) -> tuple[Tensor, Tensor]:
    """(b, keep) float32 log-probabilities and entropies of the last tokens, 0 where padded."""
    head = lm_head(model)
    with trainer.accelerator.autocast():
        hidden = decoder(model)(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state
    targets, mask = input_ids[:, -keep:], attention_mask[:, -keep:].bool()
    hidden = hidden[:, -keep - 1 : -1][mask]
    wide = trainer.args.cast_lm_head_to_fp32
    kept = trainer.accelerator.autocast()
    if wide:
        hidden, kept = hidden.float(), torch.autocast(hidden.device.type, enabled=False)
    with kept:
        logprobs, entropy = _logprobs(
            hidden,
            head.weight,
            head.bias,
            targets[mask],
            temperature=trainer.temperature,
            softcap=head.softcap,
            logit_scale=head.logit_scale,
            need_entropy=True,
        )
    assert entropy is not None
    # masked_scatter keeps the graph where no token is left, so that every process has a backward.
    empty = logprobs.new_zeros(mask.shape)
    return empty.masked_scatter(mask, logprobs), empty.masked_scatter(mask, entropy)


def _refuse_unsupported(
    trainer: Any,
    model: torch.nn.Module,
    input_ids: Tensor,
    compute_aux_loss: bool,
    others: dict[str, Any],
) -> None:
    """NotImplementedError for what TRL before 1.15 can do with whole logits only."""
    needs = sorted(name for name, value in others.items() if value is not None)
    if compute_aux_loss:
        needs.append("the auxiliary loss of a mixture of experts")
    sharded = trainer.is_fsdp_enabled or any(hasattr(p, "ds_id") for p in model.parameters())
    if sharded:
        needs.append("FSDP or ZeRO-3")
    if needs:
        raise NotImplementedError(
            f"use_fused_loss() with trl {installed_version()} does not support "
            f"{', '.join(needs)}; trl 1.15 and newer do, or call use_fused_loss(False)"
        )
    if getattr(trainer, "_sec_grpo_checked", None) is not model:
        try:
            check_lm_head(model, input_ids[:1, :2])
        except ValueError as error:
            raise NotImplementedError(
                f"use_fused_loss() does not know the lm_head of this {type(model).__name__}: "
                "call use_fused_loss(False), or leave the lm_head out of the adapters"
            ) from error
        trainer._sec_grpo_checked = model


def _refuse_liger(trainer: Any, *args: Any, **kwargs: Any) -> Any:
    raise NotImplementedError(
        f"use_fused_loss() has no part in the Liger loss of trl {installed_version()}; set "
        "use_liger_kernel=False, or call use_fused_loss(False)"
    )
