"""Countdown: built answers, broken answers, and every row of the authors' files."""

import random
import time
from collections import Counter
from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sec_grpo.tasks import load_dataset_file
from sec_grpo.tasks.countdown import CountdownTask

COUNTDOWN = CountdownTask()
TRUTH = {"numbers": "8,73,96", "target": 841}


def score(expression: str, truth=TRUTH) -> float:
    return COUNTDOWN.verify(f"Let me see. \\boxed{{{expression}}}", truth).score


def test_levels():
    assert COUNTDOWN.levels == (3, 4, 5)
    assert COUNTDOWN.held_out_levels == (6,)


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{8 * 96 + 73}",
        r"\boxed{73+(96*8)}",
        r"\boxed{8 \times 96 + 73} is it.",
        r"\boxed{8 * 96 + 73 = 841}",
        r"First \boxed{8 + 73 + 96}, no: \boxed{8 * 96 + 73}",
        r"\boxed{73 - (-96 * 8)}",
        "<think>8 + 73</think> <answer> 8 * 96 + 73 </answer>",
        r"\boxed{8} so <answer>8 * 96 + 73</answer>",
        r"<answer>8 + 73 + 96</answer>, or rather \boxed{8 * 96 + 73}",
        r"<answer>\boxed{8 * 96 + 73}</answer>",
    ],
)
def test_right_answers(text):
    assert COUNTDOWN.verify(text, TRUTH) == (1.0, "right", True)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (r"\boxed{8 + 73 + 96}", "not the target"),
        (r"\boxed{8 * 96 + 73 = 842}", "a false equation"),
        (r"\boxed{8 + 73 + 96 = 841}", "not the target"),
        (r"\boxed{8 * 96}", "not each number exactly once"),
        (r"\boxed{8 * 96 + 73 + 8 - 8}", "not each number exactly once"),
        (r"\boxed{841}", "not each number exactly once"),
        (r"\boxed{8 * 96 + 70 + 3}", "not each number exactly once"),
        (r"\boxed{8 * 96 + 73 * (1 - 0)}", "not each number exactly once"),
        (r"\boxed{8 / (73 - 73)}", "not each number exactly once"),
        (r"\boxed{8 * 96 + 73} or \boxed{8 + 96 + 73}", "not the target"),
    ],
)
def test_wrong_answers_are_well_formed(text, reason):
    assert COUNTDOWN.verify(text, TRUTH) == (0.0, reason, True)


@pytest.mark.parametrize(
    "text",
    [
        "8 * 96 + 73",
        r"\boxed{8 * 96 + 73",
        r"\boxed{8 * 96 + 73} or \boxed{",
        r"\boxed{}",
        r"\boxed{8 * 96 + 73 = 768 + 73}",
        r"\boxed{8 * 96 + 73 = 768 + 73 = 841}",
        r"\boxed{841 = 8 * 96 + 73}",
        r"\boxed{8 * 96 + 73 =}",
        r"\boxed{= 841}",
        r"\boxed{8 * 96 + 73 == 841}",
        r"\boxed{8 * 96 + 73 = 841.0}",
        r"\boxed{8 * 96 + 73; 1}",
        r"\boxed{8(96) + 73}",
        r"\boxed{the answer is 8 * 96 + 73}",
        "\\boxed{８ * 96 + 73}",
        "<answer>8 * 96 + 73",
        r"\boxed{8 * 96 + 73} <answer>",
    ],
)
def test_answers_in_no_known_format(text):
    verdict = COUNTDOWN.verify(text, TRUTH)
    assert (verdict.score, verdict.well_formed) == (0.0, False)


def test_what_the_authors_checker_gets_wrong():
    """Cases of curriculum.md: a hang, floor division, and "1.5" read as the numbers 1 and 5."""
    assert COUNTDOWN.verify(r"\boxed{96**73**8}", TRUTH).well_formed is False
    assert COUNTDOWN.verify(r"\boxed{7//2}", {"numbers": "7,2", "target": 3}).well_formed is False
    assert (
        COUNTDOWN.verify(r"\boxed{1.5*2}", {"numbers": "1,5,2", "target": 3}).well_formed is False
    )


def test_division_is_exact():
    assert score("1 / 3 * 9", {"numbers": "1,3,9", "target": 3}) == 1.0
    assert score("8 / (3 - 8 / 3)", {"numbers": "3,3,8,8", "target": 24}) == 1.0
    assert score("7 / 2", {"numbers": "7,2", "target": 3}) == 0.0
    # 1e-17 from the target in floating point.
    assert score("100 * 99 * 98 / 97", {"numbers": "100,99,98,97", "target": 10002}) == 0.0
    # A zero on the way is no crash, and no value.
    assert score("5 / (4 - 4)", {"numbers": "5,4,4", "target": 1}) == 0.0


