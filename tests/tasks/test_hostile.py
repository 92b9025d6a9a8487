"""Output written to break a verifier: right score, no crash, bounded time and memory.

Time: an answer that only the process at hand judges takes milliseconds; math may hand one to its
worker, which is killed after a second. Memory: what the process at hand allocates.
"""

import random
import resource
import statistics
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest

from sec_grpo import tasks
from sec_grpo.tasks import Verdict

COUNTDOWN = {"numbers": [96, 73, 8], "target": 31}
TRUTHS = {
    "countdown": COUNTDOWN,
    "zebra": {"target": "Alice"},
    "arc_1d": {"target": "1 2 0 5"},
    "math": "31",
    "sort": "abc",
}
RIGHT = {
    "countdown": "96 - 73 + 8",
    "zebra": "Alice",
    "arc_1d": "1 2 0 5",
    "math": "31",
    "sort": "abc",
}
# The bound of the issue, and what a process of 8 on 2 cores may be kept waiting.
SECONDS = 1.0
WAITING = 1.0
# Of one verdict, in the process at hand, beside the text itself (which is up to 10 MB).
MEMORY = 16 << 20

LOOK_ALIKES = {
    "full width": "９６ − ７３ ＋ ８",
    "Arabic digits": "٩٦ - ٧٣ + ٨",
    "superscripts": "96 - 73 + ⁸",
    "Cyrillic": "Аlice",
    "right to left": "\u202e8 + 37 - 69\u202c",
    "zero width": "9\u200b6 - 7\u200b3 + 8",
    "combining": "9̶6̶ - 73 + 8",
    "mathematical": "𝟗𝟔 - 𝟕𝟑 + 𝟖",
    "NUL": "96 - 73\x00 + 8",
    "surrogates": "\ud83d 96 - 73 + 8 \ude00",
}
BOMBS = {
    "powers": "96**73**8",
    "tower": "9**9**9",
    "carets": "9^9^9^9",
    "LaTeX tower": "10^{10^{10}}",
    "long tower": "9^" * 1000 + "9",
    "parentheses": "(" * 10**6 + "96 - 73 + 8" + ")" * 10**6,
    "open parentheses": "(" * 10**6,
    "some parentheses": "(" * 60 + "96-73+8" + ")" * 60 + "^2",
    "digits": "9" * (4 << 20),
    "digits within the limit": "9" * 4000,
    "fractions": "\\frac{1}{" * 10**4 + "2" + "}" * 10**4,
    "some fractions": "\\frac{1}{" * 15 + "x" + "}" * 15,
    "factorials": "x!!!!!!",
    "factorial": "99999!",
    "factorial of a factorial": "((9!)!)!",
    "sum": "\\sum_{n=1}^{10^9} n^n",
    "product": "\\prod_{n=1}^{999999999} n",
    "integral": "\\int_0^\\infty \\frac{\\sin(x^5+\\cos(x))}{\\sqrt{2+x^7}} dx",
    "power of a sum": "(a+b+c+d+e)^{99999}",
    "binomial": "\\binom{10^9}{10^8}",
    "roots": "\\sqrt{" * 200 + "2" + "}" * 200,
    "exponent": "1e999999999",
    "regular expression": "a" * 50_000 + "!",
    "spaces": " " * 10**6,
    "operators": "1" + "+1" * 10**5,
    "minuses": "-" * 10**5 + "1",
    "separators": ",".join("1" * 10**5),
    "commands": "\\text{" * 10**5,
    "left": "\\left(" * 10**5,
    "matrix": "\\begin{pmatrix}" * 1000,
    "code": "__import__('os').system('exit 1')",
    "format": "{0.__class__}%s%n",
    "zero": "96 / (8 - 8) - 73",
    "nan": "nan",
    "infinity": "\\infty",
    "floats": "96.0 - 73.0 + 8.0",
    "glued": "96738",
    "glued and right": "9 6 - 7 3 + 8",
    "other numbers": "30 + 1",
    "true": "True",
    "none": "None",
}
# Worth 31, which is what the math task asks for, in any form.
RIGHT_AS_MATHEMATICS = ("floats", "other numbers")
# What goes around an answer; each makes it incomplete, or hides it.
BOXES = {
    "unclosed": "\\boxed{" + "1" * 1000,
    "many unclosed": "\\boxed{" * 10**5,
    "many empty": "\\boxed{}" * 10**5,
    "nested": "\\boxed{" * 10**5 + "}" * 10**5,
    "no brace": "\\boxed " * 10**6,
    "tags": "<answer>" * 10**5,
    "nested tags": "<answer>" * 10**5 + "1" + "</answer>" * 10**5,
    "closing tags": "</answer>" * 10**6,
    "braces": "{" * 10**6 + "}" * 10**6,
    "escapes": "\\" * 10**6 + "boxed{",
    "surrogates": "\ud800" * 10**6,
    "NUL": "\x00" * 10**6,
    "nothing": "",
}
NAMES = [name for name in tasks.names() if name in TRUTHS]


