"""FSDP2 on two processes with gloo does what DDP does, with shards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from sec_grpo.trainer.checkpoint import verify

WORKER = Path(__file__).with_name("fsdp_worker.py")
PAIRS = ("plain", "reference", "packed", "layer_by_layer", "lora", "adapter")
SCENARIOS = (*PAIRS, "resume", "export", "failing", "refused")  # refused ends the pretence

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """name -> what each of the two processes saw."""
    folder = tmp_path_factory.mktemp("fsdp")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *torchrun, str(WORKER), str(folder), *SCENARIOS],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=folder,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    found = {"folder": folder}
    for name in SCENARIOS:
        files = [folder / f"{name}_{rank}.pt" for rank in (0, 1)]
        found[name] = [torch.load(file, weights_only=False) for file in files]
    return found


def relative(a, b):
    flat = [
        torch.cat([run["weights"][n].flatten() for n in sorted(run["weights"])]) for run in (a, b)
    ]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())


@pytest.mark.parametrize("name", PAIRS)
def test_the_run_is_ddps(results, name):
    """The same completions, gradients, weights, curriculum and log, up to rounding."""
    for rank in (0, 1):
        ddp, fsdp = results[name][rank]["ddp"], results[name][rank]["fsdp"]
        assert "FSDPQwen2DecoderLayer" in fsdp["kinds"]
        assert not any(kind.startswith("FSDP") for kind in ddp["kinds"])
        assert fsdp["generations"] == ddp["generations"]
        assert len(ddp["generations"]) == (1 if name == "layer_by_layer" else 2)
        assert fsdp["curriculum"] == ddp["curriculum"]
        assert fsdp["weights"].keys() == ddp["weights"].keys()
        assert relative(fsdp, ddp) < 1e-5
        for ours, expected in zip(fsdp["gradients"], ddp["gradients"], strict=True):
            assert expected.norm() > 1e-3
            assert (ours - expected).norm() < 1e-4 * expected.norm()
        for ours, expected in zip(fsdp["log"], ddp["log"], strict=True):
            keys = {"loss", "entropy", "ratio/mean", "grad_norm"} | ({"kl"} & expected.keys())
            for key in keys:
                assert ours[key] == pytest.approx(expected[key], rel=1e-3, abs=1e-5), key
    one, two = (results[name][rank]["fsdp"] for rank in (0, 1))
    assert relative(one, two) == 0.0
    if name == "reference":
        assert max(entry["kl"] for entry in one["log"]) > 1e-4


@pytest.mark.parametrize("kind", ["full", "sharded"])
def test_resume_is_exact(results, kind):
    for rank in (0, 1):
        straight, resumed = (results["resume"][rank][kind][k] for k in ("straight", "resumed"))
        assert relative(resumed, straight) == 0.0
        assert resumed["curriculum"] == straight["curriculum"]
        assert [e["loss"] for e in resumed["log"]][-1] == straight["log"][-1]["loss"]
        assert resumed["generations"] == []
    folder = results["folder"] / f"resume_{kind}"
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == [
        f"checkpoint-{n}" for n in (1, 2, 3, 4)
    ]
    for checkpoint in folder.glob("checkpoint-*"):
        verify(checkpoint)


def test_saved_model_is_whole(results):
    model = AutoModelForCausalLM.from_pretrained(results["folder"] / "exported")
    weights = results["export"][0]["weights"]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name]), name


def test_evaluation_of_uneven_rows(results):
    one, two = results["export"]
    assert sorted(one["seen"] + two["seen"]) == [0, 1, 2, 3, 4]
    assert one["seen"] == [0, 2, 4]
    assert one["metrics"]["eval_reward"] == two["metrics"]["eval_reward"] == 2.0


def test_failure_in_one_process_stops_both(results):
    one, two = results["failing"]
    assert ["failed on another process" in error for error in one["errors"]] == [True, True]
    assert ["raised KeyError: 'broken'" in error for error in two["errors"]] == [True, True]
    assert one["step"] == two["step"] == 2
    verify(results["folder"] / "failing" / "checkpoint-2")


def test_what_is_refused(results):
    for rank in (0, 1):
        ppo, sync, evaluate, cpu = results["refused"][rank]["errors"]
        assert "advantage_estimator='ppo' is not supported with FSDP" in ppo
        assert "sync_ref_model is not supported with FSDP" in sync
        assert "use eval_on_start" in evaluate
        assert "fsdp was asked for, but accelerate runs MULTI_CPU" in cpu
