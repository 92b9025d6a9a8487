"""Rows of several tasks in one data set, each judged by its own task."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sec_grpo.tasks.loader import task_of
from sec_grpo.tasks.reward import TaskReward

if TYPE_CHECKING:
    import datasets


# The columns that hold truths.
_TRUTHS = ("ground_truth_json", "ground_truth")


def mix(sources: Sequence[datasets.Dataset]) -> datasets.Dataset:
    """One data set of the rows of several, in order.

    Columns: `prompt`; `ground_truth`, or with several tasks `ground_truth_json`, since their truths
    are of different types; `task`, that judges the row; `type` (the source's, or the task);
    `difficulty`, where every source has it. With ("type", "difficulty") as the category the arms
    are those of the three-puzzle runs of arXiv 2505.14970.

    Raises:
        ValueError: no source, a source without ground truth or whose task is unknown, prompts that
            are text in one source and chat messages in another, a difficulty in some only or of
            several kinds, or a truth that JSON cannot hold.
    """
    import datasets

    if not sources:
        raise ValueError("sources must hold at least one data set, got none")
    has_difficulty = {"difficulty" in source.column_names for source in sources}
    if len(has_difficulty) > 1:
        raise ValueError(
            "sources must all have a column 'difficulty', or none: add it to the others, or remove "
            "it"
        )
    rows = []
    for number, source in enumerate(sources):
        if not set(_TRUTHS) & set(source.column_names):
            raise ValueError(f"source {number} has no column 'ground_truth'")
        for row in source:
            task = task_of(row)
            mixed = {
                "prompt": row["prompt"],
                "ground_truth": truth_of(row),
                "task": task,
                "type": row.get("type") or task,
            }
            if has_difficulty == {True}:
                mixed["difficulty"] = row["difficulty"]
            rows.append(mixed)
    if len({isinstance(row["prompt"], str) for row in rows}) > 1:
        raise ValueError(
            "sources must agree on prompts: text in some and chat messages in others do not mix; "
            "use tasks of one kind"
        )
    for column in ("difficulty", "type"):
        kinds = {isinstance(row.get(column), str) for row in rows if row.get(column) is not None}
        if len(kinds) > 1:
            raise ValueError(
                f"sources must agree on the column {column!r}, which is text in some and a number "
                "in others: write it as text everywhere"
            )
    if len({row["task"] for row in rows}) > 1:
        for row in rows:
            row["ground_truth_json"] = _as_json(row.pop("ground_truth"))
    return datasets.Dataset.from_list(rows)


def _as_json(truth: Any) -> str:
    try:
        return json.dumps(truth)
    except TypeError as error:
        raise ValueError(
            f"a truth of a mixed data set must be what JSON can hold. Got {truth!r:.80}."
        ) from error


def truth_of(row: Mapping[str, Any]) -> Any:
    """The truth of a row, from either of the columns that hold it; ValueError without them."""
    if row.get("ground_truth_json") is not None:
        return json.loads(row["ground_truth_json"])
    if row.get("ground_truth") is None:
        raise ValueError(
            "a row needs a column 'ground_truth' or 'ground_truth_json' with a value. Got: "
            f"{', '.join(map(str, row)) or 'no columns'}."
        )
    return _without_none(row["ground_truth"])


def _without_none(truth: Any) -> Any:
    """A truth without the fields that only other rows of its table have."""
    if isinstance(truth, Mapping):
        return {name: value for name, value in truth.items() if value is not None}
    return truth


class OneOfSeveral:
    """The reward of one task for its own rows of a mixed data set, None for the others.

    A function for each task, given to the trainer together, logs every task apart.

    Args:
        reward: the task's, `task.reward` or `task.accuracy`.
        task: the name under which it is registered, where that is not its own.
    """

    def __init__(self, reward: TaskReward, task: str | None = None) -> None:
        self.reward = reward
        self._task = task or reward.task.name
        self.__name__ = reward.__name__

    def __call__(
        self, prompts: Sequence[Any] | None, completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """One reward for each completion of the task's rows, None for the rest.

        Args:
            prompts: not used; part of the signature.
            completions: strings, or lists of chat messages.
            columns: `task` or `data_source`, and `ground_truth` or `ground_truth_json`; and
                `log_metric` where the trainer gives it.

        Raises what the task's reward raises for the truths of its rows, and ValueError without
        the columns.
        """
        own = [i for i, name in enumerate(self._tasks(columns)) if name == self._task]
        rewards: list[float | None] = [None] * len(completions)
        if own:
            truths = self._truths(columns, own)
            found = self.reward(
                None,
                [completions[i] for i in own],
                ground_truth=truths,
                log_metric=columns.get("log_metric"),
            )
            for i, value in zip(own, found, strict=True):
                rewards[i] = value
        return rewards

    def _truths(self, columns: Mapping[str, Any], rows: list[int]) -> list[Any]:
        names = [name for name in _TRUTHS if columns.get(name) is not None]
        if not names:
            raise ValueError(
                f"{self.__name__} needs a column 'ground_truth' or 'ground_truth_json'; got "
                f"{', '.join(sorted(columns)) or 'no columns'}"
            )
        return [truth_of({name: columns[name][i] for name in names}) for i in rows]

    def _tasks(self, columns: Mapping[str, Any]) -> list[str]:
        for name in ("task", "data_source"):
            if columns.get(name) is not None:
                known = {value: task_of({name: value}) for value in set(columns[name])}
                return [known[value] for value in columns[name]]
        raise ValueError(
            "rows of several tasks need a column 'task' or 'data_source' that says which is whose; "
            f"got {', '.join(sorted(columns)) or 'no columns'}"
        )
