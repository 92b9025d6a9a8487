"""What a full score must also fulfil, where reasoning_gym 0.1.25 gives it to wrong answers.

coin_flip pays a matching prefix ("0" for 0.125); game_of_life_halting every answer that is not
empty; puzzle24 other numbers than the given ones; countdown powers; gsm_symbolic the wrong sign,
and the first of several numbers; fraction_simplification the first of several fractions;
letter_jumble and word_sorting further words after the right ones; number_sorting numbers off by 1;
several of them NaN.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from sec_grpo.tasks import arithmetic

Entry = Mapping[str, Any]

# NaN differs from every number by no more than any tolerance, in a comparison written that way.
_NO_NUMBER = re.compile(r"nan|inf", re.IGNORECASE)
_BETWEEN_WORDS = re.compile(r"[\s,]+")
_WORD = re.compile(r"[^\W\d_]{2}")
_NUMBER = re.compile(r"[-+]?[0-9]+(?:\.[0-9]+)?")


def confirmed(dataset: str, answer: str, entry: Entry) -> bool:
    """Whether an answer that got a full score is right."""
    check = _CHECKS.get(dataset)
    if _NO_NUMBER.search(answer) and not _WORD.search(str(entry["answer"])):
        return False
    try:
        return check is None or check(answer, entry)
    except (ArithmeticError, TypeError, ValueError):
        return False


def _reaches(answer: str, numbers: list[int], target: int) -> bool:
    expression = arithmetic.parse(answer)
    return sorted(expression.numbers) == sorted(numbers) and expression.equals(target)


def _countdown(answer: str, entry: Entry) -> bool:
    return _reaches(answer, entry["metadata"]["numbers"], entry["metadata"]["target"])


def _puzzle24(answer: str, entry: Entry) -> bool:
    return _reaches(answer, [int(number) for number in entry["metadata"]["numbers"]], 24)


def _coin_flip(answer: str, entry: Entry) -> bool:
    return abs(_fraction(answer) - _fraction(entry["answer"])) <= Fraction(1, 10_000)


def _fraction(text: str) -> Fraction:
    return Fraction(text.replace(",", "").strip())


def _same_word(answer: str, entry: Entry) -> bool:
    return answer.strip().casefold() == str(entry["answer"]).strip().casefold()


def _only_number(answer: str, entry: Entry) -> bool:
    found = _NUMBER.findall(answer.replace(",", ""))
    return len(found) == 1 and Fraction(found[0]) == Fraction(entry["answer"])


def _only_fraction(answer: str, entry: Entry) -> bool:
    return len(re.findall(r"[0-9]+", answer)) == 2


def _as_many_words(answer: str, entry: Entry) -> bool:
    return len(_BETWEEN_WORDS.split(answer.strip())) == len(
        _BETWEEN_WORDS.split(str(entry["answer"]).strip())
    )


def _same_numbers(answer: str, entry: Entry) -> bool:
    given, expected = (
        [Fraction(str(number)) for number in json.loads(text.replace("'", '"'))]
        for text in (answer, entry["answer"])
    )
    return given == expected


_CHECKS: dict[str, Callable[[str, Entry], bool]] = {
    "coin_flip": _coin_flip,
    "countdown": _countdown,
    "fraction_simplification": _only_fraction,
    "game_of_life_halting": _same_word,
    "gsm_symbolic": _only_number,
    "letter_jumble": _as_many_words,
    "number_sorting": _same_numbers,
    "puzzle24": _puzzle24,
    "word_sorting": _as_many_words,
}
