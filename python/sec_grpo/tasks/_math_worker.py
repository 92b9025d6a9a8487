"""What runs in the process that compares mathematical answers."""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import Any

# Dollars inside a box only say once more that this is mathematics; a full stop ends a sentence.
_DOLLAR = re.compile(r"(?<!\\)\$")
_EQUALS = re.compile(r"=|\\approx(?![A-Za-z])")
_ARITHMETIC = re.compile(
    r"(?:[0-9.+*/(){}^\s-]|\\(?:[dt]?frac|sqrt|cdot|times|pi|left|right)(?![A-Za-z]))+"
)
# Numbers further apart than this share of them are not rounded from each other.
_ROUNDING = 0.05


def equal(truth: str, answer: str) -> bool:
    """math-verify's judgement of two LaTeX answers, without its own limits (main thread only).

    An answer whose equation is false between numbers ("7 = 3") is not equal to either of them. What
    math-verify raises counts as not equal.
    """
    from math_verify import verify

    try:
        found = bool(verify(_parsed(truth), _parsed(answer), timeout_seconds=0))
        return found and not _is_false(answer)
    except MemoryError:
        raise
    except Exception:
        return False


def _is_false(answer: str) -> bool:
    """Whether sides of an equation are numbers, and other ones."""
    sides = _EQUALS.split(answer)
    values = [_value(side) for side in sides if _ARITHMETIC.fullmatch(side)]
    numbers = [value for value in values if value is not None]
    if len(numbers) < 2:
        return False
    return max(numbers) - min(numbers) > _ROUNDING * max(map(abs, numbers))


def _value(latex: str) -> float | None:
    try:
        return float(_parsed(latex)[0])
    except (IndexError, OverflowError, TypeError, ValueError):
        return None


@lru_cache(256)
def _parsed(latex: str) -> Any:
    """Kept because the samples of a prompt share its truth, and parsing takes most of the time.

    Read as a whole or not at all: by itself math-verify takes the last part that it can read, as
    the 1/2 of "7 or \\frac{1}{2}" and the 1/5 of "\\frac{7}{5}+\\frac{1}{5}i.".
    """
    from math_verify import LatexExtractionConfig, parse

    config = [LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False)]
    latex = _DOLLAR.sub("", latex).strip().removesuffix(".")
    return parse(f"\\boxed{{{latex}}}", config, extraction_mode="first_match", parsing_timeout=0)


def warm_up() -> None:
    """Import SymPy and fill its caches: the first comparison takes seconds."""
    logging.disable()
    equal(r"\frac{1}{2}+x", "x+0.5")