def test_repeated_numbers_count_as_often_as_given():
    truth = {"numbers": [5, 5, 2], "target": 12}
    assert score("5 + 5 + 2", truth) == 1.0
    assert score("5 * 2 + 2", truth) == 0.0
    assert score("2 + 5 * 2", {"numbers": [5, 5, 2], "target": 12}) == 0.0


def test_numbers_as_text_or_list_give_the_same_prompt_and_verdict():
    as_list = {"numbers": [8, 73, 96], "target": 841}
    assert COUNTDOWN.prompt(TRUTH) == COUNTDOWN.prompt(as_list)
    assert score("8 * 96 + 73", as_list) == 1.0


@pytest.mark.parametrize(
    "truth",
    [
        None,
        "841",
        {},
        {"numbers": "8,73,96"},
        {"numbers": "8,x", "target": 1},
        {"numbers": "", "target": 1},
        {"numbers": [1.5], "target": 1},
        {"numbers": 8, "target": 1},
        {"numbers": "8", "target": 8.5},
        {"numbers": "8", "target": None},
    ],
)
def test_a_truth_of_another_form_is_refused(truth):
    with pytest.raises(ValueError, match="ground_truth of task 'countdown'"):
        COUNTDOWN.verify(r"\boxed{8}", truth)


def test_training_and_evaluation_rewards():
    completions = [r"\boxed{8*96+73}", r"\boxed{8+96+73}", "8*96+73"]
    chat = [[{"role": "assistant", "content": text}] for text in completions]
    for given_completions in (completions, chat):
        truths = [TRUTH] * 3
        assert COUNTDOWN.reward(None, given_completions, ground_truth=truths) == [1.0, 0.1, 0.0]
        assert COUNTDOWN.accuracy(None, given_completions, ground_truth=truths) == [1.0, 0.0, 0.0]


# The oracle: trees that know their value. A tree is a number or (operator, left, right).


def value(tree) -> Fraction | None:
    if isinstance(tree, int):
        return Fraction(tree)
    left, right = value(tree[1]), value(tree[2])
    if left is None or right is None or (tree[0] == "/" and right == 0):
        return None
    return {
        "+": lambda: left + right,
        "-": lambda: left - right,
        "*": lambda: left * right,
        "/": lambda: left / right,
    }[tree[0]]()


def text(tree) -> str:
    return str(tree) if isinstance(tree, int) else f"({text(tree[1])} {tree[0]} {text(tree[2])})"


def leaves(tree) -> list[int]:
    return [tree] if isinstance(tree, int) else leaves(tree[1]) + leaves(tree[2])


@st.composite
def trees(draw, min_leaves=2):
    terms = draw(st.lists(st.integers(1, 100), min_size=min_leaves, max_size=6))
    while len(terms) > 1:
        at = draw(st.integers(0, len(terms) - 2))
        terms[at : at + 2] = [(draw(st.sampled_from("+-*/")), terms[at], terms[at + 1])]
    return terms[0]


def truth_of(tree) -> dict:
    """The problem that the tree solves; only for trees with an integer value."""
    total = value(tree)
    assume(total is not None and total.denominator == 1)
    return {"numbers": ",".join(map(str, sorted(leaves(tree)))), "target": int(total)}


@given(trees())
def test_every_expression_built_right_scores_one(tree):
    truth = truth_of(tree)
    assert score(text(tree), truth) == 1.0
    assert score(f"{text(tree)} = {truth['target']}", truth) == 1.0


@given(trees(), st.integers(-3, 3).filter(bool))
def test_another_target_does_not_score(tree, change):
    truth = truth_of(tree)
    assert score(text(tree), {**truth, "target": truth["target"] + change}) == 0.0


@given(trees(), st.integers(0, 5), st.sampled_from("+-*/"))
def test_a_changed_operator_scores_only_if_the_value_stays(tree, at, operator):
    truth = truth_of(tree)
    count = iter(range(5))

    def changed(node):
        if isinstance(node, int):
            return node
        left, right = changed(node[1]), changed(node[2])
        return (operator if next(count) == at else node[0], left, right)

    other = changed(tree)
    assert score(text(other), truth) == float(value(other) == truth["target"])


@given(trees(), st.integers(1, 100), st.sampled_from(["drop", "duplicate", "alter", "add"]))
def test_other_numbers_never_score_even_with_the_right_value(tree, number, how):
    """The answer keeps the target's value; the list of given numbers is what does not fit."""
    truth = truth_of(tree)
    numbers = leaves(tree)
    if how == "drop":
        numbers = numbers[1:]
    elif how == "duplicate":
        numbers = [*numbers, numbers[0]]
    elif how == "alter":
        assume(number != numbers[0])
        numbers = [number, *numbers[1:]]
    else:
        numbers = [*numbers, number]
    verdict = COUNTDOWN.verify(f"\\boxed{{{text(tree)}}}", {**truth, "numbers": numbers})
    assert verdict == (0.0, "not each number exactly once", True)


