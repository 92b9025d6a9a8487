"""The process in which math-verify compares answers; started by `_comparer`, run as a script.

It reads lines of JSON [truth, answer, seconds] and answers each with "1" or "0". It may die at any
comparison: of the alarm (whose default action needs no Python code to run, so that not even one
long operation on big integers outlives it), of too little memory, of a stack overflow.
"""

from __future__ import annotations

import json
import logging
import resource
import signal
import sys
from typing import TextIO

# Address space, in bytes: SymPy with its parser takes about 0.4 GiB.
MAX_MEMORY = 2 << 30


def main(requests: TextIO, replies: TextIO) -> None:
    """Answer requests until their end."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MAX_MEMORY if hard == resource.RLIM_INFINITY else min(hard, MAX_MEMORY)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Ctrl-C goes to the whole group; the parent ends this process by closing its input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    logging.disable()
    # The first comparison imports lazily and fills caches; it belongs to the start.
    equal(r"\frac{1}{2}+x", "x+0.5")
    replies.write("ready\n")
    replies.flush()
    for line in requests:
        truth, answer, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            same = equal(truth, answer)
        except (Exception, RecursionError, MemoryError):
            same = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        replies.write("1\n" if same else "0\n")
        replies.flush()


def equal(truth: str, answer: str) -> bool:
    """math-verify's judgement of two LaTeX answers, without its own limits (main thread only)."""
    from math_verify import LatexExtractionConfig, parse, verify

    config = [LatexExtractionConfig(boxed_match_priority=0)]
    parsed = [parse(f"\\boxed{{{latex}}}", config, parsing_timeout=0) for latex in (truth, answer)]
    return bool(verify(*parsed, timeout_seconds=0))


if __name__ == "__main__":
    main(sys.stdin, sys.stdout)
