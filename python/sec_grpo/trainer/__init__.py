"""GRPO training of Hugging Face causal language models on `transformers.Trainer`."""

from sec_grpo.errors import CheckpointError, RewardError
from sec_grpo.trainer.config import GRPOConfig
from sec_grpo.trainer.grpo_trainer import GRPOTrainer

__all__ = ["CheckpointError", "GRPOConfig", "GRPOTrainer", "RewardError"]
