r"""Math: problems of the MATH data set and of contests, with free-form answers in \boxed{}.

The prompt is that of arXiv 2505.14970 (prompts: MIT licence); answers are compared by math-verify.
"""

from __future__ import annotations

import importlib.util
import random
import re
from fractions import Fraction
from functools import lru_cache

from sec_grpo.tasks import _math_worker, answers
from sec_grpo.tasks.base import Row, Task, Verdict
from sec_grpo.tasks.isolated import LeastBusy, NotFinished
from sec_grpo.tasks.pool import default_workers

# Limits of an answer that is compared; the longest of the 11,806 MATH, AMC and AIME rows has 159
# characters and depth 3.
MAX_LENGTH = 512
MAX_DEPTH = 16
MAX_DIGITS = 400
# Judgements kept: rollouts of one prompt repeat their answers.
_CACHE_SIZE = 16_384

_PROMPT = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant "
    "solves it. The assistant first thinks about the reasoning process in the mind and then "
    "provides the user with the answer.\n"
    "User: {problem} Put your final answer within \\boxed{{}}. \n"
    "Assistant: Let me solve this step by step."
)

_PLAIN = (
    # The thousands of 1\,000 and 1{,}000.
    (re.compile(r"(?<=[0-9])(?:\\[,!]|\{,\})(?=[0-9]{3}(?![0-9]))"), ","),
    (re.compile(r"\\(?:left|right)(?![A-Za-z])|\\!\s*|\$"), ""),
    (re.compile(r"\\[,;: ]"), " "),
    # What is left of a space at the end.
    (re.compile(r"\\$"), ""),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(?:text|mbox|textnormal|mathrm)\s*\{([^{}]*)\}"), r"\1"),
    # A space counts where it keeps two numbers or words apart.
    (re.compile(r"\s+(?![A-Za-z0-9])|(?<![A-Za-z0-9])\s+"), ""),
    (re.compile(r"\s+"), " "),
    (re.compile(r"(?<=[^.])\.$"), ""),
)
_SPACED_COMMA = re.compile(r",(?:\s|\\[ ,;:])")
_INTEGER = r"[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+"
_NUMBER = re.compile(
    rf"(?P<sign>-?)(?:(?P<whole>{_INTEGER})(?P<decimals>\.[0-9]+)?"
    r"|(?P<top>[0-9]+)/(?P<bottom>[0-9]+)"
    r"|\\frac\{(?P<latex_top>[0-9]+)\}\{(?P<latex_bottom>[0-9]+)\})"
)

# What only ever costs time: powers of powers, and exponents and factorials beyond any answer's.
ENDLESS = re.compile(
    r"[0-9)}]\s*(?:\^|\*\*)[\s{(]*-?[0-9]+[\s})]*(?:\^|\*\*|!)"
    r"|(?:\^|\*\*)[\s{(]*-?[0-9]{6}|[0-9]{5}[\s})]*!|!\s*\)*\s*!|e[+]?[0-9]{4}"
)
_DIGITS = re.compile(rf"[0-9]{{{MAX_DIGITS + 1}}}")
_BRACKET = re.compile(r"\\begin|\\end|\\left|\\right|[{}()\[\]]")

_equal = LeastBusy(default_workers(), _math_worker.equal, warm_up=_math_worker.warm_up)


