"""What runs in the process that compares mathematical answers."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any


def equal(truth: str, answer: str) -> bool:
    """math-verify's judgement of two LaTeX answers, without its own limits (main thread only).

    What it raises counts as not equal.
    """
    from math_verify import verify

    try:
        return bool(verify(_parsed(truth), _parsed(answer), timeout_seconds=0))
    except MemoryError:
        raise
    except Exception:
        return False


@lru_cache(256)
def _parsed(latex: str) -> Any:
    """Kept because the samples of a prompt share its truth, and parsing takes most of the time."""
    from math_verify import LatexExtractionConfig, parse

    config = [LatexExtractionConfig(boxed_match_priority=0)]
    return parse(f"\\boxed{{{latex}}}", config, parsing_timeout=0)


def warm_up() -> None:
    """Import SymPy and fill its caches: the first comparison takes seconds."""
    logging.disable()
    equal(r"\frac{1}{2}+x", "x+0.5")
