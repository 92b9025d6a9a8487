"""Write the tables of the documentation anew from `results/`: `python benchmarks/tables.py`.

A table stands between `<!-- name -->` and `<!-- /name -->`; without a result it says so.
"""

from __future__ import annotations

import json
from pathlib import Path

import curriculum_tables
import head_tables
import trainer_tables
from results_file import read_parts

ROOT = Path(__file__).parents[1]


def tables() -> dict[tuple[str, str], str]:
    """(file, name) -> the table there, in Markdown."""
    curriculum = json.loads(curriculum_tables.RESULT.read_text())
    updates = trainer_tables.measured_updates()
    return {
        ("README.md", "update"): trainer_tables.readme_table(updates),
        ("docs/trainer.md", "update"): trainer_tables.update_table(updates),
        ("docs/trainer.md", "step"): trainer_tables.step_table(updates[trainer_tables.STEP]),
        ("docs/kernels.md", "heads"): head_tables.heads_table(read_parts(head_tables.HEADS)),
        ("docs/kernels.md", "policy"): head_tables.policy_table(read_parts(head_tables.KERNELS)),
        ("docs/curriculum.md", "sizes"): curriculum_tables.sizes_table(curriculum["rows"]),
        ("docs/curriculum.md", "strategies"): curriculum_tables.strategies_table(
            curriculum["strategies"]
        ),
    }


def place(text: str, name: str, table: str) -> str:
    """The text with the table between its marks; ValueError where they are missing."""
    marks = f"<!-- {name} -->", f"<!-- /{name} -->"
    begin, end = (text.index(mark) for mark in marks)
    return f"{text[: begin + len(marks[0])]}\n{table}\n{text[end:]}"


def main() -> None:
    for (file, name), table in tables().items():
        path = ROOT / file
        path.write_text(place(path.read_text(), name, table))


if __name__ == "__main__":
    main()
