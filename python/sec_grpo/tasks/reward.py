"""A task's verdicts as a reward function."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sec_grpo.tasks.base import NOT_VERIFIED, Task, Verdict, judge
from sec_grpo.tasks.pool import MEMORY_LIMIT, TIME_LIMIT, SharedPool, VerifierPool, pool_for

_log = logging.getLogger(__name__)


class TaskReward:
    """A task's verdicts as a reward function in TRL's signature.

    A verdict with a score above 0 is paid max(correct * score, well_formed); one with the score 0
    is paid `well_formed` where an answer in the asked format was found, `malformed` elsewhere.

    The defaults are the rewards of arXiv 2505.14970 in training (1 / 0.1 / 0); its tests use
    `well_formed=0`.

    An answer on which `verify` raises although it can judge another against the same truth counts
    as malformed, and a warning is logged; with `workers`, also one on which it hangs, crashes or
    exhausts memory, and their share of a batch is logged as `rewards/{name}/not_verified`.

    Args:
        task: whose `verify` judges the answers.
        correct: the reward of a full score.
        well_formed: the reward of a wrong answer in the right format.
        malformed: the reward where there is none; malformed <= well_formed <= correct.
        name: becomes `__name__`, under which trainers log the reward.
        partial: pay a score between 0 and 1 in proportion; False: as a wrong answer. None: as the
            task's `partial` says.
        workers: processes that verify; 0: this one. None: 0, or for a task that says `slow` or with
            a limit as many as `sec_grpo.tasks.pool.default_workers` allows. See `VerifierPool`
            there.
        time_limit: seconds of one answer in a worker; None: 1.
        memory_limit: bytes that one answer may take in a worker; None: 1 GiB.
        progress: show a bar on stderr while workers take more than a second for a batch.

    Raises:
        ValueError: the rewards are not as above, `workers` or a limit is out of range, or there is
            a limit but no worker.
        TypeError: with `workers`, the task cannot be pickled.
    """

    def __init__(
        self,
        task: Task,
        correct: float = 1.0,
        well_formed: float = 0.1,
        malformed: float = 0.0,
        name: str | None = None,
        *,
        partial: bool | None = None,
        workers: int | None = None,
        time_limit: float | None = None,
        memory_limit: int | None = None,
        progress: bool = False,
    ) -> None:
        ordered = malformed <= well_formed <= correct
        if not (ordered and math.isfinite(malformed) and 0.0 < correct < math.inf):
            raise ValueError(
                "rewards must be finite with malformed <= well_formed <= correct and 0 < correct. "
                f"Got correct={correct}, well_formed={well_formed}, malformed={malformed}."
            )
        self.task = task
        self.correct = float(correct)
        self.well_formed = float(well_formed)
        self.malformed = float(malformed)
        self.partial = task.partial if partial is None else partial
        self.__name__ = name or f"{task.name}_reward".replace("/", "_")
        self._progress = progress
        self._warned = False
        self._pool: VerifierPool | SharedPool | None = None
        limited = (time_limit, memory_limit) != (None, None)
        limits: dict[str, Any] = {
            "time_limit": TIME_LIMIT if time_limit is None else time_limit,
            "memory_limit": MEMORY_LIMIT if memory_limit is None else memory_limit,
        }
        if workers is None and (task.slow or limited):
            self._pool = pool_for(task, **limits)
        elif workers:
            self._pool = VerifierPool(task, workers, **limits)
        elif limited:
            raise ValueError(
                "time_limit and memory_limit hold in worker processes only: leave workers out or "
                f"raise it. Got workers={workers}."
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
        return [
            self.paid(verdict)
            for verdict in self.verdicts(completions, columns.get("ground_truth"), columns=columns)
        ]

    def verdicts(
        self,
        completions: Sequence[Any],
        truths: Sequence[Any] | None,
        *,
        columns: Mapping[str, Any] | None = None,
    ) -> list[Verdict]:
        """The verdicts that `__call__` pays for, one for each completion.

        Args:
            completions: strings, or lists of chat messages.
            truths: one for each completion.
            columns: those that `__call__` got; `log_metric` is used, the names are for messages.

        Raises as `__call__`.
        """
        columns = columns or {}
        if truths is None:
            raise ValueError(
                f"{self.__name__} needs a column 'ground_truth'. Got: "
                f"{', '.join(sorted(columns)) or 'no columns'}. Load the data with "
                "load_dataset_file, or rename the column that holds the answers."
            )
        if len(truths) != len(completions):
            raise ValueError(
                f"{self.__name__} needs one ground_truth per completion. "
                f"Got {len(truths)} for {len(completions)} completions."
            )
        texts = [completion_text(completion) for completion in completions]
        if self._pool is None:
            return self._judged_here(texts, truths)
        return self._judged_by(self._pool, texts, truths, columns.get("log_metric"))

    def paid(self, verdict: Verdict) -> float:
        """The reward of a verdict."""
        floor = self.well_formed if verdict.well_formed else self.malformed
        score = verdict.score if self.partial else float(verdict.right)
        return max(self.correct * score, floor) if score > 0.0 else floor

    def close(self) -> None:
        """End the worker processes, if there are any; the next call starts others."""
        if self._pool is not None:
            self._pool.close()

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
        pool: VerifierPool | SharedPool,
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
                "%s takes an answer that was not verified for none, as all such later: row %d "
                "(%.80r): %s",
                self.__name__,
                row,
                text[-80:],
                reason,
            )
        self._warned = True

    def __repr__(self) -> str:
        return (
            f"TaskReward({self.task.name!r}, correct={self.correct}, "
            f"well_formed={self.well_formed}, malformed={self.malformed})"
        )


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
