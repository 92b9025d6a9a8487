"""Evaluation: the numbers by hand, the completions file, judges that fail, determinism."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow.parquet
import pytest

from sec_grpo.evaluation import evaluate, pass_at_k
from sec_grpo.evaluation.evaluate import Judgement
from sec_grpo.report.table import wilson_interval
from sec_grpo.tiny import character_tokenizer, tiny_qwen2

ROWS = [{"prompt": f"{'ab' * i}>", "level": i % 2, "ground_truth": "x"} for i in range(1, 7)]


@pytest.fixture(scope="module")
def model():
    tokenizer = character_tokenizer("ab>x")
    return tiny_qwen2(tokenizer, seed=1), tokenizer


def judge_by_row(text: str, row: dict) -> Judgement:
    """Right for rows 1 to 3, wrong for the others."""
    return Judgement(float(len(row["prompt"]) <= 7), "by length", True)


def run(model, judge=judge_by_row, **kwargs):
    options = {"category": "level", "max_completion_length": 5, "batch_size": 4, **kwargs}
    return evaluate(*model, ROWS, judge, **options)


def test_pass_at_k_by_hand() -> None:
    assert pass_at_k(4, 2, 1) == 0.5
    # Of the 6 pairs of 4 samples only one holds no right one.
    assert pass_at_k(4, 2, 2) == pytest.approx(5 / 6)
    assert pass_at_k(4, 2, 3) == 1.0
    assert pass_at_k(4, 0, 4) == 0.0
    for arguments in ((4, 2, 5), (4, 2, 0), (4, 5, 1)):
        with pytest.raises(ValueError, match="must be between"):
            pass_at_k(*arguments)


def test_levels_by_hand(model) -> None:
    result = run(model)
    # Levels 0 (rows 2, 4, 6) and 1 (rows 1, 3, 5): 1 and 2 of 3 are right.
    assert [level.label for level in result.levels] == [0, 1]
    assert [level.accuracy for level in result.levels] == pytest.approx([1 / 3, 2 / 3])
    assert (result.levels[0].low, result.levels[0].high) == wilson_interval(1 / 3, 3)
    assert result.levels[0].prompts == 3
    assert result.mean([0, 1]) == pytest.approx(0.5)
    assert math.isnan(result.mean([9]))


def test_several_samples_count_prompts_not_samples(model) -> None:
    counter = iter(range(1000))

    def every_other(text: str, row: dict) -> Judgement:
        return Judgement(float(next(counter) % 2 == 0), "", True)

    result = run(model, every_other, samples=4, ks=(1, 2, 4))
    for level in result.levels:
        assert level.accuracy == 0.5
        assert level.pass_at == pytest.approx({1: 0.5, 2: 5 / 6, 4: 1.0})
        assert (level.low, level.high) == wilson_interval(0.5, 3)


def test_completions_are_kept_whole(model, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "completions.parquet"
    result = run(model, samples=2, completions=path)
    assert result.completions == path
    rows = pyarrow.parquet.read_table(path).to_pylist()
    assert [(row["row"], row["sample"]) for row in rows] == [(i, j) for i in range(6)
                                                             for j in range(2)]  # fmt: skip
    assert rows[0]["prompt"] == "ab>"
    assert rows[0]["ground_truth"] == "x"
    assert rows[0]["score"] == 1.0
    assert rows[-1]["score"] == 0.0
    assert all(row["tokens"] <= 5 for row in rows)
    assert list(path.parent.iterdir()) == [path]


def test_an_interrupted_run_leaves_no_file(model, tmp_path: Path) -> None:
    def interrupted(text: str, row: dict) -> Judgement:
        if len(row["prompt"]) > 10:
            raise KeyboardInterrupt
        return Judgement(1.0, "", True)

    with pytest.raises(KeyboardInterrupt):
        run(model, interrupted, completions=tmp_path / "completions.parquet")
    assert list(tmp_path.iterdir()) == []


def test_one_failing_answer_never_loses_the_batch(model, tmp_path: Path) -> None:
    def fails_once(text: str, row: dict) -> Judgement:
        if len(row["prompt"]) == 5:
            raise ZeroDivisionError("of the answer")
        return Judgement(1.0, "", True)

    path = tmp_path / "completions.parquet"
    result = run(model, fails_once, completions=path)
    assert result.failures == 1
    bad = pyarrow.parquet.read_table(path).to_pylist()[1]
    assert bad["score"] == 0.0
    assert bad["reason"] == "the judge raised ZeroDivisionError: of the answer"


def test_a_judge_that_always_fails_is_an_error(model) -> None:
    def broken(text: str, row: dict) -> Judgement:
        raise KeyError("truth")

    with pytest.raises(ValueError, match="raised for all of the first 6 completions.*KeyError"):
        run(model, broken)


def test_the_seed_decides(model) -> None:
    def texts(**kwargs) -> list[str]:
        seen: list[str] = []

        def note(text: str, row: dict) -> Judgement:
            seen.append(text)
            return Judgement(0.0, "", True)

        run(model, note, **kwargs)
        return seen

    assert texts(samples=2, seed=3) == texts(samples=2, seed=3)
    assert texts(samples=2, seed=3) != texts(samples=2, seed=4)
    # Greedy answers do not depend on the batch.
    assert texts(batch_size=1) == texts(batch_size=6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples must be at least 1"),
        ({"ks": (2,)}, "every k of pass@k must be between 1 and samples=1, got 2"),
        ({"samples": 2, "temperature": 0.0}, "temperature must be above 0 with samples=2"),
        ({"temperature": -1.0}, "temperature must be 0 or above"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\]"),
        ({"max_completion_length": 10**6}, "row 0: the prompt's 3 tokens .* exceed the model's"),
        ({"category": "nothing"}, "no column 'nothing'"),
    ],
)
def test_bad_arguments(model, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(model, **options)
