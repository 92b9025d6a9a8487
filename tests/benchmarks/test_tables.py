"""The tables of README and docs are those of the measured results, and say what is missing."""

from __future__ import annotations

import head_tables
import pytest
import tables
import trainer_tables
from bench_heads import GPU_SHAPES
from trainer_runs import LENGTHS, SHAPES


@pytest.mark.parametrize(("file", "name"), tables.tables())
def test_documentation_has_the_measured_tables(file, name):
    text = (tables.ROOT / file).read_text()
    assert tables.place(text, name, tables.tables()[file, name]) == text


def test_a_page_without_marks_is_refused():
    with pytest.raises(ValueError, match="substring not found"):
        tables.place("# A page\n", "update", "| a |")


def test_what_is_not_measured_says_so():
    assert trainer_tables.update_table({}).count("not measured") == 6 * len(SHAPES) * len(LENGTHS)
    assert trainer_tables.readme_table({}).count("not measured") == 4 * len(SHAPES)
    assert head_tables.heads_table({}).count("not measured") == 6 * len(GPU_SHAPES)
    assert head_tables.policy_table({}).count("not measured") == 5


def entry(group, name, milliseconds, **more):
    return {"group": group, "name": name, "median_ms": milliseconds, "peak_gib": 0.5, **more}


def test_heads_are_multiples_of_the_bare_products():
    measured = [
        *(entry(group, "bare products", 10.0) for group in ("train", "frozen", "logprobs")),
        *(entry(group, "sec-grpo", 10.6) for group in ("train", "frozen", "logprobs")),
        entry("dead", "sec-grpo", 5.3),
        entry("train", "trl", 21.0),
        entry("train", "quack", 11.0),
        entry("train", "torch eager", 0.01, out_of_memory=True),
        entry("frozen", "sec-grpo, torch", 1.0),
        entry("frozen", "trl", 15.0),
    ]
    shape = GPU_SHAPES[1].name
    part = {"environment": {"gpu": "A GPU"}, "benchmarks": measured}
    table = head_tables.heads_table({shape: part})
    assert "| 10.6 ms, 1.06x (quack 1.10x) | 10.6 ms, 1.06x (trl 1.50x) | 10.6 ms, 1.06x |" in table
    assert "| 0.50 of training | 0.50 |" in table
    assert table.count("not measured") == 6 * (len(GPU_SHAPES) - 1)


def test_a_head_that_failed_says_so():
    part = {"environment": {"gpu": "A GPU"}, "benchmarks": [entry("train", "bare products", 1.0)]}
    assert head_tables.heads_table({GPU_SHAPES[0].name: part}).count("failed") == 5


def test_policy_loss_is_a_multiple_of_a_copy():
    measured = [
        {"device": device, "how": how, "work": work, "median_ms": time}
        for device, how, work, time in (
            ("cpu", "called", "own", 9.0),
            ("A GPU", "called", "own", 0.2),
            ("A GPU", "replayed", "own", 0.012),
            ("A GPU", "replayed", "copy", 0.01),
        )
    ]
    parts = {"all": {"environment": {"gpu": "A GPU"}, "benchmarks": measured}}
    table = head_tables.policy_table(parts)
    assert table.endswith("| A GPU | 0.012 ms | 0.010 ms | 1.20x | 0.200 ms |")
    parts["all"]["benchmarks"] = measured[:3]
    assert head_tables.policy_table(parts).count("not measured") == 5
