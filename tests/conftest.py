"""Fixtures that several folders of tests share."""

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def sec_data() -> Path:
    """The folder of the SEC authors' rows (*.parquet)."""
    folder = Path(os.environ.get("SEC_GRPO_DATA", REPO.parent / "shared" / "data" / "sec"))
    if not (folder / "countdown_train.parquet").is_file():
        pytest.skip(f"no countdown_train.parquet in {folder}; set SEC_GRPO_DATA to its folder")
    return folder