@given(st.text() | st.text("\\boxed{}0123456789+-*/()=. frac", max_size=80))
def test_arbitrary_text_never_raises(completion):
    for answer in (completion, f"\\boxed{{{completion}}}"):
        verdict = COUNTDOWN.verify(answer, TRUTH)
        assert verdict.score in (0.0, 1.0)
        assert verdict.well_formed or verdict.score == 0.0
        assert verdict.reason


@pytest.mark.parametrize(
    "content",
    [
        "96**73**8",
        "9**9**9",
        "9^9^9",
        "(" * 10**6,
        "(" * 10**6 + "8" + ")" * 10**6,
        "9" * 10**7,
        "8+" * 10**6,
        "-" * 10**6,
        r"\frac{" * 10**6,
        "{" * 10**6 + "}" * 10**6,
        "=" * 10**6,
        "8/(1/(" * 80,
        "8" + "*96" * 10**6,
    ],
)
def test_hostile_answers_are_refused_within_a_second(content):
    start = time.perf_counter()
    verdict = COUNTDOWN.verify(f"\\boxed{{{content}}}", TRUTH)
    assert time.perf_counter() - start < 1
    assert verdict.score == 0.0
    assert verdict.well_formed is False


def test_rows_of_a_fixed_seed():
    rows = COUNTDOWN.generate(3, 2, seed=0)
    assert [row["ground_truth"] for row in rows] == [
        {"numbers": "79,70,99", "target": 11},
        {"numbers": "43,32,12", "target": 484},
    ]
    assert [row["solution"] for row in rows] == ["99 / (79 - 70)", "(43 * 12) - 32"]
    assert [(row["difficulty"], row["task"]) for row in rows] == [(3, "countdown")] * 2


@pytest.mark.parametrize("level", [2, 3, 4, 5, 6, 10])
def test_generated_rows_keep_the_rules_and_are_solved_by_their_solution(level):
    operators = Counter()
    for row in COUNTDOWN.generate(level, 500, seed=level):
        truth = row["ground_truth"]
        numbers = [int(number) for number in truth["numbers"].split(",")]
        assert len(numbers) == row["difficulty"] == level
        assert all(1 <= number <= 100 for number in numbers)
        assert 1 <= truth["target"] <= 1000
        assert score(row["solution"], truth) == 1.0
        assert row["prompt"] == COUNTDOWN.prompt(truth)
        operators.update(character for character in row["solution"] if character in "+-*/")
    assert set(operators) == set("+-*/")
    assert sum(operators.values()) == 500 * (level - 1)


def solve(terms: list[tuple[int, str]], target: int) -> str | None:
    """Some expression over integers that reaches the target, by trying all of them."""
    if len(terms) == 1:
        return terms[0][1] if terms[0][0] == target else None
    for i, j in combinations(range(len(terms)), 2):
        rest = [term for at, term in enumerate(terms) if at not in (i, j)]
        (a, x), (b, y) = sorted((terms[i], terms[j]), reverse=True)
        joined = [(a + b, f"({x} + {y})"), (a * b, f"({x} * {y})"), (a - b, f"({x} - {y})")]
        if b and a % b == 0:
            joined.append((a // b, f"({x} / {y})"))
        for term in joined:
            if (solution := solve([*rest, term], target)) is not None:
                return solution
    return None


def test_the_files_hold_the_prompts_the_task_would_write(sec_data):
    counts = Counter()
    for name in ("countdown_train", "countdown_test"):
        for row in load_dataset_file(sec_data / f"{name}.parquet"):
            truth = row["ground_truth"]
            assert row["prompt"] == COUNTDOWN.prompt(truth)
            # The files count difficulty from 1: three numbers.
            assert len(truth["numbers"].split(",")) == row["difficulty"] + 2
            counts[name, row["difficulty"]] += 1
    assert counts == {
        **{("countdown_train", level): 10_000 for level in (1, 2, 3)},
        **{("countdown_test", level): 100 for level in (1, 2, 3, 4)},
    }


@pytest.mark.parametrize(("difficulty", "rows"), [(1, 100), (2, 40), (3, 10), (4, 2)])
def test_solved_rows_of_the_files_score_and_their_answers_fit_no_other_row(
    sec_data, difficulty, rows
):
    data = load_dataset_file(sec_data / "countdown_test.parquet")
    truths = [row["ground_truth"] for row in data if row["difficulty"] == difficulty]
    chosen = random.Random(0).sample(truths, rows)
    for truth, other in zip(chosen, [*chosen[1:], truths[0]], strict=True):
        numbers = [int(number) for number in truth["numbers"].split(",")]
        solution = solve([(number, str(number)) for number in numbers], truth["target"])
        assert solution is not None, truth
        assert score(solution, truth) == 1.0
        assert score(solution, other) == 0.0
