r"""Find the answer in a completion: the last \boxed{...} or <answer>...</answer>.

All look only at the last `MAX_TEXT` characters, take the last answer when there are several (a
model that changes its mind is judged by its final word), and treat an unfinished last answer as
none. Time is linear in `MAX_TEXT` at worst, whatever the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable

# Characters of a completion that are looked at, from its end.
MAX_TEXT = 65_536
# Characters of one answer; a longer one counts as none.
MAX_ANSWER = 4_096

# The reason of a verdict where there is none.
NONE = "no complete \\boxed{} or <answer></answer>"
FORMATS = ("either", "boxed", "tagged")

_BOXED = "\\boxed"
_TAG = "<answer>"
_OPENING = re.compile(r"\\boxed\s*\{")
# An escaped character never opens or closes a group in LaTeX.
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def last_boxed(text: str, longest: int | None = None) -> str | None:
    r"""The content of the last \boxed{...}, whitespace around it removed.

    Braces are balanced, so \boxed{\frac{1}{2}} gives \frac{1}{2}; of nested boxes the inner one
    counts. \boxed without a brace is skipped.

    Returns:
        The content, possibly empty; None if there is no box, the last one is not closed, or its
        content is longer than `longest` (default `MAX_ANSWER`).
    """
    text = text[-MAX_TEXT:]
    end = len(text)
    while (start := text.rfind(_BOXED, 0, end)) >= 0:
        opening = _OPENING.match(text, start)
        if opening:
            return _balanced(text, opening.end(), MAX_ANSWER if longest is None else longest)
        end = start
    return None


def _balanced(text: str, start: int, longest: int) -> str | None:
    depth = 1
    for match in _BRACE.finditer(text, start, start + longest + 1):
        brace = match[0]
        if brace == "{":
            depth += 1
        elif brace == "}":
            depth -= 1
            if depth == 0:
                return text[start : match.start()].strip()
    return None


def last_tagged(text: str, longest: int | None = None) -> str | None:
    """The content of the last <answer>...</answer>, whitespace around it removed.

    Returns:
        The content, possibly empty; None if there is no <answer>, the last one is not closed, or
        its content is longer than `longest` (default `MAX_ANSWER`).
    """
    text = text[-MAX_TEXT:]
    opening = text.rfind(_TAG)
    if opening < 0:
        return None
    start = opening + len(_TAG)
    longest = MAX_ANSWER if longest is None else longest
    end = text.find("</answer>", start, start + longest + len("</answer>"))
    return None if end < 0 else text[start:end].strip()


def last_answer(text: str, longest: int | None = None) -> str | None:
    r"""The content of whichever begins later, the last \boxed{...} or the last <answer>.

    So <answer>\boxed{2}</answer> gives 2, and an <answer> after a boxed guess counts alone.

    Returns as `last_boxed` and `last_tagged`.
    """
    text = text[-MAX_TEXT:]
    tag = text.rfind(_TAG)
    if tag < 0:
        return last_boxed(text, longest)
    if _OPENING.search(text, tag):
        return last_boxed(text, longest)
    return last_tagged(text, longest)


def finder(format: str) -> Callable[[str], str | None]:
    """The function that finds answers of a format of `FORMATS`; ValueError for another."""
    if format not in FORMATS:
        raise ValueError(f"answer_format must be one of {', '.join(FORMATS)}. Got {format!r}.")
    return {"either": last_answer, "boxed": last_boxed, "tagged": last_tagged}[format]
