"""Sort: put distinct letters in alphabetical order; the small task of the quick start."""

from __future__ import annotations

import math
import random
from string import ascii_lowercase

from sec_grpo.tasks.base import Row, Task, Verdict

_LETTERS = frozenset(ascii_lowercase)


class SortTask(Task):
    """Prompt `dacb>`, answer `abcd`: n distinct letters of a-z in order.

    The level, and the `difficulty` column, is n. Prompts are plain strings, not chat messages.
    `generate` makes any n from 1 to 26 (1 to 3 serve a supervised warm start).

    The answer must match exactly once surrounding whitespace is removed: the decoded completion
    is compared, without special tokens. A wrong answer earns nothing in training
    (`well_formed_reward` is 0): a partial reward would blur an exact-match task.
    """

    name = "sort"
    levels = (2, 4, 6, 8, 10, 12, 14, 16)
    held_out_levels = (18, 20)
    level_range = (1, 26)
    well_formed_reward = 0.0

    def draw(self, rng: random.Random, level: int) -> Row:
        letters = "".join(rng.sample(ascii_lowercase, level))
        return {"prompt": self.prompt(letters), "ground_truth": "".join(sorted(letters))}

    def prompt(self, problem: str) -> str:
        """`problem` (the letters as given) followed by ">"."""
        return f"{problem}>"

    def space(self, level: int) -> int:
        return math.perm(26, level)

    def verify(self, text: str, truth: str) -> Verdict:
        """Right if `text` without surrounding whitespace equals `truth`.

        Well formed: one or more letters a-z and nothing else.
        """
        if not isinstance(truth, str) or not truth:
            raise ValueError(f"ground_truth of task 'sort' must be the letters. Got {truth!r}.")
        answer = text.strip()
        if answer == truth:
            return Verdict(1.0, "right", True)
        if answer and _LETTERS.issuperset(answer):
            return Verdict(0.0, "wrong letters or wrong order", True)
        return Verdict(0.0, "not a row of letters a-z", False)
