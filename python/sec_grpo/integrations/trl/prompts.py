"""What the curriculum is made of: train_dataset, `category`, and TRL's configuration."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from trl import GRPOConfig

from sec_grpo.curriculum import Curriculum
from sec_grpo.integrations.curriculum import Pace, curriculum_over
from sec_grpo.trainer.prompts import Category


def arguments_of(function: Callable[..., Any], args: Any, kwargs: Any) -> dict[str, Any]:
    """Arguments by name; TypeError, as from the call itself, where they do not fit."""
    bound = inspect.signature(function).bind(*args, **kwargs).arguments
    # A trainer with __init__(*args, **kwargs) leaves only the named ones to be found.
    return {**bound, **kwargs}


def curriculum_of(
    curriculum: Any, category: Category, train_dataset: Any, config: Any
) -> Curriculum:
    """The curriculum over the rows of train_dataset that the trainer's arguments stand for.

    Raises:
        ValueError, TypeError: the data set is missing, has no random access or no such category, or
            the strategy is unknown or refuses its parameters.
    """
    if train_dataset is None:
        raise ValueError(
            "train_dataset is missing: a curriculum draws rows by their index. Prompts that an "
            "environment makes itself are for trl.GRPOTrainer"
        )
    if not (hasattr(train_dataset, "__len__") and hasattr(train_dataset, "__getitem__")):
        raise ValueError(
            f"train_dataset must be a datasets.Dataset, got {type(train_dataset).__name__}: a "
            "curriculum draws rows by their index. Make one of the stream "
            "(datasets.Dataset.from_list(list(stream))), or train with trl.GRPOTrainer"
        )
    settings = GRPOConfig if config is None else config
    return curriculum_over(
        curriculum, category, train_dataset, seed=settings.seed, pace=_pace(settings)
    )


def _pace(config: Any) -> Pace:
    if config.max_steps <= 0:
        return Pace(config.max_steps, 1)
    micro_steps = config.steps_per_generation * config.num_iterations
    return Pace(config.max_steps, micro_steps / config.gradient_accumulation_steps)


def rows_of(dataset: Any, indices: Any, columns: Any = None) -> list[dict[str, Any]]:
    """Rows of the data set, of these columns only where given.

    A row is read anew each time it comes: environments, rewards and TRL itself write into messages
    and lists, which completions of one prompt must not share.
    """
    names = None if columns is None else set(columns)
    return [
        {name: value for name, value in dataset[int(i)].items() if names is None or name in names}
        for i in indices
    ]


def total_prompts(completions: int, num_generations: int) -> int:
    """Prompts of a generation batch of that many completions over all processes.

    Raises:
        ValueError: they are not whole groups.
    """
    if completions % num_generations:
        raise ValueError(
            f"the generation batch must hold whole groups of num_generations={num_generations}, "
            f"got {completions} completions; set generation_batch_size to a multiple of it, and "
            "leave auto_find_batch_size off"
        )
    return completions // num_generations
