"""How a causal language model turns hidden states into log-probabilities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sec_grpo.ops import LinearLogprob, linear_logprob
from sec_grpo.trainer.parallel import is_plain_linear


@dataclass(frozen=True)
class LMHead:
    """The lm_head of a causal language model and what its config does to the logits.

    logits = softcap * tanh(logit_scale * (hidden @ weight.T + bias) / softcap)
    """

    weight: torch.Tensor
    """(V, D)"""
    bias: torch.Tensor | None
    """(V,)"""
    logit_scale: float = 1.0
    softcap: float | None = None


def base_model(model: nn.Module) -> Any:
    """The transformers model inside a PEFT model, or the model itself."""
    get = getattr(model, "get_base_model", None)
    return model if get is None else get()


def decoder(model: nn.Module) -> Any:
    """The part of the model below the lm_head."""
    inner = base_model(model)
    found = inner.get_decoder()
    # transformers 4.56 gives None or the model itself where the base model is no `model` (GPT-2).
    return inner.base_model if found is None or found is inner else found


def output_head(model: nn.Module) -> Any:
    """The module that makes the logits; of an lm_head in PEFT's modules_to_save the copy in use."""
    head: Any = base_model(model).get_output_embeddings()
    if hasattr(head, "modules_to_save") and hasattr(head, "original_module"):
        active = head.active_adapter
        active = [active] if isinstance(active, str) else list(active)
        is_on = active and not head.disable_adapters
        is_on = is_on and all(name in head.modules_to_save for name in active)
        head = head.modules_to_save[active[0]] if is_on else head.original_module
    return head


def lm_head(model: nn.Module) -> LMHead:
    """The model's head.

    Raises:
        ValueError: the output embedding is not a plain linear layer, for example because LoRA was
            put on it, whose update would otherwise be ignored.
    """
    head = output_head(model)
    if not is_plain_linear(head):
        raise ValueError(
            f"fused_lm_head needs a plain linear lm_head, got {type(head).__name__}. Leave the "
            "lm_head out of the LoRA target_modules (modules_to_save trains all of it), or set "
            "fused_lm_head=False"
        )
    config = base_model(model).config.get_text_config()
    logit_scale = getattr(config, "logit_scale", None) or 1.0
    divisor = getattr(config, "logits_scaling", None) or 1.0
    return LMHead(
        weight=head.weight,
        bias=head.bias,
        logit_scale=float(logit_scale) / float(divisor),
        softcap=getattr(config, "final_logit_softcapping", None),
    )


def _model_inputs(inputs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a forward without cache, from those of a pack."""
    names = ("input_ids", "attention_mask", "position_ids")
    given = {name: inputs[name] for name in names if name in inputs}
    return {"use_cache": False, "attention_mask": None, **given, **inputs.get("model_kwargs", {})}


def completion_hidden_states(model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    """Hidden states (N, D) that predict the completion tokens of a pack."""
    below = decoder(model)
    output = getattr(below, "compiled_forward", below)(**_model_inputs(inputs))
    return output.last_hidden_state.flatten(0, 1)[inputs["logit_positions"]]


def compile_decoder(model: nn.Module, **options: Any) -> None:
    """Let `completion_hidden_states` run the decoder by torch.compile, and sampling as before.

    The fused loss is called in place of the model's forward, which the compiler would have to trace
    anew every time; sampling has other shapes in every step.
    """
    below = decoder(model)
    below.compiled_forward = torch.compile(below.forward, **options)


def uncompiled(model: Any) -> Any:
    """The module that torch.compile has wrapped, or the model itself."""
    return getattr(model, "_orig_mod", model)


def whole_logprobs(
    model: nn.Module, inputs: dict[str, Any], temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies (N,) float32 of a pack's tokens from the whole logits.

    The model's own forward makes them, which works for any head.
    """
    # Not a call of the module, which may be the one that is being called, with FSDP's hooks.
    logits = base_model(model).forward(**_model_inputs(inputs)).logits
    # float32: bf16 log-probabilities are off by up to 0.07 near the peak.
    logits = logits.flatten(0, 1)[inputs["logit_positions"]].float() / temperature
    all_logprobs = logits.log_softmax(-1)
    entropy = -(all_logprobs.exp() * all_logprobs).sum(-1)
    return all_logprobs.gather(-1, inputs["targets"][:, None]).squeeze(-1), entropy


def fused_logprobs(
    model: nn.Module, inputs: dict[str, Any], temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies (N,) float32 of a pack's tokens, the logits in chunks."""
    hidden = completion_hidden_states(model, inputs)
    found: list[LinearLogprob] = []

    def through_head(states: torch.Tensor) -> torch.Tensor:
        head = lm_head(model)
        out = linear_logprob(
            states,
            head.weight,
            inputs["targets"],
            bias=head.bias,
            temperature=temperature,
            logit_scale=head.logit_scale,
            softcap=head.softcap,
            return_entropy=True,
        )
        assert isinstance(out, LinearLogprob)
        found.append(out)
        return out.logprobs

    call_head(model, through_head, hidden)
    return found[0].logprobs, found[0].entropy


def call_head(
    model: nn.Module, function: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor
) -> torch.Tensor:
    """`function(hidden)` in place of the lm_head's forward.

    FSDP and ZeRO-3 gather a module's parameters in hooks around its forward; without them
    `function` would find a shard of the weight. What is returned is all that may be differentiated:
    FSDP casts it to its output dtype.
    """
    head = output_head(model)
    result: torch.Tensor = call_through(head, head, function, hidden)
    return result


@torch.no_grad()
def check_lm_head(model: nn.Module, input_ids: torch.Tensor) -> None:
    """Compare the model's own logits with those of `lm_head` on a short input.

    Args:
        input_ids: (1, L) token ids, L small.

    Raises:
        ValueError: they differ, so the model does something to its logits that is not known here.
    """
    inner = base_model(model)
    mask = torch.ones_like(input_ids)
    was_training = model.training
    model.eval()
    try:
        logits = inner(input_ids=input_ids, attention_mask=mask, use_cache=False).logits[0].float()
        hidden = decoder(model)(input_ids=input_ids, attention_mask=mask, use_cache=False)
    finally:
        model.train(was_training)
    head = lm_head(model)
    ours = nn.functional.linear(hidden.last_hidden_state[0], head.weight, head.bias).float()
    ours = ours * head.logit_scale
    if head.softcap is not None:
        ours = head.softcap * torch.tanh(ours / head.softcap)
    # bf16 logits that went through a soft cap differ by 1% of the largest; a tiny random model's
    # are all small, so that no absolute tolerance would do.
    if logits.shape != ours.shape or (logits - ours).abs().max() > 0.02 * logits.abs().max():
        raise ValueError(
            f"{type(inner).__name__} changes its logits in a way that fused_lm_head does not know; "
            "set fused_lm_head=False to use the model's own forward"
        )


def call_through(
    wrapper: nn.Module, module: nn.Module, function: Callable[..., Any], *args: Any
) -> Any:
    """Call `function` as if it were `module.forward`, through `wrapper`.

    Wrappers such as DistributedDataParallel prepare gradient reduction in their own forward, which
    a direct call of a submodule would miss (the idea is Lightning Fabric's forward redirection).
    """
    patched = vars(module).get("forward")

    def restore() -> None:
        if patched is None:
            del module.forward
        else:
            module.forward = patched

    def forward(*inner_args: Any) -> Any:
        restore()
        return function(*inner_args)

    module.forward = forward
    try:
        return wrapper(*args)
    finally:
        if vars(module).get("forward") is forward:
            restore()
