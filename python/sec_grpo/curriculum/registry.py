"""Strategies by name, for configuration files and command lines."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

from sec_grpo.curriculum.adarft import AdaRFT
from sec_grpo.curriculum.beta_thompson import BetaThompson
from sec_grpo.curriculum.composed import Composed
from sec_grpo.curriculum.dump import DUMP
from sec_grpo.curriculum.e2h import E2HGaussian
from sec_grpo.curriculum.floor import Floor
from sec_grpo.curriculum.learnability import Learnability
from sec_grpo.curriculum.ordered import Ordered, Reverse
from sec_grpo.curriculum.pac import PAC
from sec_grpo.curriculum.plr import PLR
from sec_grpo.curriculum.random import Random
from sec_grpo.curriculum.sec import SEC
from sec_grpo.curriculum.staged import Staged
from sec_grpo.curriculum.strategy import Strategy
from sec_grpo.curriculum.tscl import TSCL
from sec_grpo.curriculum.weights import StaticWeights

_STRATEGIES: dict[str, type[Strategy]] = {
    "adarft": AdaRFT,
    "beta_thompson": BetaThompson,
    "composed": Composed,
    "dump": DUMP,
    "e2h_gaussian": E2HGaussian,
    "learnability": Learnability,
    "ordered": Ordered,
    "pac": PAC,
    "plr": PLR,
    "random": Random,
    "reverse": Reverse,
    "sec": SEC,
    "staged": Staged,
    "static_weights": StaticWeights,
    "tscl": TSCL,
}


def strategy_names() -> tuple[str, ...]:
    """The names that `get_strategy` knows."""
    return tuple(_STRATEGIES)


def register_strategy(name: str, strategy: type[Strategy]) -> None:
    """Make `get_strategy(name)` return a strategy of one's own.

    Raises:
        TypeError: `strategy` is not a subclass of Strategy that is a dataclass.
        ValueError: the name is empty, holds ":" or capitals, or is taken.
    """
    if not isinstance(name, str) or not name or ":" in name or name != name.lower():
        raise ValueError(f"name must be a non-empty lower-case name without ':', got {name!r}")
    if name in _STRATEGIES and _STRATEGIES[name] is not strategy:
        raise ValueError(f"strategy {name!r} is registered already; choose another name")
    _check_class(strategy, f"strategy of {name!r}")
    _STRATEGIES[name] = strategy


def get_strategy(name: str, *, floor: float | None = None, **parameters: Any) -> Strategy:
    """The strategy of that name, in any case, with the parameters given.

    Args:
        name: a built-in or registered name, or the dotted path of a class, "package.module:Class".
        floor: least probability of every arm; wraps the strategy in `Floor`.
        parameters: of the strategy.

    Raises ValueError for an unknown name or parameter and for a missing one, listing what there
    is, and what the strategy raises for values that it refuses.
    """
    strategy = _class_of(name)
    fields = {field.name: field for field in dataclasses.fields(strategy)}  # type: ignore[arg-type]
    known = ", ".join([*fields, "floor"])
    shown = name if ":" in name else name.lower()
    unknown = sorted(set(parameters) - set(fields))
    if unknown:
        raise ValueError(
            f"unknown parameters of strategy {shown}: {', '.join(unknown)}; it has: {known}"
        )
    missing = [
        key
        for key, field in fields.items()
        if field.default is field.default_factory is dataclasses.MISSING and key not in parameters
    ]
    if missing:
        raise ValueError(
            f"strategy {shown} needs parameters: {', '.join(missing)}; it has: {known}"
        )
    made = strategy(**parameters)
    return made if floor is None else Floor(made, floor)


def _class_of(name: Any) -> type[Strategy]:
    if isinstance(name, str) and ":" in name:
        module, _, attribute = name.partition(":")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(
                f"name {name!r} is not the path of a strategy, 'package.module:Class': {error}"
            ) from error
        _check_class(found, f"name {name!r}")
        return found
    strategy = _STRATEGIES.get(name.lower()) if isinstance(name, str) else None
    if strategy is None and isinstance(name, str) and name.lower() in ("alp_gmm", "alpgmm"):
        raise ValueError(
            "alp_gmm chooses continuous knobs of a task generator, not arms: use "
            "sec_grpo.curriculum.ALPGMM(low, high)"
        )
    if strategy is None:
        raise ValueError(
            f"name must be one of {', '.join(_STRATEGIES)}, or 'package.module:Class'; got {name!r}"
        )
    return strategy


def _check_class(value: Any, what: str) -> None:
    is_strategy = isinstance(value, type) and issubclass(value, Strategy)
    if not is_strategy or not dataclasses.is_dataclass(value):
        raise TypeError(
            f"{what} must be a subclass of sec_grpo.Strategy that is a dataclass, got {value!r:.80}"
        )
