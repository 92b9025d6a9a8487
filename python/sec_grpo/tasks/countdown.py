r"""Countdown: reach a target with given numbers, using each exactly once with + - * /.

The task, its prompt and its levels are those of arXiv 2505.14970 (prompts: MIT licence).
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Mapping
from operator import index
from typing import Any

from sec_grpo.tasks import answers, arithmetic
from sec_grpo.tasks.base import Row, Task, Verdict

_MAX_NUMBER = 100
_MAX_TARGET = 1000

_PROMPT = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant "
    "solves it. The assistant first thinks about the reasoning process in the mind and then "
    "provides the user with the answer.\n"
    "User: Using the numbers {numbers}, create an equation that equals {target}. You can only use "
    "basic arithmetic operations (+, -, *, /) and each number should be used exactly once. Return "
    "the final answer in \\boxed{{}}, for example \\boxed{{(1 + 2) / 3}}.\n"
    "Assistant: Let me solve this step by step."
)


class CountdownTask(Task):
    r"""Numbers 1-100, targets 1-1000; levels 3, 4, 5 trained, 6 held out.

    The level, and the `difficulty` column of generated rows, is the count of numbers. (The
    authors' files count 1 to 4 instead: difficulty = level - 2.) `generate` makes levels 2 to 10.

    A problem is a mapping with `numbers` ("8,73,96" as in the files, or a list of integers) and
    `target` (an integer); the same mapping is the ground truth.

    The answer is in the last \boxed{...} or <answer>...</answer> of the completion, read by
    `sec_grpo.tasks.arithmetic`. An equation `expression = integer` is read as its left side; one
    that is false is a wrong answer even if the left side reaches the target.

    Args:
        answer_format: "either", or "boxed" or "tagged" for that alone.
    """

    name = "countdown"
    levels = (3, 4, 5)
    held_out_levels = (6,)
    level_range = (2, 10)

    def __init__(self, answer_format: str = "either") -> None:
        self._find = answers.finder(answer_format)

    def draw(self, rng: random.Random, level: int) -> Row:
        """A solvable problem: the target is the value of a random expression.

        Two random terms are joined by a random operation until one is left; operations whose
        result is not an integer from 1 to 1000 are not considered. The expression is in the
        column `solution`.
        """
        numbers = [rng.randint(1, _MAX_NUMBER) for _ in range(level)]
        terms = [(number, str(number)) for number in numbers]
        while len(terms) > 1:
            right = terms.pop(rng.randrange(len(terms)))
            left = terms.pop(rng.randrange(len(terms)))
            terms.append(rng.choice(_joined(left, right)))
        target, solution = terms[0]
        truth = {"numbers": ",".join(map(str, numbers)), "target": target}
        return {
            "prompt": self.prompt(truth),
            "ground_truth": truth,
            "solution": solution.removeprefix("(").removesuffix(")"),
        }

    def prompt(self, problem: Mapping[str, Any]) -> list[dict[str, str]]:
        """One user message, worded as in the authors' files."""
        numbers, target = _problem(problem)
        return [{"role": "user", "content": _PROMPT.format(numbers=numbers, target=target)}]

    def key(self, row: Row) -> Hashable:
        numbers, target = _problem(row["ground_truth"])
        return (*sorted(numbers), target)

    def verify(self, text: str, truth: Mapping[str, Any]) -> Verdict:
        """Right if each number is used exactly once and the value is exactly the target.

        Well formed: the answer is an expression of the grammar (one that divides by zero or
        uses other numbers included).
        """
        numbers, target = _problem(truth)
        answer = self._find(text)
        if answer is None:
            return Verdict(0.0, answers.NONE, False)
        left, equals, right = answer.partition("=")
        try:
            expression = arithmetic.parse(left)
            claimed = _claimed(right) if equals else target
        except arithmetic.ExpressionError as error:
            return Verdict(0.0, f"not arithmetic: {error}", False)
        if sorted(expression.numbers) != sorted(numbers):
            return Verdict(0.0, "not each number exactly once", True)
        if not expression.equals(target):
            return Verdict(0.0, "not the target", True)
        if claimed != target:
            return Verdict(0.0, "a false equation", True)
        return Verdict(1.0, "right", True)


def _claimed(right: str) -> int:
    claimed = arithmetic.parse(right)
    if len(claimed.numbers) != 1 or claimed.denominator != 1:
        raise arithmetic.ExpressionError("an integer expected after '='")
    return claimed.numerator


def _joined(left: tuple[int, str], right: tuple[int, str]) -> list[tuple[int, str]]:
    """The ways to join two terms that give an integer from 1 to 1000; there always is one."""
    (a, a_text), (b, b_text) = left, right
    joined = [
        (value, f"({a_text} {operator} {b_text})")
        for value, operator in ((a + b, "+"), (a * b, "*"))
        if value <= _MAX_TARGET
    ]
    if a < b:
        (a, a_text), (b, b_text) = right, left
    if a > b:
        joined.append((a - b, f"({a_text} - {b_text})"))
    if a % b == 0:
        joined.append((a // b, f"({a_text} / {b_text})"))
    return joined


def _problem(problem: Mapping[str, Any]) -> tuple[list[int], int]:
    try:
        numbers, target = problem["numbers"], problem["target"]
        if isinstance(numbers, str):
            return [int(part) for part in numbers.split(",")], index(target)
        return [index(number) for number in numbers], index(target)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            "ground_truth of task 'countdown' must hold 'numbers' (\"8,73,96\" or a list of "
            f"integers) and 'target' (an integer). Got {problem!r}."
        ) from error
