"""Evaluation: mean rewards of completions, in all and per category."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from sec_grpo.distributed import Processes
from sec_grpo.errors import RewardError
from sec_grpo.trainer.encoding import Encoder
from sec_grpo.trainer.prompts import Category, PromptDataset
from sec_grpo.trainer.rewards import RewardFunctions
from sec_grpo.trainer.rollout import Sampler, derive_seed
from sec_grpo.trainer.scoring import everywhere, score

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerState


class Evaluator:
    """Samples completions of the rows of a data set and has them judged.

    Args:
        batch_size: rows a process samples at a time.
        num_generations: completions a row.
        sharded: whether sampling is a collective of all processes, which then sample equally often.
    """

    def __init__(
        self,
        *,
        encoder: Encoder,
        sampler: Sampler,
        processes: Processes,
        batch_size: int,
        num_generations: int,
        sharded: bool,
        seed: int,
    ) -> None:
        self._encoder = encoder
        self._sampler = sampler
        self._processes = processes
        self._batch_size = batch_size
        self._num_generations = num_generations
        self._sharded = sharded
        self._seed = seed

    def evaluate(
        self,
        model: PreTrainedModel,
        prompts: PromptDataset,
        rewards: RewardFunctions,
        trainer_state: TrainerState,
    ) -> NDArray[np.float64]:
        """Mean rewards (N,) of the rows, which are dealt to the processes in turn.

        Raises:
            RewardError: a reward function failed on any process.
        """
        processes = self._processes
        most = math.ceil(len(prompts) / processes.size)
        out = np.full(most, math.nan)
        failures: list[RewardError] = []

        def judge_all() -> None:
            for start in range(0, most, self._batch_size):
                stop = min(start + self._batch_size, most)
                places = [k * processes.size + processes.rank for k in range(start, stop)]
                rows = [i for i in places if i < len(prompts)]
                seed = derive_seed(self._seed, "evaluation", start, processes.rank)
                ids = self._sample(model, prompts, rows, len(places), seed)
                if failures:
                    continue  # sampling goes on: where it is collective, others wait for it
                try:
                    scores = self._judge(prompts, rewards, trainer_state, rows, ids)
                    out[start : start + len(rows)] = scores
                except RewardError as error:
                    failures.append(error)
                    if not self._sharded:
                        break
            if failures:
                raise failures[0]

        everywhere(processes, judge_all)
        gathered = processes.gather(torch.as_tensor(out)).numpy()
        return gathered.reshape(processes.size, -1).T.reshape(-1)[: len(prompts)]

    def _sample(
        self,
        model: PreTrainedModel,
        prompts: PromptDataset,
        indices: list[int],
        count: int,
        seed: int,
    ) -> list[list[int]]:
        """Completions of rows, each `num_generations` times.

        Where sampling is collective the first row makes up for what is missing to `count`.
        """
        padded = indices + [0] * (count - len(indices)) if self._sharded else indices
        places = [i for i in padded for _ in range(self._num_generations)]
        if not places:
            return []
        prompt_ids = self._encoder.encode([prompts.row(i) for i in places], places)
        ids = self._sampler.sample(model, prompt_ids, seed)
        return ids[: len(indices) * self._num_generations]

    def _judge(
        self,
        prompts: PromptDataset,
        rewards: RewardFunctions,
        trainer_state: TrainerState,
        indices: list[int],
        ids: list[list[int]],
    ) -> NDArray[np.float64]:
        """Mean rewards of rows, whose completions follow each other."""
        if not indices:
            return np.zeros(0)
        rows = [prompts.row(i) for i in indices for _ in range(self._num_generations)]
        completions = self._encoder.decode(rows, ids)
        scores, _ = score(prompts, rewards, rows, completions, ids, trainer_state)
        return scores.reshape(-1, self._num_generations).mean(axis=1)


def evaluation_prompts(dataset: Any, category: Category) -> dict[str, PromptDataset]:
    """The data sets to evaluate by name; a single one has the name "", and None is none.

    A stream is read to its end: every row of it is evaluated, each time.
    """
    if dataset is None:
        return {}
    named = dataset if isinstance(dataset, Mapping) else {"": dataset}
    return {
        str(name): PromptDataset(
            list(rows) if _is_stream(rows) else rows,
            category,
            argument=f"eval_dataset[{name!r}]" if name else "eval_dataset",
        )
        for name, rows in named.items()
    }


def named_prompts(prompts: Mapping[str, PromptDataset], name: str) -> PromptDataset:
    """One of several evaluation sets; ValueError where none has the name."""
    if name not in prompts:
        known = ", ".join(filter(None, prompts)) or "none with a name"
        raise ValueError(f"evaluate has no eval_dataset {name!r}; the trainer has {known}")
    return prompts[name]


def _is_stream(rows: Any) -> bool:
    return hasattr(rows, "__iter__") and not hasattr(rows, "__len__")


@dataclass(frozen=True)
class EvaluationResult:
    """Mean rewards of an evaluation by category label, trained ones in the curriculum's order."""

    reward: float
    by_category: dict[str, float]
    counts: dict[str, int]
    held_out: list[str]
    """labels that are not trained on"""

    def metrics(self, prefix: str) -> dict[str, float]:
        """`{prefix}_reward` and `{prefix}_reward/{category}`."""
        by_category = {f"{prefix}_reward/{k}": v for k, v in self.by_category.items()}
        return {f"{prefix}_reward": self.reward, **by_category}


def by_category(
    categories: Iterable[Any], rewards: NDArray[np.float64], arms: Sequence[Any]
) -> EvaluationResult:
    """Sum up rewards (N,) of rows, which follow each other as `categories` do."""
    found: dict[Any, list[float]] = {}
    for label, reward in zip(categories, rewards, strict=True):
        found.setdefault(label, []).append(float(reward))
    trained = [arm for arm in arms if arm in found]
    held_out = [label for label in found if label not in set(trained)]
    labels = trained + held_out
    return EvaluationResult(
        reward=float(np.mean(rewards)),
        by_category={str(label): float(np.mean(found[label])) for label in labels},
        counts={str(label): len(found[label]) for label in labels},
        held_out=[str(label) for label in held_out],
    )


def joined(
    results: dict[str, EvaluationResult],
) -> tuple[dict[str, float], dict[str, int], list[str]]:
    """Rewards, counts and held-out labels of all results; a data set's name precedes its labels."""
    rewards: dict[str, float] = {}
    counts: dict[str, int] = {}
    held_out: list[str] = []
    for name, result in results.items():
        prefix = f"{name}/" if name else ""
        rewards |= {prefix + label: reward for label, reward in result.by_category.items()}
        counts |= {prefix + label: count for label, count in result.counts.items()}
        held_out += [prefix + label for label in result.held_out]
    return rewards, counts, held_out
