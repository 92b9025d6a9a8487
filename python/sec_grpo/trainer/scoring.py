"""Calling reward functions on rows of a data set, in one process or in several.

b rows of this process, F functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sec_grpo.distributed import Processes
from sec_grpo.errors import RewardError
from sec_grpo.trainer.encoding import Encoder
from sec_grpo.trainer.prompts import PromptDataset
from sec_grpo.trainer.rewards import RewardFunctions

if TYPE_CHECKING:
    from transformers import TrainerState

Scores = tuple[NDArray[np.float64], NDArray[np.float64]]
"""(b,) total rewards, (b, F) those of each function"""


def score(
    prompts: PromptDataset,
    rewards: RewardFunctions,
    rows: list[dict[str, Any]],
    completions: list[Any],
    completion_ids: list[list[int]],
    trainer_state: TrainerState,
    *,
    log_metric: Callable[[str, float], None] | None = None,
    log_extra: Callable[[str, Sequence[Any]], None] | None = None,
) -> Scores:
    """Rewards of completions of `rows` of `prompts`; RewardError if a function fails."""
    passed = ("prompt", "completion", "completion_ids")
    names = [name for name in prompts.columns if name not in passed]
    return rewards(
        prompts=[row["prompt"] for row in rows],
        completions=completions,
        completion_ids=completion_ids,
        columns={name: [row.get(name) for row in rows] for name in names},
        trainer_state=trainer_state,
        log_metric=log_metric,
        log_extra=log_extra,
    )


def everywhere(processes: Processes, call: Callable[[], Any]) -> Any:
    """`call()`, raising on every process when it does on one, so that none waits for ever."""
    failure: RewardError | None = None
    result = None
    try:
        result = call()
    except RewardError as error:
        failure = error
    if processes.sum(int(failure is not None)) != [0]:
        raise failure or RewardError("a reward function failed on another process")
    return result


def check_reward_funcs(
    prompts: PromptDataset,
    rewards: RewardFunctions,
    encoder: Encoder,
    trainer_state: TrainerState,
    count: int,
) -> None:
    """Call reward functions on `count` empty completions of the first row.

    Raises:
        RewardError: they fail or return something other than one reward per completion.
    """
    rows = [prompts.row(0)] * count
    ids: list[list[int]] = [[] for _ in rows]
    try:
        score(prompts, rewards, rows, encoder.decode(rows, ids), ids, trainer_state)
    except RewardError as error:
        raise RewardError(
            f"{error}. This was the check on empty completions before training; if only those "
            "are the matter, set check_reward_funcs=False"
        ) from error