class MathTask(Task):
    r"""Levels 1 to 5 of MATH; rows are loaded, not generated.

    A truth is the answer in LaTeX, as in the files `math_train` and `math_test` (whose AMC and
    AIME rows have fractional difficulties from 1 to 7).

    The answer is in the last \boxed{...} or <answer>...</answer>. It is right if it equals the
    truth as text (spaces and purely visual LaTeX aside) or as a plain number, or if math-verify
    takes the two for equal. math-verify runs in another process with a limit on time (1 second) and
    memory (1 GiB); answers that exceed the limits, and those longer than 512 characters, nested
    deeper than 16 or with huge powers and factorials, are wrong.

    Args:
        answer_format: "either", or "boxed" or "tagged" for that alone.

    Raises:
        ImportError: math-verify is not installed.
    """

    name = "math"
    levels = (1, 2, 3, 4, 5)
    slow = True

    def __init__(self, answer_format: str = "either") -> None:
        self._find = answers.finder(answer_format)
        if importlib.util.find_spec("math_verify") is None:
            raise ImportError("task 'math' needs math-verify: pip install 'sec-grpo[tasks]'")

    def warm_up(self) -> None:
        _math_worker.warm_up()

    def draw(self, rng: random.Random, level: int) -> Row:
        """Raises ValueError: there is no generator."""
        raise ValueError(
            "task 'math' has no generator: load its problems from a file instead, as "
            "sec_grpo.tasks.load_dataset_file('math_train.parquet') or --data math_train.parquet."
        )

    def prompt(self, problem: str) -> list[dict[str, str]]:
        """One user message, worded as in the authors' files, for a problem in words."""
        return [{"role": "user", "content": _PROMPT.format(problem=problem)}]

    def at_once(self, text: str, truth: str) -> Verdict | None:
        answer = self._find(text)
        if not answer:
            return Verdict(0.0, answers.NONE, False)
        if not truth.strip():
            return Verdict(0.0, "the row has no answer", True)
        reason = _plainly(truth, answer)
        return None if reason is None else Verdict(float(reason == "right"), reason, True)

    def verify(self, text: str, truth: str) -> Verdict:
        """Well formed: there is an answer, and it is not empty.

        A blank truth, which the authors' files have, makes every answer wrong.
        """
        if not isinstance(truth, str):
            raise ValueError(
                f"ground_truth of task 'math' must be an answer in LaTeX. Got {truth!r}."
            )
        verdict = self.at_once(text, truth)
        if verdict is not None:
            return verdict
        answer = self._find(text)
        assert answer is not None
        try:
            right = _is_equal(truth, answer)
        except NotFinished as error:
            # Not kept: on a busier or freer machine the same answer may be compared in time.
            return Verdict(0.0, f"not compared: {error}", True)
        return Verdict(float(right), "right" if right else "not equal", True)


@lru_cache(_CACHE_SIZE)
def _is_equal(truth: str, answer: str) -> bool:
    """math-verify's judgement; raises NotFinished where it gave none."""
    return bool(_equal(truth, answer))


def _plainly(truth: str, answer: str) -> str | None:
    """ "right", or why not, where text and numbers tell; None where mathematics has to."""
    if len(answer) > MAX_LENGTH:
        return f"longer than {MAX_LENGTH} characters"
    expected, given = _normalised(truth), _normalised(answer)
    if given == expected:
        return "right"
    # The space of "12, 345" says that these are two numbers.
    lists = _SPACED_COMMA.search(truth) or _SPACED_COMMA.search(answer)
    expected_number, given_number = (None, None) if lists else (_number(expected), _number(given))
    if expected_number is not None and given_number is not None:
        if expected_number == given_number:
            return "right"
        # Decimals go on to math-verify, which allows for rounding.
        if expected_number.denominator == given_number.denominator == 1:
            return "another number"
    return _too_hard(answer)


def _normalised(latex: str) -> str:
    for pattern, plain in _PLAIN:
        latex = pattern.sub(plain, latex)
    return latex


def _number(latex: str) -> Fraction | None:
    """The exact value of a plain integer, decimal or fraction."""
    match = _NUMBER.fullmatch(latex)
    if match is None:
        return None
    if match["whole"]:
        value = Fraction(match["whole"].replace(",", "") + (match["decimals"] or ""))
    else:
        bottom = int(match["bottom"] or match["latex_bottom"])
        if bottom == 0:
            return None
        value = Fraction(int(match["top"] or match["latex_top"]), bottom)
    return -value if match["sign"] else value


def _too_hard(latex: str) -> str | None:
    """Why the answer is not compared; None if it is."""
    depth = deepest = 0
    for bracket in _BRACKET.findall(latex):
        depth += 1 if bracket in ("{", "(", "[", "\\begin", "\\left") else -1
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        return f"nested deeper than {MAX_DEPTH}"
    if _DIGITS.search(latex):
        return f"a number of more than {MAX_DIGITS} digits"
    if ENDLESS.search(latex):
        return "a power or factorial beyond any answer"
    return None
