"""What every task has in common: levels, rows and verdicts.

A task makes problems of a chosen level, states them as prompts and judges answers. Terms: a
*level* is the integer difficulty of a problem (one curriculum arm per level); the *truth* is what
the `ground_truth` column holds for a row.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from sec_grpo.tasks.progress import progress_bar

if TYPE_CHECKING:
    import datasets

    from sec_grpo.tasks.reward import TaskReward

Row = dict[str, Any]

# Draws without a new problem after which a level of unknown size counts as exhausted.
_DRAWS_BEFORE_REPEATING = 1000

# How the reason starts where `verify` came to no verdict.
NOT_VERIFIED = "not verified: "
_MAX_REASON = 500


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

    @property
    def right(self) -> bool:
        """Whether the score is full."""
        return self.score >= 1.0


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
        partial: training pays a score between 0 and 1 in proportion; False: like 0.
        slow: `verify` may take long; rewards then verify in worker processes by default.
        prompts_per_level, eval_prompts_per_level: how many problems of a level the command line
            makes; fewer where making one takes long.
    """

    name: str
    levels: tuple[int, ...]
    held_out_levels: tuple[int, ...] = ()
    level_range: tuple[int, int] | None = None
    well_formed_reward: float = 0.1
    partial: bool = True
    slow: bool = False
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

    def at_once(self, text: str, truth: Any) -> Verdict | None:
        """What `verify` would say, where that takes microseconds; None where it takes longer.

        A slow task that implements this has only the other answers sent to worker processes.
        """
        return None

    def warm_up(self) -> None:  # noqa: B027 - few tasks need it
        """Import and prepare what `verify` needs, so that the time of it counts for no answer.

        Called once in a process that verifies. It has no limit on time.
        """

    def space(self, level: int) -> int | None:
        """How many different problems the level has; None where nobody counted."""
        return None

    def key(self, row: Row) -> Hashable:
        """What makes two rows the same problem (default: an equal prompt)."""
        return repr(row["prompt"])

    def version(self) -> str | None:
        """What generated rows depend on besides the class: a generator's version, settings.

        Rows of a task that says so may be kept on disk; None: they are not.
        """
        return None

    def generate(
        self,
        level: int,
        n: int,
        seed: int,
        *,
        exclude: Iterable[Row] = (),
        workers: int | None = None,
        progress: bool = False,
    ) -> list[Row]:
        """`n` rows of one level, the same for the same arguments on every machine.

        The rows are distinct until the level has no further problems; then they start to repeat.
        A smaller `n` gives a prefix of a larger one. Different seeds may share problems, and will
        where the level is small.

        Args:
            level: which.
            n: how many rows.
            seed: of the problems.
            exclude: rows whose problems must not come, such as those trained on.
            workers: processes, for a task whose problems are made apart (`NumberedTask`); None: as
                many as there are processors where it takes long. The rows do not depend on it.
            progress: show a bar on stderr when it takes more than a second.

        Returns:
            Rows with columns `prompt`, `ground_truth`, `difficulty` (the level), `task` (the
            name) and whatever the task adds.

        Raises:
            ValueError: the level is not one the task can make, `n` is below 1, or all its problems
                are in `exclude`.
        """
        self._check_level(level)
        for name, count in (("n", n), ("workers", 1 if workers is None else workers)):
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ValueError(f"{name} must be an integer of at least 1. Got {count!r}.")
        excluded = {self.key(row) for row in exclude if row.get("difficulty", level) == level}
        label = f"{self.name}, level {level}"
        rows: list[Row] = []
        with progress_bar(label, n, shown=progress) as advance:
            for row in self._distinct(self._problems(level, seed, n, workers), level, excluded):
                rows.append({**row, "difficulty": level, "task": self.name})
                advance(len(rows))
                if len(rows) == n:
                    break
        return rows

    def _problems(self, level: int, seed: int, n: int, workers: int | None) -> Iterator[Row]:
        """Problems of a level without end; about `n` of them are going to be taken."""
        # Seeding with a string hashes it with SHA-512: independent of PYTHONHASHSEED.
        rng = random.Random(f"{self.name}/{level}/{seed}")
        while True:
            yield self.draw(rng, level)

    def _distinct(
        self, problems: Iterator[Row], level: int, excluded: set[Hashable]
    ) -> Iterator[Row]:
        """The problems without repetitions, until there are no others."""
        space = self.space(level)
        seen = set(excluded)
        stale = 0
        for row in problems:
            if len(seen) == space or (space is None and stale == _DRAWS_BEFORE_REPEATING):
                if len(seen) == len(excluded):
                    raise ValueError(
                        f"exclude holds every problem of level {level} of task {self.name!r}"
                    )
                seen = set(excluded)
                stale = 0
            key = self.key(row)
            if key in seen:
                stale += 1
                continue
            stale = 0
            seen.add(key)
            yield row

    def dataset(
        self,
        n_per_level: int,
        seed: int,
        levels: Sequence[int] | None = None,
        *,
        exclude: Iterable[Row] = (),
        workers: int | None = None,
        progress: bool = False,
        cache: bool = False,
    ) -> datasets.Dataset:
        """`generate` for several levels, as one data set in the order of `levels`.

        Args:
            n_per_level: rows for each level.
            seed, exclude, workers, progress: passed to `generate`.
            levels: which levels; default `self.levels`. Pass `self.held_out_levels` to evaluate.
            cache: keep the rows of a task with a `version` in the cache folder of `datasets`, and
                take them from there the next time.
        """
        chosen = self.levels if levels is None else levels
        if not isinstance(chosen, Sequence) or isinstance(chosen, str) or not chosen:
            raise ValueError(
                f"levels must be a list of at least one level of task {self.name!r}. "
                f"Got {levels!r}."
            )
        import datasets

        from sec_grpo.tasks.cache import cached

        exclude = list(exclude)
        rows = []
        for level in chosen:

            def generate(level: int = level) -> list[Row]:
                return self.generate(
                    level, n_per_level, seed, exclude=exclude, workers=workers, progress=progress
                )

            kept = cache and not exclude
            rows += cached(self, level, n_per_level, seed, generate) if kept else generate()
        return datasets.Dataset.from_list(rows)

    @cached_property
    def reward(self) -> TaskReward:
        """The training reward: 1 right, `well_formed_reward` for a wrong answer in the right
        format, 0 otherwise; a score between 0 and 1 is paid if `partial` says so."""
        from sec_grpo.tasks.reward import TaskReward

        return TaskReward(self, well_formed=self.well_formed_reward)

    @cached_property
    def accuracy(self) -> TaskReward:
        """The evaluation reward: 1 right (a full score), 0 otherwise."""
        from sec_grpo.tasks.reward import TaskReward

        name = f"{self.name}_accuracy".replace("/", "_")
        return TaskReward(self, well_formed=0.0, name=name, partial=False)

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
