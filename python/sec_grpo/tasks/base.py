"""What every task has in common: rows, verdicts and the reward function.

A task makes problems of a chosen level, states them as prompts and judges answers. Terms: a
*level* is the integer difficulty of a problem (one curriculum arm per level); the *truth* is what
the `ground_truth` column holds for a row.
"""

from __future__ import annotations

import logging
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import datasets

    from sec_grpo.tasks.pool import VerifierPool

Row = dict[str, Any]

# Draws without a new problem after which a level of unknown size counts as exhausted.
_DRAWS_BEFORE_REPEATING = 1000

# How the reason starts where `verify` came to no verdict.
NOT_VERIFIED = "not verified: "
_MAX_REASON = 500
_log = logging.getLogger(__name__)


class Verdict(NamedTuple):
    """The judgement of one answer.

    Attributes:
        score: 0 (wrong) to 1 (right).
        reason: why, in a few words; "right" for a full score.
        well_formed: whether an answer in the asked format was found, right or wrong.
    """

    score: float
    reason: str
    well_formed: bool


class Task(ABC):
    """A family of problems with levels, a generator and a verifier.

    A subclass sets `name`, `levels` and, where it has them, `held_out_levels` and `level_range`,
    and implements `draw`, `prompt` and `verify`. Tasks hold no state: one instance may be shared.

    Attributes:
        name: the name used in the registry and in the `task` column.
        levels: the levels trained on, easiest first.
        held_out_levels: the levels only evaluated on.
        level_range: lowest and highest level `generate` accepts; None: only the levels above.
        well_formed_reward: the training reward of a wrong answer in the right format.
        prompts_per_level, eval_prompts_per_level: how many problems of a level the command line
            makes; fewer where making one takes long.
    """

    name: str
    levels: tuple[int, ...]
    held_out_levels: tuple[int, ...] = ()
    level_range: tuple[int, int] | None = None
    well_formed_reward: float = 0.1
    prompts_per_level: int = 1000
    eval_prompts_per_level: int = 50

    @abstractmethod
    def draw(self, rng: random.Random, level: int) -> Row:
        """One problem of `level`: a row with at least `prompt` and `ground_truth`.

        All randomness must come from `rng`; rows of one task have the same columns.
        """

    @abstractmethod
    def prompt(self, problem: Any) -> str | list[dict[str, str]]:
        """The problem as the model sees it: a string, or a list of chat messages."""

    @abstractmethod
    def verify(self, text: str, truth: Any) -> Verdict:
        """Judge the completion `text` against `truth`.

        Never raises and takes bounded time and memory whatever `text` is; a `truth` that is not
        of this task's form raises ValueError.
        """

    def space(self, level: int) -> int | None:
        """How many different problems the level has; None where nobody counted."""
        return None

    def key(self, row: Row) -> Hashable:
        """What makes two rows the same problem (default: an equal prompt)."""
        return repr(row["prompt"])

    def generate(self, level: int, n: int, seed: int) -> list[Row]:
        """`n` rows of one level, the same for the same arguments on every machine.

        The rows are distinct until the level has no further problems; then they start to repeat.
        A smaller `n` gives a prefix of a larger one. Different seeds may share problems, and will
        where the level is small.

        Returns:
            Rows with columns `prompt`, `ground_truth`, `difficulty` (the level), `task` (the
            name) and whatever the task adds.

        Raises:
            ValueError: the level is not one the task can make, or `n` is below 1.
        """
        self._check_level(level)
        if n < 1:
            raise ValueError(f"n must be at least 1. Got {n}.")
        # Seeding with a string hashes it with SHA-512: independent of PYTHONHASHSEED.
        rng = random.Random(f"{self.name}/{level}/{seed}")
        space = self.space(level)
        rows: list[Row] = []
        seen: set[Hashable] = set()
        stale = 0
        while len(rows) < n:
            if len(seen) == space or (space is None and stale == _DRAWS_BEFORE_REPEATING):
                seen.clear()
            row = self.draw(rng, level)
            key = self.key(row)
            if key in seen:
                stale += 1
                continue
            stale = 0
            seen.add(key)
            rows.append({**row, "difficulty": level, "task": self.name})
        return rows

    def dataset(
        self, n_per_level: int, seed: int, levels: Sequence[int] | None = None
    ) -> datasets.Dataset:
        """`generate` for several levels, as one data set in the order of `levels`.

        Args:
            n_per_level: rows for each level.
            seed: passed to `generate`.
            levels: which levels; default `self.levels`. Pass `self.held_out_levels` to evaluate.
        """
        chosen = self.levels if levels is None else tuple(levels)
        if not chosen:
            raise ValueError(
                f"levels must name at least one level of task {self.name!r}. Got none."
            )
        import datasets

        rows = [row for level in chosen for row in self.generate(level, n_per_level, seed)]
        return datasets.Dataset.from_list(rows)

    @cached_property
    def reward(self) -> TaskReward:
        """The training reward: 1 right, `well_formed_reward` for a wrong answer in the right
        format, 0 otherwise."""
        return TaskReward(self, well_formed=self.well_formed_reward)

    @cached_property
    def accuracy(self) -> TaskReward:
        """The evaluation reward: 1 right, 0 otherwise."""
        return TaskReward(self, well_formed=0.0, name=f"{self.name}_accuracy")

    def _check_level(self, level: int) -> None:
        if self.level_range is not None:
            low, high = self.level_range
            allowed = f"an integer from {low} to {high}"
            valid = isinstance(level, int) and low <= level <= high
        else:
            known = (*self.levels, *self.held_out_levels)
            allowed = "one of " + ", ".join(map(str, known))
            valid = level in known
        if not valid or isinstance(level, bool):
            raise ValueError(f"level of task {self.name!r} must be {allowed}. Got {level!r}.")


