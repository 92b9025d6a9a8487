"""The TRL adapter in two processes with gloo: one curriculum, and the same training."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("trl", reason="needs TRL: pip install 'sec-grpo[trl]'")

from sec_grpo import SEC, Curriculum

WORKER = Path(__file__).with_name("distributed_worker.py")
SCENARIOS = ("train", "saving", "resume", "own", "fused", "unequal_copies", "local_feedback")

pytestmark = pytest.mark.slow


def launch(command: list[str], folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=folder,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]


@pytest.fixture(scope="module")
def results(tmp_path_factory, save_model):
    """name -> what each of the two processes saw."""
    folder = tmp_path_factory.mktemp("trl_distributed")
    save_model(folder / "model")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launch([*torchrun, str(WORKER), str(folder), *SCENARIOS], folder)
    launch([str(WORKER), str(folder), "one_process"], folder)

    def read(name, rank):
        return torch.load(folder / f"{name}_{rank}.pt", weights_only=False)

    found = {name: [read(name, rank) for rank in (0, 1)] for name in SCENARIOS}
    return {**found, "one_process": read("one_process", 0), "folder": folder}


def joined(pair, key):
    """Generation by generation, what both processes saw, in the order of the processes."""
    calls = zip(*(seen["calls"] for seen in pair), strict=True)
    return [one[key] + other[key] for one, other in calls]


def test_processes_train_on_what_one_curriculum_draws(results, rows) -> None:
    pair = results["train"]
    assert pair[0]["curriculum"] == pair[1]["curriculum"]
    torch.testing.assert_close(pair[0]["weights"], pair[1]["weights"], rtol=0, atol=0)
    twin = Curriculum([row["difficulty"] for row in rows], SEC(temperature=0.2), seed=3)
    generations = list(zip(joined(pair, "numbers"), joined(pair, "rewards"), strict=True))
    assert len(generations) == 5
    for numbers, scores in generations:
        indices = twin.draw(3)
        assert numbers == np.repeat(indices, 4).tolist()
        rewards = np.reshape(scores, (3, 4))
        centred = rewards - rewards.mean(1, keepdims=True)
        advantages = centred / (rewards.std(1, ddof=1, keepdims=True) + 1e-4)
        twin.observe(indices, advantages=advantages, rewards=rewards)
    assert np.nanmax(twin.values()) > 0.1
    np.testing.assert_allclose(pair[0]["values"], twin.values(), rtol=1e-5)


def test_five_steps_give_the_same_weights(results) -> None:
    for own, fused in zip(results["own"], results["fused"], strict=True):
        error = torch.linalg.vector_norm(fused["weights"] - own["weights"])
        assert error / torch.linalg.vector_norm(own["weights"]) < 1e-4
        logs = [[e for e in seen["log"] if "loss" in e] for seen in (own, fused)]
        assert len(logs[0]) == 5
        for one, other in zip(*logs, strict=True):
            for name in ("loss", "entropy", "kl", "grad_norm"):
                assert other[name] == pytest.approx(one[name], rel=1e-3, abs=1e-4), name
    one, two = results["fused"]
    torch.testing.assert_close(one["weights"], two["weights"], rtol=0, atol=0)


def test_resume_inside_a_generation(results) -> None:
    folder = results["folder"] / "saving"
    assert len(list((folder / "checkpoint-3").glob("sec_grpo_generation_*.pt"))) == 2
    assert not list((folder / "checkpoint-2").glob("sec_grpo_generation_*.pt"))
    if "skipped" in results["resume"][0]:
        pytest.skip("transformers 4 does not resume several processes on CPUs")
    for uncut, resumed in zip(results["saving"], results["resume"], strict=True):
        assert resumed["calls"] == []
        assert resumed["curriculum"] == uncut["curriculum"]
        torch.testing.assert_close(resumed["weights"], uncut["weights"], rtol=0, atol=0)


def test_one_process_continues_two(results) -> None:
    at_end, inside = results["one_process"]
    # The prompts of the second generation; the completions are sampled with another seed.
    assert [call["numbers"] for call in at_end["calls"]] == joined(results["saving"], "numbers")[1:]
    # From inside one, it draws anew: what was pending was cut for two processes.
    assert [len(call["numbers"]) for call in inside["calls"]] == [12]


def test_copies_that_differ_stop_both(results) -> None:
    for seen in results["unequal_copies"]:
        assert "the curriculum differs between the processes" in seen["error"]
    for seen in results["local_feedback"]:
        assert "the curriculum differs between the processes" in seen["error"]
        assert seen["step"] == 0
