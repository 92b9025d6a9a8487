"""`LigerFusedLinearGRPOLoss` on `linear_policy_loss`.

Axes: B completions, T tokens of a padded completion, D hidden, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sec_grpo.integrations.liger import arguments
from sec_grpo.ops import linear_logprob, linear_policy_loss

# Keywords that mean the same in both.
_SAME = (
    "loss_type",
    "importance_sampling_level",
    "epsilon_low",
    "epsilon_high",
    "delta",
    "sapo_temperature_pos",
    "sapo_temperature_neg",
    "vespo_k_pos",
    "vespo_lambda_pos",
    "vespo_k_neg",
    "vespo_lambda_neg",
)


class LigerFusedLinearGRPOLoss(torch.nn.Module):
    """GRPO loss of a linear head, with the signature of Liger's class of this name.

    The loss is that of `sec_grpo.linear_policy_loss`, where its equations are; loss, metrics and
    gradients are Liger's (liger-kernel 0.8.5, chunked_loss/grpo_loss.py) but for what
    docs/integrations/liger.md lists.

    Args:
        beta: weight of the KL term.
        compiled: accepted and of no effect: there is nothing to compile.
        use_ref_model: whether the KL term is taken to a reference; without it the term is 0.
        chunk_size: accepted and of no effect: chunks are of rows and as large as memory allows.
        epsilon_low, epsilon_high, delta: see `sec_grpo.policy_loss`.
        loss_type: grpo, bnpo, dr_grpo, dapo, cispo, sapo, luspo or vespo.
        max_completion_length: needed by dr_grpo.
        importance_sampling_level: "token", or "sequence" (GSPO; luspo needs it).
        temperature: divides the logits.
        use_bias_correction_kl: multiply the KL by the ratio.

    Raises:
        ValueError: in the call, for what `linear_policy_loss` refuses.
    """

    def __init__(
        self,
        beta: float = 0.04,
        compiled: bool = True,
        use_ref_model: bool = True,
        chunk_size: int = 1,
        epsilon_low: float = 0.2,
        epsilon_high: float = 0.2,
        loss_type: str = "dapo",
        max_completion_length: int | None = None,
        importance_sampling_level: str = "token",
        sapo_temperature_pos: float = 1.0,
        sapo_temperature_neg: float = 1.05,
        temperature: float = 1.0,
        delta: float | None = None,
        use_bias_correction_kl: bool = False,
        vespo_k_pos: float = 2.0,
        vespo_lambda_pos: float = 3.0,
        vespo_k_neg: float = 3.0,
        vespo_lambda_neg: float = 2.0,
    ) -> None:
        super().__init__()
        self.beta = beta
        self.compiled = compiled
        self.use_ref_model = use_ref_model
        self.chunk_size = chunk_size
        self.epsilon_low = epsilon_low
        self.epsilon_high = epsilon_high
        self.loss_type = loss_type
        self.max_completion_length = max_completion_length
        self.importance_sampling_level = importance_sampling_level
        self.sapo_temperature_pos = sapo_temperature_pos
        self.sapo_temperature_neg = sapo_temperature_neg
        self.temperature = temperature
        self.delta = delta
        self.use_bias_correction_kl = use_bias_correction_kl
        self.vespo_k_pos = vespo_k_pos
        self.vespo_lambda_pos = vespo_lambda_pos
        self.vespo_k_neg = vespo_k_neg
        self.vespo_lambda_neg = vespo_lambda_neg

    def forward(
        self,
        _input: Tensor,
        lin_weight: Tensor,
        selected_token_ids: Tensor,
        attention_mask: Tensor,
        advantages: Tensor,
        bias: Tensor | None = None,
        ref_per_token_logps: Tensor | None = None,
        old_per_token_logps: Tensor | None = None,
        ref_input: Tensor | None = None,
        ref_weight: Tensor | None = None,
        ref_bias: Tensor | None = None,
        vllm_is_ratio: Tensor | None = None,
        num_items_in_batch: float | Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(loss, metrics): metrics are (mean KL, share clipped), or (share clipped,) for beta 0.

        Args:
            _input: (B, T, D) hidden states that predict the tokens; differentiable.
            lin_weight: (V, D); differentiable, cast to the dtype of _input.
            selected_token_ids: (B, T) token ids; padding may hold anything.
            attention_mask: (B, T), 0 for padding.
            advantages: (B,).
            bias: (V,); differentiable.
            ref_per_token_logps: (B, T) of the reference; or, with use_ref_model, ref_input
                (B, T, D), ref_weight and ref_bias, of which they are made.
            old_per_token_logps: (B, T) of the sampling policy; None is on-policy.
            vllm_is_ratio: (B,), (B, 1) or (B, T) rollout correction.
            num_items_in_batch: tokens of the whole batch over all processes, for dapo, cispo and
                vespo; None counts them with a collective call.
        """
        mask = arguments.boolean_mask("attention_mask", attention_mask, selected_token_ids)
        ids = arguments.safe_ids(selected_token_ids, mask)
        reference = self._reference(ref_per_token_logps, ids, mask, ref_input, ref_weight, ref_bias)
        result = linear_policy_loss(
            _input,
            lin_weight.to(_input.dtype),
            ids,
            advantages,
            mask=mask,
            bias=None if bias is None else bias.to(_input.dtype),
            temperature=self.temperature,
            old_logprobs=old_per_token_logps,
            ref_logprobs=reference,
            is_weights=arguments.correction_weights(vllm_is_ratio, mask),
            num_items_in_batch=arguments.tokens_per_process(
                self.loss_type, mask, num_items_in_batch
            ),
            max_completion_length=self.max_completion_length,
            beta=self.beta if reference is not None else 0.0,
            kl_bias_correction=self.use_bias_correction_kl,
            **{name: getattr(self, name) for name in _SAME},
        )
        return result.loss, tuple(arguments.metrics_of(result.metrics, self.beta))

    def _reference(
        self,
        given: Tensor | None,
        ids: Tensor,
        mask: Tensor,
        hidden: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
    ) -> Tensor | None:
        """(B, T) log-probabilities of the reference, 0 where masked, or None without one."""
        if not self.use_ref_model or given is not None:
            return given if self.use_ref_model else None
        if hidden is None or weight is None:
            raise ValueError(
                "with use_ref_model=True either ref_per_token_logps or ref_input and ref_weight "
                "must be given, got none of them"
            )
        with torch.no_grad():
            logprobs = linear_logprob(
                hidden[mask],
                weight.to(hidden.dtype),
                ids[mask],
                bias=None if bias is None else bias.to(hidden.dtype),
                temperature=self.temperature,
            )
        assert isinstance(logprobs, Tensor)
        return logprobs.new_zeros(mask.shape).masked_scatter(mask, logprobs)
