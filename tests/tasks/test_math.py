"""The math task: which answers count as equal, the authors' rows, and hostile answers."""

import itertools
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest

from sec_grpo.tasks import _math_worker, get, load_dataset_file
from sec_grpo.tasks.isolated import Isolated, NotFinished
from sec_grpo.tasks.mathematics import MathTask

pytest.importorskip("math_verify", reason="math-verify comes with the extra 'tasks'")


def box(answer: str) -> str:
    return f"Hence the answer is \\boxed{{{answer}}}."


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("204", "204"),
        ("1,024", "1024"),
        (r"\frac12", r"\frac{1}{2}"),
        ("0.5", r"\frac{1}{2}"),
        (r"\dfrac{3}{4}", r"\frac{3}{4}"),
        ("-7.0", "-7"),
        ("y + x", "x+y"),
        (r"(x-1)(x+1)", "x^2-1"),
        (r"\sqrt{8}", r"2\sqrt{2}"),
        (r"106^\circ", r"106^\circ"),
        (r"\text{Monday}", "Monday"),
        (r"\{1, 2, 3\}", r"\{3,2,1\}"),
        (r"\left(3, \frac{\pi}{2}\right)", r"(3,\pi/2)"),
    ],
)
def test_equal_answers(answer: str, truth: str) -> None:
    verdict = get("math").verify(box(answer), truth)
    assert verdict == (1.0, "right", True)


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("205", "204"),
        (r"\frac{1}{3}", r"\frac{1}{2}"),
        ("x+z", "x+y"),
        ("12", "1 2"),
        (r"2\sqrt{3}", r"2\sqrt{2}"),
        ("(2, 3)", "(3, 2)"),
        ("Tuesday", "Monday"),
    ],
)
def test_other_answers(answer: str, truth: str) -> None:
    verdict = get("math").verify(box(answer), truth)
    assert verdict.score == 0.0
    assert verdict.well_formed


def test_the_last_box_counts_and_must_be_closed() -> None:
    verify = get("math").verify
    assert verify(r"\boxed{3} no, \boxed{4}", "4").score == 1.0
    assert verify(r"\boxed{4} no, \boxed{3}", "4").score == 0.0
    assert verify(r"\boxed{4} and \boxed{4", "4") == (0.0, "no complete \\boxed{}", False)
    assert verify("4", "4").well_formed is False


def test_rewards_of_the_authors() -> None:
    task = get("math")
    completions = [box("4"), box("5"), "4"]
    columns = {"ground_truth": ["4"] * 3}
    assert task.reward(None, completions, **columns) == [1.0, 0.1, 0.0]
    assert task.accuracy(None, completions, **columns) == [1.0, 0.0, 0.0]


def test_bad_truths() -> None:
    assert get("math").verify(box("4"), " ") == (0.0, "the row has no answer", True)
    with pytest.raises(ValueError, match="ground_truth of task 'math' must be an answer in LaTeX"):
        get("math").verify(box("4"), 4)
    with pytest.raises(ValueError, match="has no generator: load its problems"):
        get("math").generate(1, 1, 0)


def test_every_row_of_the_authors(sec_data) -> None:
    task = MathTask()
    for name, blank in (("math_train", 2), ("math_test", 0)):
        rows = load_dataset_file(sec_data / f"{name}.parquet")
        truths = rows["ground_truth"]
        wrong = [t for t in truths if task.verify(box(t), t).score != 1.0]
        assert wrong == [""] * blank
        prompt = rows[0]["prompt"]
        assert prompt == task.prompt(prompt[0]["content"].split("User: ")[1].split(" Put your")[0])
    # The answer of another row is right only where the two rows have the same one.
    truths = rows["ground_truth"]
    right = [
        (mine, other)
        for mine, other in itertools.pairwise(truths)
        if task.verify(box(other), mine).score == 1.0
    ]
    assert len(right) == 4
    assert all(mine == other for mine, other in right)


@pytest.mark.parametrize(
    "answer",
    [
        "9^{9^{9^{9}}}",
        "9**9**9**9",
        "(9^{999})^{999999}",
        "99999!",
        "((9!)!)!",
        "1e999999",
        "9" * 400,
        "{" * 500 + "}" * 500,
        "(" * 10**6,
        "9" * 10**6,
        r"\frac{" * 30 + "1" + "}{2}" * 30,
        r"\int_0^1 x^{x^{x}} dx",
        r"\sum_{n=1}^{99999} \sin(n^{n})",
        "\N{FULLWIDTH DIGIT ONE}\N{COMBINING LONG STROKE OVERLAY}",
        "\x00\ud800",
        "__import__('os').system('true')",
    ],
)
def test_hostile_answers_are_wrong_in_bounded_time(answer: str) -> None:
    started = time.monotonic()
    verdict = get("math").verify(box(answer), "7")
    assert verdict.score == 0.0
    # The limit of one comparison is 1 s; the first starts the process, which imports SymPy.
    assert time.monotonic() - started < 30


def test_a_comparison_that_takes_too_long_is_given_up_and_the_next_works() -> None:
    equal = Isolated(_math_worker.equal, time_limit=0.3, warm_up=_math_worker.warm_up)
    with pytest.raises(NotFinished, match=r"took longer than 0\.3 s"):
        equal("7", r"\int_0^1 x^{x^{x}} dx")
    started = time.monotonic()
    assert equal("x+y", "y+x") is True
    assert equal("x+y", "y") is False
    # SymPy is not imported again.
    assert time.monotonic() - started < 2
    equal.close()


def test_threads_and_processes_share_the_task() -> None:
    task = get("math")
    answers = [box(f"{n}+a_{{{n}}}") for n in range(8)]
    truths = [f"a_{{{n}}}+{n}" for n in range(8)]
    with ThreadPoolExecutor(4) as pool:
        assert [v.score for v in pool.map(task.verify, answers, truths)] == [1.0] * 8
    assert threading.active_count() < 10
    with ProcessPoolExecutor(2) as pool:
        verdicts = pool.map(task.verify, [box("p+q"), box("p-q")], ["q+p", "q+p"])
        assert [v.score for v in verdicts] == [1.0, 0.0]
