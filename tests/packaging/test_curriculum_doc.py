"""docs/curriculum.md: its snippets run, in order, and its links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs" / "curriculum.md").read_text()


def test_snippets_run_in_order(tmp_path: Path) -> None:
    snippets = re.findall(r"```python\n(.*?)```", DOC, flags=re.DOTALL)
    assert len(snippets) == 5
    script = tmp_path / "snippets.py"
    script.write_text("\n".join(snippets))
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    shares, new, groups, same, own, teacher = done.stdout.splitlines()
    assert shares.startswith("{(1, 'alg'): ")
    assert new == "[300 301] (4, 'geo')"
    assert re.fullmatch(r"16 groups to train on, \d+ generated", groups)
    assert same == "True"
    assert own == "[0.07 0.93]"
    assert re.fullmatch(r"\{'tasks': 480.0, 'components': [0-9]+.0, 'alp': 0\.[0-9]+\}", teacher)


def test_linked_files_exist() -> None:
    for link in re.findall(r"\]\((?!https?://|#)([^)]+)\)", DOC):
        assert (ROOT / "docs" / link).is_file(), link
    for path in re.findall(r"`(benchmarks/[\w./]+)`", DOC):
        assert (ROOT / path).is_file(), path
