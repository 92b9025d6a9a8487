"""What runs in the process that scores answers to reasoning_gym's problems.

Some of its scorers give the model's text to `eval`, by themselves or through SymPy's parser. Both
are replaced here by readers of data and of formulas, so that nothing that a model writes is run. As
a second wall, a child that scores refuses to open files for writing, to start processes, to use the
network and the like.
"""

from __future__ import annotations

import ast
import logging
import operator
import os
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import lru_cache
from typing import Any, TextIO

from sec_grpo.tasks import tagged
from sec_grpo.tasks._gym_checks import confirmed
from sec_grpo.tasks.mathematics import ENDLESS

# Data sets whose scorers look at the configuration; the others get reasoning_gym's defaults, since
# some take seconds to build with large knobs.
SCORED_BY_KNOBS = (
    "decimal_arithmetic",
    "polynomial_equations",
    "puzzle24",
    "time_intervals",
    "word_ladder",
)
# Audit events (PEP 578) of what no scorer does.
_REFUSED = re.compile(
    r"os\.(?!listdir|scandir|walk|fwalk)|subprocess\.|socket\.|shutil\.|ctypes\.|urllib\.|http\.|"
    r"ftplib\.|smtplib\.|sqlite3\.|mmap\.|resource\.|signal\.|pty\.|webbrowser\.|code\.__new__|"
    r"syslog\.|fcntl\.|tempfile\.|sys\.(?:addaudithook|settrace|setprofile)|setopencodehook"
)
_walled = False


def warm_up(dataset: str) -> None:
    """Import reasoning_gym, take away what runs text, make the scorer."""
    logging.disable()
    _nowhere()
    _disarm()
    _scorer(dataset, tagged.dumps({}))


@lru_cache(1)
def _nowhere() -> TextIO:
    """Where scorers print to."""
    return open(os.devnull, "w")


@lru_cache(1)
def _disarm() -> None:
    import reasoning_gym  # noqa: F401
    import sympy
    from sympy.parsing import sympy_parser

    # Fills SymPy's caches, and lets it read its own texts before its parser is replaced.
    sympy.simplify(sympy.parse_expr("x**2 + 2*x + 1") - sympy.parse_expr("(x + 1)**2"))
    parse, read_formula = sympy_parser.parse_expr, _formula_reader(sympy_parser.parse_expr)
    for name, module in list(sys.modules.items()):
        # SymPy goes on to read its own texts: it takes the parser from another module.
        if name == "sympy" or name.startswith("reasoning_gym."):
            ours: Any = module
            ours.eval, ours.exec = read_value, _refuse_code
            if getattr(ours, "parse_expr", None) is parse:
                ours.parse_expr = read_formula


def score(dataset: str, truth: str, answer: str) -> float | str:
    """The score of an answer from 0 to 1, or what is wrong with the truth.

    An exception for which the answer is to blame is a score of 0.
    """
    try:
        entry, scorer = _entry(dataset, truth)
    except (KeyError, TypeError, ValueError) as error:
        return f"not of this task ({error})"
    _build_wall()
    try:
        with redirect_stdout(_nowhere()), redirect_stderr(_nowhere()):
            found = _in_range(scorer(answer, entry))
        return found if found < 1.0 or confirmed(dataset, answer, entry) else 0.0
    except MemoryError:
        raise
    except Exception as error:
        reference = entry["answer"]
        if isinstance(reference, str):
            try:
                scorer(reference, entry)
            except Exception:
                return f"its own answer cannot be scored ({type(error).__name__}: {error})"
        return 0.0


@lru_cache(64)
def _entry(dataset: str, truth: str) -> tuple[dict[str, Any], Callable[[str, Any], Any]]:
    read = tagged.loads(truth)
    if not isinstance(read, dict) or read.get("dataset") != dataset:
        raise ValueError(f"no problem of {dataset!r}")
    knobs = read["knobs"] if dataset in SCORED_BY_KNOBS else {}
    return (
        {"question": "", "answer": read["answer"], "metadata": read["metadata"]},
        _scorer(dataset, tagged.dumps(knobs)),
    )


@lru_cache(256)
def _scorer(dataset: str, knobs: str) -> Callable[[str, Any], Any]:
    from reasoning_gym.factory import DATASETS

    dataset_class, config_class = DATASETS[dataset]
    config = config_class(**tagged.loads(knobs))
    config.size, config.seed = 1, 0
    scorer: Callable[[str, Any], Any] = dataset_class(config=config).score_answer
    return scorer


def _in_range(value: Any) -> float:
    number = float(value)
    return min(1.0, max(0.0, number)) if number == number else 0.0


_ARITHMETIC: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Invert: operator.invert,
}


def read_value(text: str, *namespaces: Any) -> Any:
    """In place of `eval`: data as `ast.literal_eval` reads it, or arithmetic on numbers."""
    try:
        return ast.literal_eval(text)
    except ValueError:
        return _computed(ast.parse(text.strip(), mode="eval").body)


def _computed(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        return _ARITHMETIC[type(node.op)](_computed(node.left), _computed(node.right))
    if isinstance(node, ast.UnaryOp) and type(node.op) in _ARITHMETIC:
        return _ARITHMETIC[type(node.op)](_computed(node.operand))
    raise ValueError("neither data nor arithmetic")


def _refuse_code(*_: Any) -> None:
    raise ValueError("code is not run here")


# Numbers, names, operators, brackets and commas: no text, attribute, subscript or keyword.
_FORMULA = re.compile(r"(?:[0-9]+\.?[0-9]*|\.[0-9]+|[A-Za-z]\w*|[-+*/^(),!]|\s)*", re.ASCII)
_NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)


def _formula_reader(parse: Callable[..., Any]) -> Callable[..., Any]:
    """SymPy's parser, which evaluates Python, for formulas only."""
    import sympy

    functions = {
        name
        for name, value in vars(sympy).items()
        if isinstance(value, type) and issubclass(value, sympy.Function)
    }
    known = functions | {"pi", "sqrt", "cbrt", "root", "oo"}

    def read_formula(text: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(text, str):
            if not _FORMULA.fullmatch(text):
                raise ValueError("not a formula")
            if ENDLESS.search(text):
                raise ValueError("a power or factorial beyond any answer")
            for name in _NAME.findall(text):
                if len(name) > 1 and name not in known:
                    raise ValueError(f"{name!r} is no function of mathematics")
        return parse(text, *arguments, **options)

    return read_formula


def _build_wall() -> None:
    """Once in a process that scores; it stays, so it must be no process that does other work."""
    global _walled
    from sec_grpo.tasks import isolated

    if isolated.inside and not _walled:
        _walled = True
        sys.addaudithook(_refuse_event)


def _refuse_event(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open":
        mode, flags = arguments[1], arguments[2]
        writes = isinstance(mode, str) and any(letter in mode for letter in "wax+")
        if writes or (isinstance(flags, int) and flags & 0o3):
            raise PermissionError("a scorer does not write files")
    elif _REFUSED.match(event):
        raise PermissionError(f"a scorer does not use {event}")
