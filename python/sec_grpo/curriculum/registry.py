"""Strategies by name, for configuration files and command lines."""

from __future__ import annotations

import dataclasses
from typing import Any

from sec_grpo.curriculum.dump import DUMP
from sec_grpo.curriculum.learnability import TSCL, Learnability
from sec_grpo.curriculum.ordered import Ordered, Reverse
from sec_grpo.curriculum.random import Random
from sec_grpo.curriculum.sec import SEC
from sec_grpo.curriculum.strategy import Strategy
from sec_grpo.curriculum.weights import StaticWeights

_STRATEGIES: dict[str, type[Strategy]] = {
    "dump": DUMP,
    "learnability": Learnability,
    "ordered": Ordered,
    "random": Random,
    "reverse": Reverse,
    "sec": SEC,
    "static_weights": StaticWeights,
    "tscl": TSCL,
}


def strategy_names() -> tuple[str, ...]:
    """The names that `get_strategy` knows."""
    return tuple(_STRATEGIES)


def get_strategy(name: str, **parameters: Any) -> Strategy:
    """The built-in strategy of that name, in any case, with the parameters given.

    Raises ValueError for an unknown name or parameter and for a missing one, listing what there
    is, and what the strategy raises for values that it refuses.
    """
    strategy = _STRATEGIES.get(name.lower()) if isinstance(name, str) else None
    if strategy is None:
        known = ", ".join(_STRATEGIES)
        raise ValueError(f"name must be one of {known}; got {name!r}")
    fields = {field.name: field for field in dataclasses.fields(strategy)}  # type: ignore[arg-type]
    known = ", ".join(fields) or "none"
    unknown = sorted(set(parameters) - set(fields))
    if unknown:
        raise ValueError(
            f"unknown parameters of strategy {name.lower()}: {', '.join(unknown)}; it has: {known}"
        )
    missing = [
        key
        for key, field in fields.items()
        if field.default is dataclasses.MISSING and key not in parameters
    ]
    if missing:
        raise ValueError(
            f"strategy {name.lower()} needs parameters: {', '.join(missing)}; it has: {known}"
        )
    return strategy(**parameters)
