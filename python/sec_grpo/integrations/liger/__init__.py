"""Liger's two GRPO losses, by name and signature, on our operations.

liger-kernel itself is not needed. docs/integrations/liger.md lists what is computed otherwise.
"""

from sec_grpo.integrations.liger.from_logits import triton_grpo_loss
from sec_grpo.integrations.liger.fused_linear import LigerFusedLinearGRPOLoss

__all__ = ["LigerFusedLinearGRPOLoss", "triton_grpo_loss"]
