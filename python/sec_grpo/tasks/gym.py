"""Every data set of reasoning_gym as a task, by the name "reasoning_gym/<data set>".

Problems and scores are reasoning_gym's (arXiv 2505.24760, extra `tasks`); its size knobs make the
levels. Some of its scorers give the model's text to `eval`: here they never do, see `_gym_worker`.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import io
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from functools import lru_cache, partial
from importlib.metadata import version
from typing import Any

from sec_grpo.tasks import _gym_worker, answers, tagged
from sec_grpo.tasks.base import NOT_VERIFIED, Row, Verdict
from sec_grpo.tasks.isolated import LeastBusy, NotFinished
from sec_grpo.tasks.loader import GYM_PREFIX
from sec_grpo.tasks.numbered import NumberedTask
from sec_grpo.tasks.pool import default_workers

INSTRUCTION = "Put your final answer, and nothing else, between <answer> and </answer>."

# Longest answer read: the largest matrices have 20,000 characters.
_MAX_ANSWER = answers.MAX_TEXT
# Problems for which one data set object serves; some take seconds to build, and some build all
# their problems at once.
_BLOCK = 256

# Levels of reasoning_gym's curricula, counted from 1, of which reasoning_gym 0.1.25 makes a problem
# within seconds; the others it cannot make at all, or takes minutes.
_USABLE = {
    "jugs": (1, 2),
    "letter_jumble": (1, 2),
    "number_sequence": (1, 2),
    "puzzle24": (1, 2, 3),
    "sokoban": tuple(range(2, 15)),
    "spell_backward": (1, 2, 3, 4),
    "zebra_puzzles": (1, 2, 3, 4, 5),
}
# Data sets none of whose levels can be made.
_STEPS = {"min_steps": 1, "max_steps": 40}
_LEVELS: dict[str, dict[int, dict[str, Any]]] = {
    "knight_swap": {
        1: {"min_nodes": 7, "max_nodes": 7, "min_pieces": 1, "max_pieces": 1, **_STEPS},
        2: {"min_nodes": 8, "max_nodes": 8, **_STEPS},
        3: {"min_nodes": 9, "max_nodes": 9, **_STEPS},
        4: {"min_nodes": 10, "max_nodes": 10, **_STEPS},
    },
}
# Those that go through sets, whose order differs between processes.
_GO_THROUGH_SETS = (
    "isomorphic_strings",
    "knight_swap",
    "polynomial_multiplication",
    "ransom_note",
    "word_ladder",
)
# Those whose generators print to stdout, which all threads share.
_PRINTING = ("bf", "codeio")
_stdout = threading.Lock()
# Not a data set of its own: a mixture, which `sec_grpo.tasks.mix` makes.
_LEFT_OUT = ("composite",)


@lru_cache(4)
def _scorer(dataset: str) -> LeastBusy:
    """The processes that score the answers to one data set."""
    return LeastBusy(
        default_workers(),
        partial(_gym_worker.score, dataset),
        warm_up=partial(_gym_worker.warm_up, dataset),
    )


class GymTask(NumberedTask):
    r"""One data set of reasoning_gym.

    The levels are those of reasoning_gym's own curriculum, counted from 1: level l sets every knob
    to its l-th value (the last, where it has fewer), a range to its l-th segment alone. Levels with
    the same knobs as an earlier one, and those that reasoning_gym cannot make, are left out. The
    last is held out. A data set without a curriculum has one level, with its defaults.

    A truth is a text that holds the data set, its knobs, the reference answer and reasoning_gym's
    metadata: rows can be stored anywhere and judged by any instance of the task.

    The answer is in the last <answer>...</answer> or \boxed{...} of the completion. The score is
    reasoning_gym's, computed in another process within a second and 1 GiB; full scores that it
    gives to wrong answers are taken back where that is known (`_gym_checks`). The score of a wrong
    answer may be above 0 (0.75 for 1511 instead of 151); training rewards pay that only with
    `TaskReward(task, partial=True)`.

    Args:
        dataset: its name in reasoning_gym.
        knobs: levels of your own: arguments of the data set's configuration by level.
        held_out_levels: which of the levels are only evaluated on.
        instruction: stands below the question.
        fixed: arguments of the configuration at every level.

    Raises:
        ImportError: reasoning_gym is not installed.
        ValueError: no such data set or knob, or a value that it refuses.
    """

    slow = True
    partial = False
    prompts_per_level = 500

    def __init__(
        self,
        dataset: str,
        *,
        knobs: Mapping[Any, Mapping[str, Any]] | None = None,
        held_out_levels: Sequence[int] | None = None,
        instruction: str = INSTRUCTION,
        **fixed: Any,
    ) -> None:
        if dataset not in datasets():
            near = difflib.get_close_matches(dataset, datasets(), n=3)
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
            raise ValueError(
                f"reasoning_gym has no data set {dataset!r}{hint} It has: {', '.join(datasets())}."
            )
        self.name = GYM_PREFIX + dataset
        self.dataset_name = dataset
        self.needs_fixed_hashes = dataset in _GO_THROUGH_SETS
        self.instruction = instruction
        chosen = _default_levels(dataset) if knobs is None else _own_levels(dataset, knobs)
        self._knobs = {level: {**fixed, **given} for level, given in chosen.items()}
        every = tuple(sorted(self._knobs))
        if held_out_levels is None:
            held_out_levels = every[-1:] if len(every) > 1 else ()
        self.held_out_levels = tuple(held_out_levels)
        self.levels = tuple(level for level in every if level not in self.held_out_levels)
        if not self.levels or not set(self.held_out_levels) <= set(every):
            raise ValueError(
                f"held_out_levels of task {self.name!r} must be some of {list(every)}, not all. "
                f"Got {list(held_out_levels)}."
            )
        for level in every:
            _configuration(dataset, self._knobs[level])
            _writable(dataset, self._knobs[level])

    def knobs(self, level: int) -> dict[str, Any]:
        """The knobs of a level; those not in it have reasoning_gym's defaults."""
        self._check_level(level)
        return dict(self._knobs[level])

    def version(self) -> str:
        return f"reasoning_gym {version('reasoning-gym')} {self.instruction} {self._knobs!r}"

    def make(self, level: int, seed: int, number: int) -> Row | None:
        knobs = self._knobs[level]
        entry = problem(self.dataset_name, knobs, f"{level}/{seed}", number)
        if entry is None:
            return None
        truth = {
            "dataset": self.dataset_name,
            "knobs": knobs,
            "answer": entry["answer"],
            "metadata": entry["metadata"],
        }
        return {
            "prompt": self.prompt(entry["question"]),
            "ground_truth": tagged.dumps(truth),
            "answer": entry["answer"],
            "type": self.dataset_name,
            "category": _category(self.dataset_name),
        }

    def impossible(self, level: int) -> str:
        return (
            f"reasoning_gym makes no problems of {self.dataset_name!r} with the knobs "
            f"{self._knobs[level]} (level {level}); give other `knobs`"
        )

    def prompt(self, problem: str) -> list[dict[str, str]]:
        """One user message: the question and the instruction."""
        return [{"role": "user", "content": f"{problem}\n\n{self.instruction}"}]

    def warm_up(self) -> None:
        _gym_worker.warm_up(self.dataset_name)

    def at_once(self, text: str, truth: str) -> Verdict | None:
        return None if answers.last_answer(text, _MAX_ANSWER) else _NO_ANSWER

    def verify(self, text: str, truth: str) -> Verdict:
        """Right if reasoning_gym gives the answer a score of 1."""
        if not isinstance(truth, str):
            raise ValueError(
                f"ground_truth of task {self.name!r} must be the text that the task writes. "
                f"Got {truth!r:.80}."
            )
        answer = answers.last_answer(text, _MAX_ANSWER)
        if not answer:
            return _NO_ANSWER
        try:
            score = _scorer(self.dataset_name)(truth, answer)
        except NotFinished as error:
            return Verdict(0.0, f"{NOT_VERIFIED}{error}", True)
        if isinstance(score, str):
            raise ValueError(f"ground_truth of task {self.name!r}: {score}. Got {truth!r:.80}.")
        if score >= 1.0:
            return Verdict(1.0, "right", True)
        return Verdict(score, f"reasoning_gym gives {score:g}" if score else "wrong", True)