class TaskReward:
    """A task's verdicts as a reward function in TRL's signature.

    reward = max(correct * score, well_formed if the answer is well formed else 0).

    The defaults are the rewards of arXiv 2505.14970 in training (1 / 0.1 / 0); its tests use
    `well_formed=0`.

    An answer on which `verify` raises although it can judge another against the same truth gets
    0, and a warning is logged; with `workers`, also one on which it hangs, crashes or exhausts
    memory, and their share of a batch is logged as `rewards/{name}/not_verified`.

    Args:
        task: whose `verify` judges the answers.
        correct: the reward of a full score.
        well_formed: the reward of a wrong answer in the right format; 0 <= well_formed <= correct.
        name: becomes `__name__`, under which trainers log the reward.
        workers: processes that verify, for slow or unsafe verifiers; 0: this one. See
            `sec_grpo.tasks.pool.VerifierPool`.
        time_limit: seconds of one answer in a worker.
        memory_limit: bytes that one answer may take in a worker.
        progress: show a bar on stderr while workers take more than a second for a batch.

    Raises:
        ValueError: the rewards are not as above, or `workers` or a limit is out of range.
        TypeError: with `workers`, the task cannot be pickled.
    """

    def __init__(
        self,
        task: Task,
        correct: float = 1.0,
        well_formed: float = 0.1,
        name: str | None = None,
        *,
        workers: int = 0,
        time_limit: float = 1.0,
        memory_limit: int = 1 << 30,
        progress: bool = False,
    ) -> None:
        if not (0.0 <= well_formed <= correct and math.isfinite(correct)):
            raise ValueError(
                "rewards must be finite with 0 <= well_formed <= correct. "
                f"Got correct={correct}, well_formed={well_formed}."
            )
        self.task = task
        self.correct = float(correct)
        self.well_formed = float(well_formed)
        self.__name__ = name or f"{task.name}_reward"
        self._progress = progress
        self._warned = False
        self._pool: VerifierPool | None = None
        if workers != 0:
            from sec_grpo.tasks.pool import VerifierPool

            self._pool = VerifierPool(
                task, workers, time_limit=time_limit, memory_limit=memory_limit
            )

    def __call__(
        self, prompts: Sequence[Any] | None, completions: Sequence[Any], **columns: Any
    ) -> list[float]:
        """One reward per completion.

        Args:
            prompts: not used; part of the signature.
            completions: strings, or lists of chat messages (the last assistant message counts).
            columns: the other columns, one value per completion, and what trainers add;
                `ground_truth` and `log_metric` are used.

        Raises:
            ValueError: `ground_truth` is absent, of another length, or not of the task's form
                (the message names the row).
            TypeError: a completion is neither a string nor a list of messages.
        """
        if "ground_truth" not in columns:
            raise ValueError(
                f"{self.__name__} needs a column 'ground_truth'. Got: "
                f"{', '.join(sorted(columns)) or 'no columns'}. Load the data with "
                "load_dataset_file, or rename the column that holds the answers."
            )
        truths = columns["ground_truth"]
        if len(truths) != len(completions):
            raise ValueError(
                f"{self.__name__} needs one ground_truth per completion. "
                f"Got {len(truths)} for {len(completions)} completions."
            )
        texts = [completion_text(completion) for completion in completions]
        if self._pool is None:
            verdicts = self._judged_here(texts, truths)
        else:
            verdicts = self._judged_by(self._pool, texts, truths, columns.get("log_metric"))
        return [self._reward(verdict) for verdict in verdicts]

    def _judged_here(self, texts: list[str], truths: Sequence[Any]) -> list[Verdict]:
        verdicts = []
        for row, (text, truth) in enumerate(zip(texts, truths, strict=True)):
            try:
                verdict = judge(self.task, text, truth)
            except Exception as error:
                raise ValueError(
                    f"{self.__name__} cannot judge row {row} with the truth {truth!r:.80}: "
                    f"{type(error).__name__}: {error}"
                ) from error
            if verdict.reason.startswith(NOT_VERIFIED):
                self._warn(row, text, verdict.reason)
            verdicts.append(verdict)
        return verdicts

    def _judged_by(
        self,
        pool: VerifierPool,
        texts: list[str],
        truths: Sequence[Any],
        log_metric: Callable[[str, float], None] | None,
    ) -> list[Verdict]:
        try:
            verdicts = pool.verify(texts, truths, progress=self._progress)
        except ValueError as error:
            raise ValueError(f"{self.__name__} cannot judge {error}") from error
        failed = [
            row for row, verdict in enumerate(verdicts) if verdict.reason.startswith(NOT_VERIFIED)
        ]
        if failed:
            self._warn(failed[0], texts[failed[0]], verdicts[failed[0]].reason)
        if log_metric is not None and verdicts:
            log_metric(f"rewards/{self.__name__}/not_verified", len(failed) / len(verdicts))
        return verdicts

    def _warn(self, row: int, text: str, reason: str) -> None:
        """Once, since a model that found such an answer repeats it."""
        if not self._warned:
            _log.warning(
                "%s gives 0 to an answer that was not verified, as to all such later: row %d "
                "(%.80r): %s",
                self.__name__,
                row,
                text[-80:],
                reason,
            )
        self._warned = True

    def _reward(self, verdict: Verdict) -> float:
        floor = self.well_formed if verdict.well_formed else 0.0
        return max(self.correct * verdict.score, floor)

    def __repr__(self) -> str:
        return (
            f"TaskReward({self.task.name!r}, correct={self.correct}, "
            f"well_formed={self.well_formed})"
        )


