r"""Read and evaluate arithmetic written by a model: exactly, in bounded time, never with `eval`.

Grammar, after whitespace is dropped between tokens:

    expression := ["-"] product (("+" | "-") product)*
    product    := operand (("*" | "/") operand)*
    operand    := integer | "(" expression ")" | "\frac{" expression "}{" expression "}"

- An integer is digits 0-9 without a sign, with at most `MAX_DIGITS` of them and no leading zero.
- A minus sign may stand first in an expression or a parenthesis, as in written mathematics, and
  nowhere else: -3 + 10 and 2 * (-3 + 5) are read, 5 - -3 and 2 * -3 are not. It applies to the
  whole first product. There is no unary plus.
- Other spellings that models use: × · ⋅ \times \cdot for *; ÷ \div for /; − (U+2212) for -;
  \dfrac and \tfrac for \frac; \left and \right before a parenthesis; \, \; \! \  for a space.
- Everything else is refused: ** and //, ^ and %, decimals, implied multiplication (2(3), 2 3),
  digits of other scripts, thousands separators, brackets and braces, names.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

# Longest expression read, in characters.
MAX_LENGTH = 512
# Deepest nesting of parentheses and fractions.
MAX_DEPTH = 64
# Longest integer, in digits.
MAX_DIGITS = 12


class ExpressionError(ValueError):
    """The text is not an expression of the grammar; the message says why."""


class Expression(NamedTuple):
    """An expression that was read.

    Attributes:
        numerator, denominator: the exact value, not in lowest terms, of either sign; a
            denominator of 0 means that the expression divides by zero and has no value.
        numbers: every integer written in it, in order.
    """

    numerator: int
    denominator: int
    numbers: list[int]

    @property
    def value(self) -> Fraction | None:
        """The exact value; None if the expression divides by zero."""
        return Fraction(self.numerator, self.denominator) if self.denominator else None

    def equals(self, target: int) -> bool:
        """Whether the value is exactly `target`; False if there is no value."""
        return self.denominator != 0 and self.numerator == target * self.denominator


_SPELLINGS = str.maketrans({"×": "*", "·": "*", "⋅": "*", "÷": "/", "−": "-"})
_LATEX = (
    (re.compile(r"\\(?:times|cdot)(?![A-Za-z])"), "*"),
    (re.compile(r"\\div(?![A-Za-z])"), "/"),
    (re.compile(r"\\(?:left|right)\s*(?=[()])"), ""),
    (re.compile(r"\\[dt]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\[,;! ]"), " "),
)
# re.ASCII keeps \s from matching other scripts' spaces; [0-9] keeps other digits out.
_TOKEN = re.compile(r"[0-9]+|\*\*|//|[-+*/()]|\\frac\s*\{|\}\s*\{|\}|\S", re.ASCII)
_NOT_ARITHMETIC = re.compile(r"[^-+*/()0-9\s]", re.ASCII)

_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}
_FRACTION_TOP = "\\frac{"
_FRACTION_BOTTOM = "}{"


def parse(text: str) -> Expression:
    """Read `text` as one expression and evaluate it exactly.

    Time and memory are bounded by `MAX_LENGTH`; there is no recursion.

    Raises:
        ExpressionError: `text` is not an expression of the grammar above, or exceeds
            `MAX_LENGTH`, `MAX_DEPTH` or `MAX_DIGITS`.
    """
    if len(text) > MAX_LENGTH:
        raise ExpressionError(f"longer than {MAX_LENGTH} characters")
    if _NOT_ARITHMETIC.search(text):
        text = text.translate(_SPELLINGS)
        if "\\" in text:
            for pattern, plain in _LATEX:
                text = pattern.sub(plain, text)
    return _evaluate(_TOKEN.findall(text))


def _evaluate(tokens: list[str]) -> Expression:
    """Shunting-yard: operators wait on one stack until those that bind tighter are applied."""
    values: list[tuple[int, int]] = []
    waiting: list[str] = []
    numbers: list[int] = []
    depth = 0
    operand_next = True
    at_start = True
    for token in tokens:
        starts = at_start
        at_start = False
        if operand_next:
            if "0" <= token[0] <= "9":
                number = _integer(token)
                numbers.append(number)
                values.append((number, 1))
                operand_next = False
            elif token == "(" or token.startswith("\\frac"):
                # A fraction is read as ((top)/(bottom)); both its marks are closed below.
                waiting.append("(")
                if token != "(":
                    waiting.append(_FRACTION_TOP)
                depth += 1
                if depth > MAX_DEPTH:
                    raise ExpressionError(f"nested deeper than {MAX_DEPTH}")
                at_start = True
            elif token == "-" and starts:
                values.append((0, 1))
                waiting.append("-")
            else:
                raise ExpressionError(f"a number or '(' expected, not {token!r}")
        elif token in _PRECEDENCE:
            _apply(values, waiting, _PRECEDENCE[token])
            waiting.append(token)
            operand_next = True
        elif token == ")":
            _apply(values, waiting, 0)
            _close(waiting, "(", token)
            depth -= 1
        elif token[0] == "}":
            _apply(values, waiting, 0)
            if len(token) > 1:
                _close(waiting, _FRACTION_TOP, token)
                waiting += ("/", _FRACTION_BOTTOM)
                operand_next = at_start = True
            else:
                _close(waiting, _FRACTION_BOTTOM, token)
                _apply(values, waiting, 0)
                waiting.pop()
                depth -= 1
        else:
            raise ExpressionError(f"an operator expected, not {token!r}")
    if operand_next:
        raise ExpressionError("it ends where a number is expected" if tokens else "empty")
    _apply(values, waiting, 0)
    if waiting:
        raise ExpressionError(f"{waiting[-1]!r} is not closed")
    numerator, denominator = values[0]
    return Expression(numerator, denominator, numbers)


def _integer(token: str) -> int:
    if len(token) > MAX_DIGITS:
        raise ExpressionError(f"a number of more than {MAX_DIGITS} digits")
    if token[0] == "0" and len(token) > 1:
        raise ExpressionError(f"{token!r} starts with a zero")
    return int(token)


def _close(waiting: list[str], mark: str, token: str) -> None:
    if not waiting or waiting.pop() != mark:
        raise ExpressionError(f"{token!r} closes nothing")


def _apply(values: list[tuple[int, int]], waiting: list[str], precedence: int) -> None:
    """Apply the waiting operators down to the nearest mark that bind at least as tightly.

    Values are pairs (numerator, denominator), several times faster than `Fraction`; their digits
    only ever add up, so they stay as short as the text. A zero denominator means "no value" and
    stays zero through every operation.
    """
    while waiting and _PRECEDENCE.get(waiting[-1], -1) >= precedence:
        operator = waiting.pop()
        c, d = values.pop()
        a, b = values.pop()
        if operator == "*":
            values.append((a * c, b * d))
        elif operator == "/":
            values.append((a * d, b * c) if d else (0, 0))
        elif operator == "+":
            values.append((a * d + c * b, b * d))
        else:
            values.append((a * d - c * b, b * d))
