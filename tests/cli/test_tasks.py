"""`sec-grpo tasks`: the list, and one task with an example."""

import pytest

from sec_grpo.tasks import get


def test_the_list(run) -> None:
    pytest.importorskip("reasoning_gym")
    pytest.importorskip("math_verify")
    shown = run("tasks").output
    assert "countdown" in shown
    assert "3, 4, 5" in shown
    words = shown.replace(",", " ").split()
    for name in ("chain_sum", "zebra_puzzles", "sokoban"):
        assert name in words
    assert "arithmetic:" in shown


@pytest.mark.parametrize(("name", "level"), [("sort", 4), ("countdown", 3), ("zebra", 3)])
def test_one_task(run, name: str, level: int) -> None:
    if name == "zebra":
        pytest.importorskip("reasoning_gym")
    shown = run("tasks", name, "--level", level, "--seed", 2).output
    row = get(name).generate(level, 1, 2)[0]
    prompt = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][0]["content"]
    assert "".join(prompt.split()) in "".join(shown.split())
    assert "(held out)" in shown
    assert str(row.get("solution", row["ground_truth"])) in " ".join(shown.split())


def test_knobs(run) -> None:
    pytest.importorskip("reasoning_gym")
    shown = " ".join(run("tasks", "reasoning_gym/chain_sum").output.split())
    assert "2 min_terms=3, max_terms=3, min_digits=2, max_digits=2" in shown
    assert "level 1:" in shown
    assert "answer:" in shown
    with pytest.raises(ValueError, match="unknown task 'chess'"):
        run("tasks", "chess")