def judge(task: Task, text: str, truth: Any) -> Verdict:
    """`task.verify`, where an exception that `text` is to blame for is a score of 0.

    Whether it is to blame shows the empty text, judged against the same truth.

    Raises what `verify` raises for every text; TypeError for a result that is not a Verdict with a
    score from 0 to 1.
    """
    try:
        verdict = task.verify(text, truth)
    except MemoryError:
        raise
    except Exception as error:
        task.verify("", truth)
        return Verdict(0.0, f"{NOT_VERIFIED}{type(error).__name__}: {error}"[:_MAX_REASON], False)
    if not isinstance(verdict, Verdict) or not 0.0 <= verdict.score <= 1.0:
        raise TypeError(
            f"verify of task {task.name!r} must return a Verdict with a score from 0 to 1. "
            f"Got {verdict!r:.200}."
        )
    return verdict


def completion_text(completion: Any) -> str:
    """The text of a completion: the string itself, or the last assistant message's content.

    Content may be a string, None (a message with tool calls only) or a list of parts, whose text
    parts are joined. A message list without an assistant message gives "".
    """
    if isinstance(completion, str):
        return completion
    if not isinstance(completion, Sequence) or not all(isinstance(m, Mapping) for m in completion):
        raise TypeError(
            "a completion must be a string or a list of chat messages. "
            f"Got {type(completion).__name__}."
        )
    for message in reversed(completion):
        if message.get("role") == "assistant":
            content = message.get("content")
            if isinstance(content, str):
                return content
            parts = content or []
            return "".join(part.get("text") or "" for part in parts if isinstance(part, Mapping))
    return ""
