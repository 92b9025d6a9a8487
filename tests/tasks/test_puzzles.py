"""Zebra and ARC-1D: generation, verdicts, hostile answers, and the authors' rows."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sec_grpo.tasks import get, load_dataset_file, task_of

reasoning_gym = pytest.importorskip("reasoning_gym")
DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "sec"
ZEBRA, ARC = get("zebra"), get("arc_1d")
ROW = {"target": "0 0 5 9"}


@pytest.mark.parametrize(
    ("text", "score", "well_formed"),
    [
        (r"So it is \boxed{Alice}", 1, True),
        (r"\boxed{alice}", 1, True),
        (r"\boxed{ ALICE. }", 1, True),
        (r"\boxed{\text{Alice}}", 1, True),
        (r"first \boxed{bob}, no: \boxed{alice}", 1, True),
        (r"first \boxed{alice}, no: \boxed{bob}", 0, True),
        (r"\boxed{alice bob}", 0, False),
        (r"\boxed{alice, not bob}", 0, False),
        (r"\boxed{}", 0, False),
        (r"\boxed{alic\u0435}", 0, False),
        (r"\boxed{alice", 0, False),
        ("alice", 0, False),
        ("", 0, False),
    ],
)
def test_zebra_verdicts(text: str, score: float, well_formed: bool) -> None:
    verdict = ZEBRA.verify(text.encode().decode("unicode_escape") if "\\u" in text else text,
                           {"target": "alice"})  # fmt: skip
    assert (verdict.score, verdict.well_formed) == (score, well_formed)


@pytest.mark.parametrize(
    ("answer", "score", "well_formed"),
    [
        ("0 0 5 9", 1, True),
        ("0,0,5,9", 1, True),
        ("[0, 0, 5, 9]", 1, True),
        (r"0\ 0\ 5\ 9", 1, True),
        (r"\text{0 0 5 9}", 1, True),
        ("0 0 5 9\n", 1, True),
        ("0 0 5 8", 0, True),
        ("0 0 5", 0, True),
        ("0 0 5 9 0", 0, True),
        ("0059", 0, False),
        ("0 0 59", 0, False),
        ("0 0 5 -9", 0, False),
        ("0.0 0 5 9", 0, False),
        ("\u0660 0 5 9", 0, False),
        ("0 0 5 \uff19", 0, False),
        ("zero", 0, False),
        ("", 0, False),
        ("[[0 0 5 9]]", 0, False),
    ],
)
def test_arc_verdicts(answer: str, score: float, well_formed: bool) -> None:
    verdict = ARC.verify(f"The rule gives \\boxed{{{answer}}}", ROW)
    assert (verdict.score, verdict.well_formed) == (score, well_formed)


@pytest.mark.parametrize("task", [ZEBRA, ARC], ids=lambda task: task.name)
@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" * 100_000,
        "\\boxed{" + "\\text{" * 100_000,
        "\\boxed{" + "0 " * 2_000_000 + "}",
        "9" * 10_000_000,
        "\\boxed{" + "{" * 1_000_000 + "}" * 1_000_000 + "}",
        "\x00\ud800\u202e\\boxed{\u202e}",
        "\\boxed{" + "\\" * 1_000_001 + "}",
        "\\boxed{" + ", " * 1900 + "}",
    ],
    ids=range(8),
)
def test_hostile_answers_cost_little(task, text: str) -> None:
    started = time.perf_counter()
    verdict = task.verify(text, {"target": "0 1"} if task is ARC else {"target": "alice"})
    assert time.perf_counter() - started < 0.5
    assert verdict.score == 0


@pytest.mark.parametrize("task", [ZEBRA, ARC], ids=lambda task: task.name)
@pytest.mark.parametrize("truth", [None, 3, {}, {"target": ""}, {"target": 5}, "  "])
def test_bad_truths_are_named(task, truth) -> None:
    with pytest.raises(ValueError, match=f"ground_truth of task '{task.name}'"):
        task.verify("\\boxed{x}", truth)


@pytest.mark.parametrize(
    ("task", "level", "count"), [(ZEBRA, 3, 4), (ZEBRA, 4, 2), (ARC, 10, 20), (ARC, 40, 5)]
)
def test_generated_rows_have_their_size_and_a_right_answer(task, level: int, count: int) -> None:
    rows = task.generate(level, count, seed=1)
    assert [row["difficulty"] for row in rows] == [level] * count
    assert len({str(row["prompt"]) for row in rows}) == count
    for row in rows:
        content = row["prompt"][0]["content"]
        target = row["ground_truth"]["target"]
        assert "\\boxed{}" in content
        assert content.endswith("Assistant: Let me solve this step by step.")
        assert task.verify(f"\\boxed{{{target}}}", row["ground_truth"]).score == 1
        if task is ARC:
            assert len(target.split()) == level
        else:
            assert f"There are {level} houses" in content
    assert task.generate(level, 1, seed=1)[0] == rows[0]


def test_rows_do_not_depend_on_the_hash_seed() -> None:
    script = (
        "from sec_grpo.tasks import get\n"
        "print(get('zebra').generate(3, 2, seed=4), get('arc_1d').generate(10, 3, seed=4))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": seed, "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


rows_of_cells = st.lists(st.integers(0, 9), min_size=1, max_size=40)
separators = st.sampled_from([" ", ", ", ",", "  ", "\n", r"\ ", r"\,"])
frames = st.sampled_from(["{}", "[{}]", r"\text{{{}}}", " {} "])


@given(rows_of_cells, separators, frames)
def test_a_row_however_it_is_written_scores_one(cells, separator, frame) -> None:
    answer = frame.format(separator.join(map(str, cells)))
    truth = {"target": " ".join(map(str, cells))}
    assert ARC.verify(f"so \\boxed{{{answer}}}", truth) == (1.0, "right", True)
    assert ARC.verify(f"so <answer>{answer}</answer>", truth) == (1.0, "right", True)


@given(rows_of_cells, st.data())
def test_a_row_with_a_change_does_not(cells, data) -> None:
    other = list(cells)
    at = data.draw(st.integers(0, len(cells) - 1))
    how = data.draw(st.sampled_from(["alter", "drop", "double", "swap"]))
    if how == "alter":
        other[at] = data.draw(st.integers(0, 9))
    elif how == "drop":
        del other[at]
    elif how == "double":
        other.insert(at, other[at])
    else:
        other[at], other[0] = other[0], other[at]
    verdict = ARC.verify(
        f"\\boxed{{{' '.join(map(str, other))}}}", {"target": " ".join(map(str, cells))}
    )
    assert verdict.score == (other == cells)


@given(st.text(st.characters(codec="ascii", categories=["L"]), min_size=1, max_size=12), st.text())
def test_names_score_as_they_are_alike(name, other) -> None:
    truth = {"target": name}
    assert ZEBRA.verify(f"\\boxed{{{name.swapcase()}.}}", truth).score == 1.0
    alike = other.strip().rstrip(".").strip().casefold() == name.casefold() and other.isascii()
    assert ZEBRA.verify(f"<answer>{other}</answer>", truth).score == alike


@pytest.mark.skipif(not DATA.is_dir(), reason="the authors' rows are not beside the checkout")
@pytest.mark.parametrize(("file", "task"), [("zebra_test", ZEBRA), ("arc_test", ARC)])
def test_every_row_of_the_authors(file: str, task) -> None:
    rows = load_dataset_file(DATA / f"{file}.parquet")
    assert Counter(rows["difficulty"]) == {1: 100, 2: 100, 3: 100, 4: 100}
    truths = rows["ground_truth"]
    for number, row in enumerate(rows):
        truth, other = row["ground_truth"], truths[(number + 1) % len(truths)]
        assert task_of(row) == task.name
        assert task.verify(f"So: \\boxed{{{truth['target']}}}.", truth).score == 1
        score = task.verify(f"So: \\boxed{{{other['target']}}}.", truth).score
        assert score == (other["target"] == truth["target"])
    # Worded as ours: the question between the same two sentences.
    generated = task.generate(task.levels[0], 1, seed=0)[0]["prompt"][0]["content"]
    theirs = rows[0]["prompt"][0]["content"]
    assert generated[:200] == theirs[:200]
    assert generated.split("Assistant:")[-1] == theirs.split("Assistant:")[-1]
