"""The curriculum that an adapter's settings stand for, over the rows of another trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from sec_grpo.curriculum import Curriculum
from sec_grpo.curriculum.features import read_categories
from sec_grpo.trainer.prompts import Category, used_category
from sec_grpo.trainer.setup import make_curriculum


@dataclass(frozen=True)
class Labels:
    """The category of each row, as `make_curriculum` takes it."""

    categories: Sequence[Any]

    def __len__(self) -> int:
        return len(self.categories)


@dataclass(frozen=True)
class Pace:
    """How long the run is, as `make_curriculum` asks for it; max_steps -1 where nobody knows."""

    max_steps: int = -1
    updates_per_generation: float = 1


def curriculum_over(
    curriculum: Any,
    category: Category,
    rows: Any,
    *,
    seed: int,
    pace: Pace,
    rows_name: str = "train_dataset",
) -> Curriculum:
    """The curriculum over the rows, which are a sequence of dicts or a data set.

    Args:
        curriculum: a strategy, its name, a dict with `name` and its parameters, None for `random`,
            or a `Curriculum` over as many prompts, for which category is not read.
        rows_name: what errors call the rows.

    Raises:
        ValueError, TypeError: there are no rows or they have no such category, or the strategy is
            unknown or refuses its parameters.
    """
    if isinstance(curriculum, Curriculum):
        labels = Labels(range(len(rows)))
    else:
        used = used_category(category, rows, has_strategy=curriculum is not None)
        labels = Labels(_labels(used, rows, rows_name))
    return make_curriculum(curriculum, cast(Any, labels), cast(Any, pace), seed)


def _labels(category: Category, rows: Any, rows_name: str) -> Sequence[Any]:
    if len(rows) == 0:
        raise ValueError(f"{rows_name} is empty: there is no prompt to train on")
    if category is None:
        return ["all"] * len(rows)
    try:
        return read_categories(rows, cast(Any, category)).labels
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"category={category!r:.60} does not fit {rows_name}: {error}. category must be a "
            "column, a list of columns, or a function of the row; None trains without arms"
        ) from error
