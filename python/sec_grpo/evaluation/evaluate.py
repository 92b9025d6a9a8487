"""Sampling answers of a model, judging them, and summing up per level.

P prompts of a level, n samples a prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sec_grpo.evaluation.judging import Judgement, judge_of
from sec_grpo.evaluation.sampling import Sampler, Sampling
from sec_grpo.evaluation.statistics import mean_interval, mean_interval_of_levels, pass_at_k
from sec_grpo.evaluation.table import CompletionsTable
from sec_grpo.trainer.prompts import Category, PromptDataset

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Completions, all of which the judge must fail on before it is taken for broken.
_FAILURES = 64


@dataclass(frozen=True)
class LevelResult:
    """One level.

    Attributes:
        label: the category's value.
        prompts: P.
        accuracy: mean over the prompts of the share of their samples that are solved.
        low, high: 95% interval of the accuracy, see `mean_interval`.
        pass_at: k -> pass@k.
        pass_at_interval: k -> its 95% interval.
        mean_score: mean of the scores, partial ones included.
        mean_tokens: mean length of a completion.
        finished: share of the completions that ended by themselves.
        well_formed: share in the asked format; None where the judge does not say.
        solved: (P,) the share of its samples that are solved, for each prompt.
    """

    label: Hashable
    prompts: int
    accuracy: float
    low: float
    high: float
    pass_at: dict[int, float]
    pass_at_interval: dict[int, tuple[float, float]]
    mean_score: float
    mean_tokens: float
    finished: float
    well_formed: float | None
    solved: np.ndarray = field(repr=False, compare=False)


@dataclass(frozen=True)
class EvaluationResult:
    """All levels, in order, and where the completions are."""

    levels: list[LevelResult]
    samples: int
    failures: int
    """completions that the judge came to no verdict on; they score 0"""
    held_out_levels: frozenset[Hashable]
    """the labels all of whose rows are of levels that their tasks hold out"""
    completions: Path | None
    settings: dict[str, Any]
    """what the samples depend on"""

    def mean(self, labels: Sequence[Hashable]) -> float:
        """Accuracy averaged over some levels, each with the same weight; NaN for none."""
        chosen = [level.accuracy for level in self.levels if level.label in set(labels)]
        return float(np.mean(chosen)) if chosen else math.nan

    def mean_interval(self, labels: Sequence[Hashable]) -> tuple[float, float]:
        """The 95% interval of `mean`; NaN for no level."""
        chosen = [level.solved for level in self.levels if level.label in set(labels)]
        return mean_interval_of_levels(chosen, self.samples) if chosen else (math.nan, math.nan)


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Any,
    judge: Any = None,
    *,
    category: Category = "difficulty",
    samples: int = 1,
    ks: Sequence[int] = (1,),
    temperature: float | None = None,
    top_p: float = 1.0,
    max_completion_length: int = 512,
    batch_size: int = 16,
    seed: int = 0,
    solved: float = 1.0,
    folder: Path | str | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> EvaluationResult:
    """Sample n completions of every prompt, judge them, and sum up per level.

    In `folder` the samples are kept as they come (`samples.jsonl`): the same call continues an
    interrupted evaluation where it stopped, with the same result, and judges a finished one anew
    without sampling.

    Args:
        model, tokenizer: a causal language model and its tokenizer.
        dataset: rows with a `prompt` (text or chat messages) and what the judge needs.
        judge: a task, a reward function in TRL's signature (or several, whose sum counts), or None:
            the tasks that the rows name. A completion that it comes to no verdict on scores 0.
        category: the column of the levels, several, a function of the row, or None for one level.
        samples: n.
        ks: the k of pass@k, each at most n.
        temperature: None is greedy for one sample and 0.6 for several; 0 is greedy.
        top_p: nucleus of the sampling.
        max_completion_length: in tokens.
        batch_size: completions sampled at once.
        seed: of the sampling; on one machine the same seed gives the same result.
        solved: the least score of a solved completion.
        folder: for `samples.jsonl` and `completions.parquet`, which is whole or absent.
        overwrite: drop samples of other settings that are in the folder.
        progress: called with (completions done, completions in all).

    Raises:
        ValueError: an argument out of range, rows that cannot be used, a prompt that does not fit
            the model, samples of other settings in `folder`, or a judge that came to no verdict on
            any of the first completions.
    """
    sampling = Sampling(samples, temperature, top_p, max_completion_length, batch_size, seed)
    _check_ks(ks, samples)
    if not math.isfinite(solved):
        raise ValueError(f"solved must be a finite number, got {solved}")
    prompts = PromptDataset(dataset, category, argument="dataset")
    rows = [prompts.row(i) for i in range(len(prompts))]
    judge = judge_of(judge, rows)
    folder = None if folder is None else Path(folder).expanduser()
    sampler = Sampler(model, tokenizer, [row["prompt"] for row in rows], sampling)
    tally = _Tally(len(rows), samples)
    with sampler.journal(folder, overwrite=overwrite) as journal:
        table = CompletionsTable(rows, prompts.categories, sampler.texts, solved)
        for places, batch in sampler.batches(journal):
            judgements = judge(batch, [rows[row] for row, _ in places])
            tally.add(places, batch, judgements)
            if folder is not None:
                table.add(places, batch, judgements)
            if progress is not None:
                progress(tally.count, sampler.total)
        path = None if folder is None else table.write(folder / "completions.parquet")
    return EvaluationResult(
        tally.levels(prompts.categories, solved, ks),
        samples,
        tally.failures,
        _held_out(prompts.categories, getattr(judge, "held_out", [False] * len(rows))),
        path,
        sampler.settings,
    )


def _held_out(labels: Sequence[Hashable], held_out: Sequence[bool]) -> frozenset[Hashable]:
    pairs = list(zip(labels, held_out, strict=True))
    return frozenset(labels) - {label for label, apart in pairs if not apart}


def _check_ks(ks: Sequence[int], samples: int) -> None:
    for k in ks:
        if not 1 <= k <= samples:
            raise ValueError(
                f"every k of pass@k must be between 1 and samples={samples}, got {k}; raise "
                "samples or leave it out"
            )


class _Tally:
    """What was found so far, for P prompts with n samples each."""

    def __init__(self, prompts: int, samples: int) -> None:
        shape = (prompts, samples)
        self._scores, self._tokens, self._finished = (np.zeros(shape) for _ in range(3))
        self._well_formed = np.full(shape, math.nan)
        self.count = self.failures = 0

    def add(
        self,
        places: Sequence[tuple[int, int]],
        batch: Sequence[Any],
        judgements: Sequence[Judgement],
    ) -> None:
        """Add a batch; raises ValueError where the judge fails on everything."""
        for place, sample, judgement in zip(places, batch, judgements, strict=True):
            self._scores[place] = judgement.score
            self._tokens[place], self._finished[place] = len(sample.ids), sample.finished
            if judgement.well_formed is not None:
                self._well_formed[place] = judgement.well_formed
            self.failures += judgement.failed
            self.count += 1
        enough = min(self._scores.size, _FAILURES)
        if self.failures == self.count >= enough:
            raise ValueError(
                f"the judge came to no verdict on any of the first {self.failures} completions, so "
                f"it is not the answers: {judgements[-1].reason}"
            )

    def levels(
        self, categories: Sequence[Any], solved: float, ks: Sequence[int]
    ) -> list[LevelResult]:
        """Sums of every level, in the order of a curriculum's arms: numbers by value, then text."""
        from sec_grpo.curriculum import Curriculum

        return [
            self._level(label, np.array([category == label for category in categories]), solved, ks)
            for label in Curriculum(list(categories)).arms
        ]

    def _level(
        self, label: Hashable, chosen: np.ndarray, solved: float, ks: Sequence[int]
    ) -> LevelResult:
        right = self._scores[chosen] >= solved
        prompts, samples = right.shape
        shares = right.mean(axis=1)
        low, high = mean_interval(shares, samples)
        passed = {
            k: np.array([pass_at_k(samples, int(count), k) for count in right.sum(axis=1)])
            for k in ks
        }
        well_formed = float(self._well_formed[chosen].mean())
        return LevelResult(
            label=label,
            prompts=prompts,
            accuracy=float(shares.mean()),
            low=low,
            high=high,
            pass_at={k: float(values.mean()) for k, values in passed.items()},
            # Of n samples at most n / k are independent draws of k.
            pass_at_interval={
                k: mean_interval(values, max(1, samples // k)) for k, values in passed.items()
            },
            mean_score=float(self._scores[chosen].mean()),
            mean_tokens=float(self._tokens[chosen].mean()),
            finished=float(self._finished[chosen].mean()),
            well_formed=None if math.isnan(well_formed) else well_formed,
            solved=shares,
        )
