"""Fused loss operations: they validate their arguments and choose a backend.

`backend="auto"` is triton on CUDA and ROCm tensors where a Triton kernel exists, torch elsewhere.
"""

from sec_grpo.ops.advantages import GroupAdvantages, group_advantages
from sec_grpo.ops.correction import off_policy_mask, rollout_weights, top_entropy_mask
from sec_grpo.ops.linear import LinearLogprob, linear_logprob
from sec_grpo.ops.linear_policy import LinearPolicyLoss, linear_policy_loss
from sec_grpo.ops.policy import PolicyLoss, policy_loss

__all__ = [
    "GroupAdvantages",
    "LinearLogprob",
    "LinearPolicyLoss",
    "PolicyLoss",
    "group_advantages",
    "linear_logprob",
    "linear_policy_loss",
    "off_policy_mask",
    "policy_loss",
    "rollout_weights",
    "top_entropy_mask",
]
