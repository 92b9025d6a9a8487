r"""Zebra and ARC-1D: logic puzzles and row transformations, made by reasoning_gym.

The tasks, their levels and the wording of their prompts are those of arXiv 2505.14970. Problems
come from the package reasoning_gym (extra `tasks`); judging needs no package.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from sec_grpo.tasks import answers, gym
from sec_grpo.tasks.base import Row, Verdict
from sec_grpo.tasks.numbered import NumberedTask

_FRAME = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant "
    "solves it. The assistant first thinks about the reasoning process in the mind and then "
    "provides the user with the answer.\n"
    "User: {question}\n"
    "Assistant: Let me solve this step by step."
)
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}")
# LaTeX's ways to write a space, and what separates the cells of a row.
_SEPARATORS = re.compile(r"\\[ ,;:!]|[\s,;&~]+")


class _PuzzleTask(NumberedTask):
    """A task whose problems are those of a data set of reasoning_gym, one knob a level.

    The truth is ``{"target": answer}``, as in the authors' files; a problem is the question.

    Args:
        answer_format: "either", or "boxed" or "tagged" for that alone.
    """

    def __init__(self, answer_format: str = "either") -> None:
        self._find = answers.finder(answer_format)

    dataset_name: str
    """in reasoning_gym"""

    @abstractmethod
    def knobs(self, level: int) -> dict[str, int]:
        """The arguments of the data set at a level."""

    @abstractmethod
    def ask(self, question: str) -> str:
        """The question with the answer's format asked for as in the authors' files."""

    def make(self, level: int, seed: int, number: int) -> Row | None:
        entry = gym.problem(self.dataset_name, self.knobs(level), f"{level}/{seed}", number)
        if entry is None:
            return None
        return {
            "prompt": self.prompt(self.ask(entry["question"])),
            "ground_truth": {"target": entry["answer"]},
        }

    def version(self) -> str:
        return f"reasoning_gym {version('reasoning-gym')}"

    def prompt(self, problem: str) -> list[dict[str, str]]:
        """One user message, worded as in the authors' files."""
        return [{"role": "user", "content": _FRAME.format(question=problem)}]

    def _target(self, truth: Any) -> str:
        target = truth.get("target") if isinstance(truth, Mapping) else truth
        if not isinstance(target, str) or not target.strip():
            raise ValueError(
                f"ground_truth of task {self.name!r} must be the answer, or hold it as 'target'. "
                f"Got {truth!r:.80}."
            )
        return target


class ZebraTask(_PuzzleTask):
    r"""Who lives in house 1? n houses with n characteristics; n = 3, 4, 5 trained, 6 held out.

    The level, and the `difficulty` column of generated rows, is n. (The authors' files count 1 to
    4 instead.) Making a puzzle takes about 0.02, 0.08, 0.3 and 1.5 seconds for n = 3 to 6.

    The answer is one name in the last \boxed{...} or <answer>...</answer>, in any case; \text{...}
    around it and a full stop after it are ignored.
    """

    name = "zebra"
    dataset_name = "zebra_puzzles"
    levels = (3, 4, 5)
    held_out_levels = (6,)
    level_range = (3, 7)
    prompts_per_level = 100
    eval_prompts_per_level = 20

    def knobs(self, level: int) -> dict[str, int]:
        return {"num_people": level, "num_characteristics": level}

    def ask(self, question: str) -> str:
        return question.replace("??", "?").replace(
            "as your final answer.",
            "as your final answer and put in in \\boxed{}, for example: \\boxed{Alice}.",
        )

    def verify(self, text: str, truth: Any) -> Verdict:
        """Right if the name is that of the truth. Well formed: a single word of letters."""
        target = self._target(truth)
        answer = self._find(text)
        if answer is None:
            return Verdict(0.0, answers.NONE, False)
        name = _TEXT.sub(r"\1", answer).strip().rstrip(".").strip()
        if not name.isascii() or not name.isalpha():
            return Verdict(0.0, "not one name", False)
        if name.casefold() == target.strip().casefold():
            return Verdict(1.0, "right", True)
        return Verdict(0.0, "another name", True)


class ARC1DTask(_PuzzleTask):
    r"""Find the rule in three examples and apply it to a row of 10, 20 or 30 cells; 40 held out.

    The level, and the `difficulty` column of generated rows, is the number of cells. (The authors'
    files count 1 to 4 instead.)

    The answer is the row in the last \boxed{...} or <answer>...</answer>: digits apart, by spaces
    or commas, in brackets or not. Digits run together are no row.
    """

    name = dataset_name = "arc_1d"
    levels = (10, 20, 30)
    held_out_levels = (40,)
    level_range = (10, 100)

    def knobs(self, level: int) -> dict[str, int]:
        return {"min_size": level, "max_size": level}

    def ask(self, question: str) -> str:
        return question.replace(
            "Your final answer should be just",
            "Your final answer must be placed in \\boxed{} and should be just",
        )

    def verify(self, text: str, truth: Any) -> Verdict:
        """Right if every cell is that of the truth. Well formed: a row of digits of any length."""
        target = _row(self._target(truth))
        if target is None:
            raise ValueError(
                f"ground_truth of task 'arc_1d' must be digits apart, \"0 0 5\". Got {truth!r:.80}."
            )
        answer = self._find(text)
        if answer is None:
            return Verdict(0.0, answers.NONE, False)
        row = _row(_TEXT.sub(r"\1", answer))
        if row is None:
            return Verdict(0.0, "not a row of digits", False)
        if row == target:
            return Verdict(1.0, "right", True)
        reason = "another length" if len(row) != len(target) else "another row"
        return Verdict(0.0, reason, True)


def _row(text: str) -> list[str] | None:
    """The cells; None for anything but ASCII digits apart."""
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    cells = [cell for cell in _SEPARATORS.split(text) if cell]
    whole = cells and all(len(cell) == 1 and cell in "0123456789" for cell in cells)
    return cells if whole else None
