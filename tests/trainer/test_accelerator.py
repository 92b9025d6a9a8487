"""Training on a device that is not the CPU, and who makes the host wait for it there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

HERE = Path(__file__).parent
SCENARIOS = [
    "default",
    "reused",
    "sequence",
    "reference",
    "entropy",
    "masks",
    "value_head",
    "role",
    "refills",
    "whole_logits",
    "padded",
    "checkpointed",
    "lora",
    "sampling",
    "evaluated",
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
        reason="torch cannot make a device in Python before 2.10",
    ),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """device -> scenario -> what accelerator_worker.py saw."""
    folder = tmp_path_factory.mktemp("accelerator")
    found = {}
    for device in ("cpu", "pretend"):
        done = subprocess.run(
            [sys.executable, HERE / "accelerator_worker.py", folder, device],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        found[device] = json.loads((folder / f"{device}.json").read_text())
    return found


def test_every_scenario_ran(runs):
    assert list(runs["cpu"]) == list(runs["pretend"]) == SCENARIOS


@pytest.mark.parametrize("name", SCENARIOS)
def test_it_is_the_same_run_as_on_the_cpu(runs, name):
    """Of tensors on two devices torch raises, so that a run that ends has mixed none."""
    ours, cpu = runs["pretend"][name], runs["cpu"][name]
    assert ours["completions"] == cpu["completions"]
    for log in ("log", "resumed"):
        assert [entry["step"] for entry in ours[log]] == [entry["step"] for entry in cpu[log]]
        for a, b in zip(ours[log], cpu[log], strict=True):
            # Chunks of the head differ by device, and with them the order of sums.
            assert a == pytest.approx(b, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_host_waits_once_in_an_update(runs, name):
    """For all metrics together; besides that, where completions, rewards and states are wanted."""
    reads = runs["pretend"][name]["reads"]
    assert reads["copy metrics.py"] == 4  # steps
    elsewhere = {"copy checkpoint.py", "copy distributed.py", "copy rollout.py"}
    if name == "value_head":  # advantages are made of its values, on the host, once a generation
        elsewhere.add("copy update.py")
    assert set(reads) - elsewhere == {"copy metrics.py"}