@pytest.fixture(params=NAMES)
def judged(request):
    """`verify` of each task for one truth, with the time of every verdict checked."""
    if request.param == "math":
        pytest.importorskip("math_verify", reason="math-verify comes with the extra 'tasks'")
    task, truth = tasks.get(request.param), TRUTHS[request.param]
    # The worker of math starts here, not in a time that is measured.
    assert task.verify("\\boxed{y + x}", truth).score == 0.0

    def verify(text: str) -> Verdict:
        started = time.perf_counter()
        verdict = task.verify(text, truth)
        spent = time.perf_counter() - started
        assert spent < SECONDS + WAITING, f"{spent:.2f} s"
        return verdict

    verify.name = request.param
    return verify


def test_every_task_is_covered():
    assert set(tasks.names()) - set(TRUTHS) == set(), "give the new task a truth and an answer"


def test_the_right_answer_after_hostile_text(judged):
    if judged.name == "sort":
        pytest.skip("the whole completion is the answer")
    right = f"\\boxed{{{RIGHT[judged.name]}}}"
    assert judged(right).score == 1.0
    for text in (*BOMBS.values(), *LOOK_ALIKES.values(), *BOXES.values()):
        assert judged(f"{text} {right}").score == 1.0
    assert judged(f"\\boxed{{1}} \\boxed{{2}} {right}").score == 1.0
    assert judged(f"{right} \\boxed{{2}}").score == 0.0


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs(judged, kind):
    verdict = judged(f"Hence \\boxed{{{BOMBS[kind]}}}.")
    assert verdict.score == (judged.name == "math" and kind in RIGHT_AS_MATHEMATICS)
    assert len(verdict.reason) < 200
    assert judged(BOMBS[kind]).score == 0.0


@pytest.mark.parametrize("kind", LOOK_ALIKES)
def test_look_alikes(judged, kind):
    verdict = judged(f"Hence \\boxed{{{LOOK_ALIKES[kind]}}}.")
    assert verdict.score == 0.0


@pytest.mark.parametrize("kind", BOXES)
def test_boxes(judged, kind):
    assert judged(BOXES[kind]).score == 0.0
    if judged.name != "sort":
        assert judged(f"{RIGHT[judged.name]} {BOXES[kind]}").score == 0.0


def test_typical_time(judged):
    """A millisecond at most in the middle; five here, where other work shares the processors."""
    if judged.name == "math":
        pytest.skip("some are compared by another process")
    texts = [f"\\boxed{{{bomb}}}" for bomb in (*BOMBS.values(), *LOOK_ALIKES.values())]
    spent = []
    for text in (*texts, *BOXES.values()):
        started = time.perf_counter()
        judged(text)
        spent.append(time.perf_counter() - started)
    assert statistics.median(spent) < 0.005


def test_memory(judged):
    texts = [f"\\boxed{{{bomb}}}" for bomb in (*BOMBS.values(), *LOOK_ALIKES.values())]
    texts += BOXES.values()
    for text in texts:
        tracemalloc.start()
        judged(text)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        # Stripping and slicing may copy the text, as many bytes a character as its widest needs.
        assert peak < MEMORY + 4 * len(text), text[:40]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4 << 20  # KiB


def test_noise(judged):
    alphabet = "0123456789+-*/^(){}[]\\!.,=<>answerboxedfrac \n\t\x00\u202e٣９\ud800"
    rng = random.Random(0)
    for _ in range(150):
        text = "".join(rng.choices(alphabet, k=rng.randint(0, 60)))
        verdict = judged(f"\\boxed{{{text}}}")
        assert 0.0 <= verdict.score <= 1.0


def test_bombs_in_threads_leave_the_right_answers_right():
    pytest.importorskip("math_verify", reason="math-verify comes with the extra 'tasks'")
    verify = tasks.get("math").verify
    texts, expected = [], []
    for i in range(6):
        texts += [f"\\boxed{{\\int_0^1 x^{{x^{{x+{i}}}}} dx}}", f"\\boxed{{x+{i}+y}}"]
        expected += [0.0, 1.0]
    truths = [f"y+x+{i // 2}" for i in range(12)]
    started = time.perf_counter()
    with ThreadPoolExecutor(4) as threads:
        scores = [v.score for v in threads.map(verify, texts, truths)]
    assert scores == expected
    # Threads take turns at few workers: at most a second each.
    assert time.perf_counter() - started < 12 * SECONDS + WAITING
    assert threading.active_count() < 20
