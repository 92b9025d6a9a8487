import time
from itertools import pairwise
from string import ascii_lowercase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sec_grpo import tasks
from sec_grpo.tasks import Verdict
from sec_grpo.tasks.sort import SortTask

SORT = SortTask()


def test_levels():
    assert SORT.levels == (2, 4, 6, 8, 10, 12, 14, 16)
    assert SORT.held_out_levels == (18, 20)


def test_rows_of_a_fixed_seed():
    assert SORT.generate(6, 3, seed=0) == [
        {"prompt": "kgtfsx>", "ground_truth": "fgkstx", "difficulty": 6, "task": "sort"},
        {"prompt": "vpqobm>", "ground_truth": "bmopqv", "difficulty": 6, "task": "sort"},
        {"prompt": "nxmayf>", "ground_truth": "afmnxy", "difficulty": 6, "task": "sort"},
    ]


@pytest.mark.parametrize("level", range(1, 27))
def test_rows_are_n_distinct_letters_and_their_order(level):
    for row in SORT.generate(level, 20, seed=level):
        letters = row["prompt"].removesuffix(">")
        assert row["prompt"] == letters + ">"
        assert len(set(letters)) == len(letters) == level
        assert set(letters) <= set(ascii_lowercase)
        truth = row["ground_truth"]
        assert sorted(truth) == sorted(letters)
        assert all(a < b for a, b in pairwise(truth))
        assert SORT.verify(truth, truth) == Verdict(1.0, "right", True)


@pytest.mark.parametrize(
    ("text", "score", "well_formed"),
    [
        ("abcd", 1.0, True),
        (" abcd\n", 1.0, True),
        ("dacb", 0.0, True),
        ("abc", 0.0, True),
        ("abcde", 0.0, True),
        ("abcdabcd", 0.0, True),
        ("ab cd", 0.0, False),
        ("ABCD", 0.0, False),
        ("abcd>", 0.0, False),
        ("ａｂｃｄ", 0.0, False),
        ("", 0.0, False),
        (" ", 0.0, False),
    ],
)
def test_only_the_exact_answer_scores(text, score, well_formed):
    verdict = SORT.verify(text, "abcd")
    assert (verdict.score, verdict.well_formed) == (score, well_formed)


def test_reward_is_one_or_nothing():
    assert tasks.get("sort").reward(None, ["abcd", "dacb", "?"], ground_truth=["abcd"] * 3) == [
        1,
        0,
        0,
    ]


@given(st.text(), st.lists(st.sampled_from(ascii_lowercase), min_size=1, unique=True))
def test_arbitrary_text_scores_only_if_it_is_the_answer(text, letters):
    truth = "".join(sorted(letters))
    assert SORT.verify(text, truth).score == float(text.strip() == truth)


@given(st.permutations("abcdef"))
def test_no_other_order_scores(letters):
    answer = "".join(letters)
    assert SORT.verify(answer, "abcdef").score == float(answer == "abcdef")


@pytest.mark.parametrize("text", ["a" * 10**7, " " * 10**7, "\x00" * 10**7])
def test_long_text_is_judged_within_a_second(text):
    start = time.perf_counter()
    assert SORT.verify(text, "ab").score == 0.0
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("truth", [None, "", 3, {"target": "ab"}])
def test_a_truth_of_another_task_is_refused(truth):
    with pytest.raises(ValueError, match="ground_truth of task 'sort'"):
        SORT.verify("ab", truth)
