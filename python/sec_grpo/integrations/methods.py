"""Whether another trainer's class still has the methods that an adapter overrides or calls."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

Arguments = tuple[str, ...]
"""names after self (or ctx); a last "*" stands for any that follow"""


def lacking(kind: type, needed: Mapping[str, Arguments]) -> str | None:
    """What of the methods the class lacks or takes other arguments for, in words, or None."""
    for name, arguments in needed.items():
        method: Any = getattr(kind, name, None)
        if method is None:
            return f"{kind.__name__} has no {name}"
        if reason := other_arguments(method, arguments):
            return f"{kind.__name__}.{name} {reason}"
    return None


def other_arguments(function: Callable[..., Any], needed: Arguments) -> str | None:
    """The function's arguments where they are not the needed ones, in words, or None."""
    found = tuple(inspect.signature(function).parameters)[1:]
    known = needed[:-1] if needed[-1:] == ("*",) else needed
    if found[: len(known)] == known and (known is not needed or len(found) == len(known)):
        return None
    return f"takes ({', '.join(found)}) where ({', '.join(needed)}) is expected"
