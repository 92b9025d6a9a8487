"""What an evaluation reports: mean rewards, in all and per category."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


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