_NO_ANSWER = Verdict(0.0, answers.NONE, False)


def datasets() -> tuple[str, ...]:
    """The names of reasoning_gym's data sets, sorted.

    Raises ImportError: it is not installed.
    """
    return tuple(name for name in sorted(_registry()) if name not in _LEFT_OUT)


def groups() -> dict[str, list[str]]:
    """The names of the data sets by reasoning_gym's groups: algebra, games, logic, ..."""
    found: dict[str, list[str]] = {}
    for name in datasets():
        found.setdefault(_category(name), []).append(name)
    return dict(sorted(found.items()))


def problem(
    dataset: str, knobs: Mapping[str, Any], seed: str, number: int
) -> dict[str, Any] | None:
    """Problem `number` of a stream, as reasoning_gym makes it; None where it fails to.

    Returns:
        a mapping with `question`, `answer` (the reference, or None) and `metadata`.
    """
    with _silence() if dataset in _PRINTING else nullcontext():
        return _problem(dataset, knobs, seed, number)


@contextmanager
def _silence() -> Iterator[None]:
    with _stdout, redirect_stdout(io.StringIO()):
        yield


def _problem(
    dataset: str, knobs: Mapping[str, Any], seed: str, number: int
) -> dict[str, Any] | None:
    block, place = divmod(number, _BLOCK)
    made = _block(dataset, tagged.dumps(dict(knobs)), f"{seed}/{block}")
    try:
        entry: dict[str, Any] = made[place]
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError):
        # Its generators give up in many ways; NumberedTask sees to those that always do.
        return None
    return entry


