"""docs/trainer.md: its links lead somewhere, and the benchmark behind its figures works."""

import re
from pathlib import Path

import pytest
import torch
from trainer_runs import LENGTHS, TRAINERS, Shape, make_batch, measure_step, measure_update

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs" / "trainer.md").read_text()
SMALL = Shape("small", 16, 1, 2, 2, 32, 200, prompt=4, completion=8, rows=40)


def test_linked_files_exist() -> None:
    for link in re.findall(r"\]\((?!https?://|#)([^)#]+)[^)]*\)", DOC):
        assert (ROOT / "docs" / link).is_file(), link


@pytest.mark.parametrize("lengths", LENGTHS)
def test_batches(lengths: str) -> None:
    batch = make_batch(SMALL, lengths)
    sizes = [len(ids) for ids in batch.completion_ids]
    assert len(sizes) == SMALL.rows
    assert max(sizes) <= 8
    assert (min(sizes) == 8) == (lengths == "equal")
    groups = torch.tensor(batch.rewards).reshape(-1, 8)
    dead = int((groups.std(dim=1) == 0).sum())
    assert dead == (2 if "dead" in lengths else 0)  # 40% of 5 groups


@pytest.mark.parametrize("lengths", LENGTHS[1:])
def test_both_trainers_make_the_same_step(lengths: str) -> None:
    """Of the same completions the same gradient, in time that is part of the whole step's."""
    batch = make_batch(SMALL, lengths)
    ours, theirs = (
        measure_update(name, SMALL, batch, micro_batch=8, steps=2, keep_gradient=True)
        for name in TRAINERS
    )
    assert ours.gradient is not None
    assert ours.gradient.norm() > 1e-2
    torch.testing.assert_close(ours.gradient, theirs.gradient, rtol=1e-3, atol=1e-6)
    for found in (ours, theirs):
        assert 0 < found.update_seconds[0] < found.step_seconds[0]
        assert found.peak_bytes >= found.resident_bytes > 0


def test_whole_steps_have_shares() -> None:
    found = measure_step("sec-grpo", steps=2)
    entry = found.log[-1]
    parts = sum(value for name, value in entry.items() if name.startswith("time/"))
    assert 0.5 * entry["step_time"] < parts <= entry["step_time"]
