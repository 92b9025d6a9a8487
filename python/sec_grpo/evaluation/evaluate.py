"""Sampling answers of a model, judging them, and summing up per level.

P prompts of a level, n samples a prompt.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from transformers import GenerationConfig

from sec_grpo.report.table import wilson_interval
from sec_grpo.trainer.prompts import Category, PromptDataset, tokenize_prompt
from sec_grpo.trainer.rollout import derive_seed, sample_completions
from sec_grpo.trainer.setup import max_positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# A sample counts as solved from this score on.
SOLVED = 0.5


class Judgement(NamedTuple):
    """What a judge says of one completion."""

    score: float
    reason: str
    well_formed: bool


Judge = Callable[[str, dict[str, Any]], Judgement]


@dataclass(frozen=True)
class LevelResult:
    """One level.

    Attributes:
        label: the category's value.
        prompts: P.
        accuracy: mean over the prompts of the share of their samples that are solved.
        low, high: 95% interval of the accuracy, over prompts.
        pass_at: k -> pass@k.
        mean_tokens: mean length of a completion.
        finished: share of the completions that ended by themselves.
        well_formed: share in the asked format.
    """

    label: Hashable
    prompts: int
    accuracy: float
    low: float
    high: float
    pass_at: dict[int, float]
    mean_tokens: float
    finished: float
    well_formed: float


@dataclass(frozen=True)
class EvaluationResult:
    """All levels, in order, and where the completions are."""

    levels: list[LevelResult]
    samples: int
    failures: int
    """completions whose judge raised; they score 0"""
    completions: Path | None

    def mean(self, labels: Sequence[Hashable]) -> float:
        """Accuracy averaged over some levels, each with the same weight; NaN for none."""
        chosen = [level.accuracy for level in self.levels if level.label in set(labels)]
        return float(np.mean(chosen)) if chosen else math.nan


def pass_at_k(num_samples: int, num_solved: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k): the unbiased estimate of pass@k (arXiv 2107.03374).

    Raises ValueError unless 1 <= k <= n and 0 <= c <= n.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"k must be between 1 and the {num_samples} samples, got {k}")
    if not 0 <= num_solved <= num_samples:
        raise ValueError(f"num_solved must be between 0 and {num_samples}, got {num_solved}")
    return 1.0 - math.comb(num_samples - num_solved, k) / math.comb(num_samples, k)


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Any,
    judge: Judge,
    *,
    category: Category = "difficulty",
    samples: int = 1,
    ks: Sequence[int] = (1,),
    temperature: float | None = None,
    top_p: float = 1.0,
    max_completion_length: int = 512,
    batch_size: int = 16,
    seed: int = 0,
    completions: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> EvaluationResult:
    """Sample n completions of every prompt, judge them, and sum up per level.

    The interval of an accuracy is Wilson's with the number of prompts, not of samples: samples of
    one prompt are alike, and counting them as independent would make it too narrow (arXiv
    2411.00640). With one sample it is the usual one.

    Args:
        model, tokenizer: a causal language model and its tokenizer.
        dataset: rows with a `prompt` (text or chat messages) and what the judge needs.
        judge: (completion text, row) -> Judgement. One that raises scores the completion 0, with
            the exception as the reason.
        category: the column of the levels, several, a function of the row, or None for one level.
        samples: n.
        ks: the k of pass@k, each at most n.
        temperature: None is greedy for one sample and 0.6 for several; 0 is greedy.
        top_p: nucleus of the sampling.
        max_completion_length: in tokens.
        batch_size: completions sampled at once.
        seed: of the sampling; on one machine the same seed gives the same result.
        completions: a .parquet file for every completion, whole or absent.
        progress: called with (completions done, completions in all).

    Raises:
        ValueError: an argument out of range, rows that cannot be used, a prompt that does not fit
            the model, or a judge that raised for every completion of the first batches.
    """
    _check(samples, ks, temperature, top_p, max_completion_length, batch_size)
    rows = PromptDataset(dataset, category, argument="dataset")
    config = _generation_config(
        model, tokenizer, samples, temperature, top_p, max_completion_length
    )
    limit = max_positions(model)
    scores = np.zeros((len(rows), samples))
    lengths, finished, well_formed = (np.zeros_like(scores) for _ in range(3))
    failures, total = 0, len(rows) * samples
    last_error = ""
    with _CompletionsFile(completions) as file:
        for start in range(0, total, batch_size):
            numbers = range(start, min(start + batch_size, total))
            batch = [rows.row(number // samples) for number in numbers]
            prompts = [tokenize_prompt(row["prompt"], tokenizer) for row in batch]
            for number, prompt in zip(numbers, prompts, strict=True):
                _check_length(number // samples, len(prompt), max_completion_length, limit)
            seeded = derive_seed(seed, "eval", start)
            ids = sample_completions(model, prompts, config, seed=seeded)
            texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
            records = []
            for number, row, text, tokens in zip(numbers, batch, texts, ids, strict=True):
                judgement, error = _judged(judge, text, row)
                failures += error is not None
                last_error = error or last_error
                place = divmod(number, samples)
                scores[place], well_formed[place] = judgement.score, judgement.well_formed
                lengths[place], finished[place] = len(tokens), _ended(tokens, config)
                records.append(_record(place, row, text, judgement, tokens, bool(finished[place])))
            if failures == numbers.stop and numbers.stop >= min(total, 64):
                raise ValueError(
                    f"the judge raised for all of the first {failures} completions, so it is not "
                    f"the answers: {last_error}"
                )
            file.write(records)
            if progress is not None:
                progress(numbers.stop, total)
    return EvaluationResult(
        _levels(rows.categories, scores, lengths, finished, well_formed, ks),
        samples,
        failures,
        completions,
    )


def _check(
    samples: int,
    ks: Sequence[int],
    temperature: float | None,
    top_p: float,
    max_completion_length: int,
    batch_size: int,
) -> None:
    counts = {
        "samples": samples,
        "max_completion_length": max_completion_length,
        "batch_size": batch_size,
    }
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    for k in ks:
        if not 1 <= k <= samples:
            raise ValueError(
                f"every k of pass@k must be between 1 and samples={samples}, got {k}; raise "
                "samples or leave it out"
            )
    if temperature is not None and not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be 0 or above, got {temperature}")
    if temperature == 0 and samples > 1:
        raise ValueError(
            f"temperature must be above 0 with samples={samples}: greedy samples are all the same"
        )
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")


def _generation_config(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: int,
    temperature: float | None,
    top_p: float,
    max_completion_length: int,
) -> GenerationConfig:
    if temperature is None:
        temperature = 0.0 if samples == 1 else 0.6
    eos = getattr(model.generation_config, "eos_token_id", None) or tokenizer.eos_token_id
    pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    shared = {"max_new_tokens": max_completion_length, "eos_token_id": eos, "pad_token_id": pad}
    if temperature == 0:
        return GenerationConfig(do_sample=False, **shared)
    return GenerationConfig(do_sample=True, temperature=temperature, top_p=top_p, top_k=0, **shared)


def _check_length(row: int, length: int, new: int, limit: int | None) -> None:
    if limit is not None and length + new > limit:
        raise ValueError(
            f"row {row}: the prompt's {length} tokens and max_completion_length={new} exceed the "
            f"model's {limit} positions; shorten the prompt or the completion"
        )


def _judged(judge: Judge, text: str, row: dict[str, Any]) -> tuple[Judgement, str | None]:
    try:
        return judge(text, row), None
    except Exception as error:
        reason = f"the judge raised {type(error).__name__}: {error}"
        return Judgement(0.0, reason, False), reason


def _ended(tokens: list[int], config: GenerationConfig) -> bool:
    eos = config.eos_token_id
    return bool(tokens) and tokens[-1] in (eos if isinstance(eos, list) else [eos])


def _record(
    place: tuple[int, int],
    row: dict[str, Any],
    text: str,
    judgement: Judgement,
    tokens: list[int],
    finished: bool,
) -> dict[str, Any]:
    prompt = row["prompt"]
    if not isinstance(prompt, str):
        prompt = "\n\n".join(str(message.get("content") or "") for message in prompt)
    kept = ("difficulty", "type", "task", "data_source", "index")
    truth = row.get("ground_truth", row.get("ground_truth_json"))
    return {
        "row": place[0],
        "sample": place[1],
        "prompt": prompt,
        "completion": text,
        "ground_truth": truth if isinstance(truth, str) else repr(truth),
        "score": float(judgement.score),
        "reason": judgement.reason,
        "well_formed": bool(judgement.well_formed),
        "tokens": len(tokens),
        "finished": finished,
        **{name: None if row.get(name) is None else str(row[name]) for name in kept if name in row},
    }


class _CompletionsFile:
    """A parquet file that is written batch by batch beside its place, and renamed at the end."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._temporary = None if path is None else path.with_name(f".{path.name}.{os.getpid()}")
        self._writer: Any = None

    def __enter__(self) -> _CompletionsFile:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        return self

    def write(self, records: list[dict[str, Any]]) -> None:
        if self._temporary is None:
            return
        import pyarrow
        import pyarrow.parquet

        for record in records:  # lone surrogates, which UTF-8 and parquet do not have
            for name in ("completion", "prompt", "reason"):
                record[name] = record[name].encode("utf-8", "replace").decode()
        if self._writer is None:
            table = pyarrow.Table.from_pylist(records)
            self._writer = pyarrow.parquet.ParquetWriter(self._temporary, table.schema)
        self._writer.write_table(pyarrow.Table.from_pylist(records, schema=self._writer.schema))

    def __exit__(self, kind: Any, *_: object) -> None:
        if self._temporary is None or self._path is None:
            return
        if self._writer is not None:
            self._writer.close()
        if kind is None:
            os.replace(self._temporary, self._path)
        else:
            self._temporary.unlink(missing_ok=True)


def _levels(
    categories: Sequence[Any],
    scores: np.ndarray,
    lengths: np.ndarray,
    finished: np.ndarray,
    well_formed: np.ndarray,
    ks: Sequence[int],
) -> list[LevelResult]:
    from sec_grpo.curriculum import Curriculum

    levels = []
    # In the order of a curriculum's arms: numbers by value, then text.
    for label in Curriculum(list(categories)).arms:
        chosen = np.array([category == label for category in categories])
        solved = scores[chosen] >= SOLVED
        accuracy, count = float(solved.mean()), int(chosen.sum())
        low, high = wilson_interval(accuracy, count)
        passed = {
            k: float(np.mean([pass_at_k(solved.shape[1], int(c), k) for c in solved.sum(axis=1)]))
            for k in ks
        }
        levels.append(
            LevelResult(
                label,
                count,
                accuracy,
                low,
                high,
                passed,
                float(lengths[chosen].mean()),
                float(finished[chosen].mean()),
                float(well_formed[chosen].mean()),
            )
        )
    return levels