@lru_cache(4)
def _block(dataset: str, knobs: str, seed: str) -> Any:
    digest = hashlib.sha256(f"{dataset}/{seed}".encode()).digest()
    config = _configuration(dataset, tagged.loads(knobs))
    config.size, config.seed = _BLOCK, int.from_bytes(digest[:4], "big") >> 1
    return _registry()[dataset][0](config=config)


def _registry() -> dict[str, Any]:
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ImportError(
            "tasks of reasoning_gym need that package: pip install 'sec-grpo[tasks]'"
        ) from error
    registry: dict[str, Any] = DATASETS
    return registry


def _configuration(dataset: str, knobs: Mapping[str, Any]) -> Any:
    """The data set's configuration; raises ValueError for what it does not take."""
    _, config_class = _registry()[dataset]
    known = [
        field.name
        for field in dataclasses.fields(config_class)
        if field.init and field.name not in ("seed", "size")
    ]
    for name in knobs:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ValueError(
                f"reasoning_gym's {dataset!r} has no knob {name!r}"
                f"{f'; did you mean {near[0]!r}?' if near else '.'} It has: {', '.join(known)}."
            )
    try:
        config = config_class(**knobs)
        if hasattr(config, "validate"):
            config.validate()
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(
            f"reasoning_gym's {dataset!r} refuses {dict(knobs)}: {error or type(error).__name__}"
        ) from error
    return config


def _default_levels(dataset: str) -> dict[int, dict[str, Any]]:
    from reasoning_gym.coaching.base_curriculum import DefaultCurriculumContext, RangeAttributeMode
    from reasoning_gym.factory import CURRICULA

    if dataset in _LEVELS:
        return _LEVELS[dataset]
    if dataset not in CURRICULA:
        return {1: {}}
    curriculum = CURRICULA[dataset]()
    context = DefaultCurriculumContext(RangeAttributeMode.UPPER_BOUND)
    attributes = list(curriculum.attributes.values())
    fields = [
        name
        for attribute in attributes
        for name in (
            getattr(attribute, "field_name", None),
            getattr(attribute, "lower_field_name", None),
            getattr(attribute, "upper_field_name", None),
        )
        if name
    ]
    last = max((len(attribute.levels) for attribute in attributes), default=1)
    levels: dict[int, dict[str, Any]] = {}
    for level in _USABLE.get(dataset, range(1, last + 1)):
        curriculum.set_global_level(level - 1)
        config = curriculum.generate_configuration(context=context)
        knobs = {name: getattr(config, name) for name in fields}
        if knobs not in levels.values() and _is_valid(dataset, knobs):
            levels[level] = knobs
    return levels


def _writable(dataset: str, knobs: Mapping[str, Any]) -> None:
    try:
        tagged.dumps(dict(knobs))
    except TypeError as error:
        raise ValueError(
            f"the knobs of {GYM_PREFIX + dataset!r} must be numbers, text, dates or lists of them: "
            f"{error}"
        ) from error


def _is_valid(dataset: str, knobs: Mapping[str, Any]) -> bool:
    try:
        _configuration(dataset, knobs)
    except ValueError:
        return False
    return True


def _own_levels(dataset: str, knobs: Any) -> dict[int, dict[str, Any]]:
    try:
        levels = {int(level): dict(given) for level, given in knobs.items()}
    except (AttributeError, TypeError, ValueError):
        levels = {}
    if not levels:
        raise ValueError(
            f"knobs of {GYM_PREFIX + dataset!r} must map levels to knobs, as "
            f"{{1: {{'min_terms': 2}}, 2: {{'min_terms': 3}}}}. Got {knobs!r:.200}."
        )
    return levels


def _category(dataset: str) -> str:
    """reasoning_gym's group of the data set."""
    return str(_registry()[dataset][0].__module__.split(".")[1])
