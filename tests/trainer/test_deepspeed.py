"""DeepSpeed ZeRO-2 and ZeRO-3 on two CPU processes do what DDP does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sec_grpo.trainer.checkpoint import verify

pytest.importorskip("deepspeed", reason="needs the extra deepspeed")
WORKER = Path(__file__).with_name("deepspeed_worker.py")

pytestmark = pytest.mark.slow


def launch(folder, *arguments):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *torchrun, str(WORKER), str(folder), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        cwd=folder,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    name = arguments[0]
    return [torch.load(folder / f"{name}_{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("deepspeed")


@pytest.fixture(scope="module")
def ddp(folder):
    return launch(folder, "ddp", "0", "gather")


@pytest.mark.parametrize(
    ("name", "stage", "sampling"),
    [("zero2", "2", "gather"), ("zero3", "3", "gather"), ("layers", "3", "layer by layer")],
)
def test_the_run_is_ddps(folder, ddp, name, stage, sampling):
    """Two micro-batches of several packs a step, two updates a generation."""
    for ours, expected in zip(launch(folder, name, stage, sampling), ddp, strict=True):
        assert ours["generations"] == expected["generations"]
        assert len(expected["generations"]) == 2
        assert ours["curriculum"] == expected["curriculum"]
        assert (ours["shapes"][0] == (0,)) == (stage == "3")
        for a, b in zip(ours["log"], expected["log"], strict=True):
            for key in ("loss", "entropy", "ratio/mean", "grad_norm"):
                assert a[key] == pytest.approx(b[key], rel=1e-4, abs=1e-6), key
    saved = [load_file(folder / f"{run}_saved" / "model.safetensors") for run in (name, "ddp")]
    for key, value in saved[1].items():
        torch.testing.assert_close(saved[0][key], value, rtol=1e-3, atol=1e-5)
    # Some stages write the tied head as well.
    assert saved[0].keys() - saved[1].keys() <= {"lm_head.weight"}


@pytest.mark.parametrize("stage", ["2", "3"])
def test_resume_is_exact(folder, stage):
    """From step 3, in the middle of a generation batch."""
    name = f"straight{stage}"
    straight = launch(folder, name, stage, "gather")
    checkpoint = folder / name / "checkpoint-3"
    verify(checkpoint)
    resumed = launch(folder, f"resumed{stage}", stage, "gather", str(checkpoint))
    for a, b in zip(resumed, straight, strict=True):
        assert a["generations"] == []
        assert a["curriculum"] == b["curriculum"]
        assert a["log"][-1]["loss"] == b["log"][-1]["loss"]
        assert a["log"][-1]["grad_norm"] == b["log"][-1]["grad_norm"]
