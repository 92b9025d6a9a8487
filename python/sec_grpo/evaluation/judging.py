"""What an evaluation takes for a judge: tasks, reward functions, or the tasks of the rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sec_grpo.errors import RewardError
from sec_grpo.evaluation.journal import Sample
from sec_grpo.tasks import Task, TaskReward, task_of
from sec_grpo.tasks import get as get_task
from sec_grpo.tasks.base import NOT_VERIFIED
from sec_grpo.tasks.mixture import truth_of
from sec_grpo.trainer.rewards import RewardFunctions

Row = Mapping[str, Any]


class Judgement(NamedTuple):
    """What a judge says of one completion.

    Attributes:
        score: the verdict's score, or the reward.
        reason: of the verdict; empty for a reward function.
        well_formed: whether an answer in the asked format was found; None where nobody looked.
        failed: whether the judge came to no verdict.
        rewards: every function's own reward, by its name.
    """

    score: float
    reason: str = ""
    well_formed: bool | None = None
    failed: bool = False
    rewards: Mapping[str, float | None] = {}


Judge = Callable[[Sequence[Sample], Sequence[Row]], list[Judgement]]


def judge_of(judge: Any, rows: Sequence[Row]) -> Judge:
    """The judge that `evaluate`'s argument stands for.

    Args:
        judge: a task, a `TaskReward`, a reward function in TRL's signature or several, or None:
            the tasks that the rows name.
        rows: those to be judged. Truths that a task cannot judge any answer against are found
            here, before anything is sampled; those of a slow task without `at_once`, when an
            answer is judged.

    Raises ValueError: the rows name no task, or a truth is at fault (the message names its row).
    """
    if judge is None:
        try:
            names = dict.fromkeys(task_of(row) for row in rows)
        except ValueError as error:
            raise ValueError(f"a judge is needed (--reward): {error}") from error
        return TaskJudge({name: TaskReward(get_task(name)) for name in names}, rows)
    if isinstance(judge, Task):
        judge = TaskReward(judge)
    if isinstance(judge, TaskReward):
        return TaskJudge({judge.task.name: judge}, rows)
    return FunctionJudge(judge)


class TaskJudge:
    """Judges every row by its task; slow ones in worker processes.

    Args:
        rewards: by the names of the tasks; one alone judges every row. Their verdicts are used,
            under their limits, not what they pay.
        rows: the rows, each with `ground_truth` or `ground_truth_json`.
    """

    def __init__(self, rewards: Mapping[str, TaskReward], rows: Sequence[Row]) -> None:
        self._rewards = dict(rewards)
        self._only = next(iter(rewards)) if len(rewards) == 1 else None
        self.held_out: list[bool] = []
        """of each row, whether its task only evaluates on its level"""
        for number, row in enumerate(rows):
            task = self._rewards[self._name(row)].task
            try:
                truth = truth_of(row)
                # What takes long is not done here, without limits and for every row.
                if not task.slow or task.at_once("", truth) is not None:
                    task.verify("", truth)
            except Exception as error:
                raise ValueError(f"row {number}: {error}") from error
            self.held_out.append(str(row.get("difficulty")) in map(str, task.held_out_levels))

    def _name(self, row: Row) -> str:
        return self._only or task_of(row)

    def __call__(self, samples: Sequence[Sample], rows: Sequence[Row]) -> list[Judgement]:
        found: list[Judgement] = [Judgement(0.0)] * len(samples)
        names = list(map(self._name, rows))
        for name in dict.fromkeys(names):
            own = [i for i, other in enumerate(names) if other == name]
            verdicts = self._rewards[name].verdicts(
                [samples[i].text for i in own], [truth_of(rows[i]) for i in own]
            )
            for i, verdict in zip(own, verdicts, strict=True):
                failed = verdict.reason.startswith(NOT_VERIFIED)
                found[i] = Judgement(verdict.score, verdict.reason, verdict.well_formed, failed)
        return found


class FunctionJudge:
    """Judges by reward functions, whose sum is the score; one that raises scores that row 0."""

    def __init__(self, functions: Any) -> None:
        self._functions = RewardFunctions(functions, None)

    def __call__(self, samples: Sequence[Sample], rows: Sequence[Row]) -> list[Judgement]:
        try:
            return self._judged(samples, rows)
        except RewardError:
            # Which row is at fault, only asking for each apart shows.
            return [self._alone(sample, row) for sample, row in zip(samples, rows, strict=True)]

    def _alone(self, sample: Sample, row: Row) -> Judgement:
        try:
            return self._judged([sample], [row])[0]
        except RewardError as error:
            return Judgement(0.0, f"the judge raised: {error}", None, True)

    def _judged(self, samples: Sequence[Sample], rows: Sequence[Row]) -> list[Judgement]:
        completions = [
            sample.text
            if isinstance(row["prompt"], str)
            else [{"role": "assistant", "content": sample.text}]
            for sample, row in zip(samples, rows, strict=True)
        ]
        names = dict.fromkeys(name for row in rows for name in row if name != "prompt")
        total, each = self._functions(
            [row["prompt"] for row in rows],
            completions,
            [sample.ids for sample in samples],
            {name: [row.get(name) for row in rows] for name in names},
        )
        return [
            Judgement(
                float(score),
                rewards={
                    name: None if value != value else float(value)
                    for name, value in zip(self._functions.names, values, strict=True)
                },
            )
            for score, values in zip(total, each, strict=True)
        ]
