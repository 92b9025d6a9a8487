"""Attributes and arguments of TRL's GRPOTrainer that callbacks, subclasses and scripts use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from sec_grpo.trainer.config import GRPOConfig
    from sec_grpo.trainer.entropy import EntropyBonus
    from sec_grpo.trainer.rewards import RewardFunctions


class _Argument:
    """An argument of GRPOConfig as an attribute of the trainer.

    It cannot be set: the parts that sample, score and update have been made from the argument, and
    half of them would go on with the old value.
    """

    def __init__(self, argument: str) -> None:
        self._argument = argument

    def __get__(self, trainer: Any, owner: Any = None) -> Any:
        return self if trainer is None else getattr(trainer.args, self._argument)

    def __set__(self, trainer: Any, value: Any) -> None:
        raise AttributeError(
            f"{self._argument} cannot be changed in a trainer that is made (got {value!r}); pass "
            f"GRPOConfig({self._argument}=...)"
        )


class TRLAttributes:
    """What `trl.GRPOTrainer` keeps under these names, to be read."""

    args: GRPOConfig
    _rewards: RewardFunctions
    _reference: torch.nn.Module | None
    _entropy_bonus: EntropyBonus

    beta = _Argument("beta")
    chat_template_kwargs = _Argument("chat_template_kwargs")
    epsilon_low = _Argument("epsilon")
    importance_sampling_level = _Argument("importance_sampling_level")
    log_completions = _Argument("log_completions")
    log_unique_prompts = _Argument("log_unique_prompts")
    loss_type = _Argument("loss_type")
    mask_truncated_completions = _Argument("mask_truncated_completions")
    max_completion_length = _Argument("max_completion_length")
    min_p = _Argument("min_p")
    multi_objective_aggregation = _Argument("multi_objective_aggregation")
    num_completions_to_print = _Argument("num_completions_to_print")
    num_generations = _Argument("num_generations")
    num_generations_eval = _Argument("num_generations_eval")
    num_iterations = _Argument("num_iterations")
    off_policy_mask_threshold = _Argument("off_policy_mask_threshold")
    repetition_penalty = _Argument("repetition_penalty")
    scale_rewards = _Argument("scale_rewards")
    temperature = _Argument("temperature")
    top_entropy_quantile = _Argument("top_entropy_quantile")
    top_k = _Argument("top_k")
    top_p = _Argument("top_p")
    use_adaptive_entropy = _Argument("use_adaptive_entropy")
    use_transformers_continuous_batching = _Argument("use_transformers_continuous_batching")

    aux_loss_enabled = False
    """There is no load-balancing loss for mixtures of experts."""

    def create_model_card(self, *args: Any, dataset_name: Any = None, **kwargs: Any) -> None:
        """Write the model card; `dataset_name`, which `push_to_hub` hands on, is TRL's argument.

        Trainer calls it `dataset`.
        """
        if dataset_name is not None:
            kwargs["dataset"] = dataset_name
        super().create_model_card(*args, **kwargs)  # type: ignore[misc]

    @property
    def epsilon_high(self) -> float:
        """The upper clip range, which is the lower one where the config leaves it unset."""
        high = self.args.epsilon_high
        return self.args.epsilon if high is None else high

    @property
    def entropy_coef(self) -> float:
        """The weight of the entropy bonus as it is now; it moves with `use_adaptive_entropy`."""
        return self._entropy_bonus.coefficient

    @property
    def ref_model(self) -> torch.nn.Module | None:
        """The reference of the KL term; None where there is none or the adapter is turned off."""
        return self._reference

    @property
    def reward_funcs(self) -> list[Any]:
        """The reward functions; a reward model is wrapped in `sec_grpo.rewards.RewardModel`."""
        return self._rewards.funcs

    @property
    def reward_func_names(self) -> list[str]:
        """Their names, as in the log."""
        return self._rewards.names

    @property
    def reward_weights(self) -> torch.Tensor:
        """(F,) float32, one for each of them."""
        return torch.as_tensor(self._rewards.weights, dtype=torch.float32)

    @property
    def reward_processing_classes(self) -> list[Any]:
        """The tokenizer of each reward model; None for a function."""
        return [getattr(func, "tokenizer", None) for func in self._rewards.funcs]
