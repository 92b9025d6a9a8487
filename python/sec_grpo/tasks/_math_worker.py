"""What runs in the process that compares mathematical answers."""

from __future__ import annotations

import logging


def equal(truth: str, answer: str) -> bool:
    """math-verify's judgement of two LaTeX answers, without its own limits (main thread only).

    What it raises counts as not equal.
    """
    from math_verify import LatexExtractionConfig, parse, verify

    config = [LatexExtractionConfig(boxed_match_priority=0)]
    try:
        parsed = [
            parse(f"\\boxed{{{latex}}}", config, parsing_timeout=0) for latex in (truth, answer)
        ]
        return bool(verify(*parsed, timeout_seconds=0))
    except MemoryError:
        raise
    except Exception:
        return False


def warm_up() -> None:
    """Import SymPy and fill its caches: the first comparison takes seconds."""
    logging.disable()
    equal(r"\frac{1}{2}+x", "x+0.5")
