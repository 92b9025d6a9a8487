"""What the tests against verl share."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


def load_common() -> Any:
    spec = importlib.util.spec_from_file_location("verl_common", HERE / "common.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def common() -> Any:
    """Rows, configuration and stand-ins."""
    return load_common()


@pytest.fixture(scope="session")
def inputs(common, tmp_path_factory) -> Path:
    """A folder with the rows as parquet and a model folder."""
    folder = tmp_path_factory.mktemp("verl_inputs")
    common.write_inputs(folder)
    return folder


@pytest.fixture(scope="session")
def run_worker() -> Any:
    """Runs scenarios of a worker file on a local Ray; name -> what each saw."""

    def run(worker: str, folder: Path, scenarios: tuple[str, ...]) -> dict[str, Any]:
        import torch

        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "disabled",
            "PYTHONPATH": str(HERE),  # for Ray's workers, which unpickle from there
        }
        done = subprocess.run(
            [sys.executable, str(HERE / worker), str(folder), *scenarios],
            capture_output=True,
            text=True,
            timeout=550,
            env=environment,
            cwd=folder,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
        return {name: torch.load(folder / f"{name}.pt", weights_only=False) for name in scenarios}

    return run


@pytest.fixture(scope="session")
def twin_of() -> Any:
    """A curriculum fed by hand, whose draws must be what verl asked for."""
    import numpy as np

    from sec_grpo import SEC, Curriculum

    def feed(asked: list[list[int]], rewards: list[list[list[float]]]) -> Curriculum:
        twin = Curriculum([i % 3 for i in range(24)], SEC(temperature=0.2), seed=3)
        for numbers, scores in zip(asked, rewards, strict=True):
            indices = twin.draw(len(numbers))
            assert numbers == indices.tolist()
            groups = np.array(scores)
            # verl's group advantage, with its epsilon.
            centred = groups - groups.mean(1, keepdims=True)
            advantages = centred / (groups.std(1, ddof=1, keepdims=True) + 1e-6)
            twin.observe(indices, advantages=advantages, rewards=groups)
        return twin

    return feed
