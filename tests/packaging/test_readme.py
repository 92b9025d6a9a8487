"""The README's Python snippets run, and the files it names exist."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_readme_has_snippets() -> None:
    assert len(SNIPPETS) == 3


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippet_runs(number: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", SNIPPETS[number]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), "every snippet prints what it made"


def test_the_quick_start_table_is_the_measured_one() -> None:
    script = ROOT / "benchmarks" / "quickstart_seeds.py"
    code = (
        "import json, quickstart_seeds as q; "
        "print(q.table(json.loads(q.RESULT.read_text())['runs']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=script.parent, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() in README


def test_numbers_are_those_of_the_code_and_of_the_benchmark() -> None:
    from sec_grpo.curriculum.registry import strategy_names

    assert f"the curriculum core with {len(strategy_names())} strategies" in README
    rows = json.loads((ROOT / "benchmarks" / "results" / "curriculum.json").read_text())["rows"]
    (row,) = [row for row in rows if (row["prompts"], row["arms"]) == (30_000, 3)]
    cost = row["b256"]["draw"] + row["b256"]["observe"]
    assert f"about {round(cost, -1):.0f} microseconds a step for a batch of 256" in README


def test_the_readme_stays_short() -> None:
    assert len(README.splitlines()) <= 200
