"""Two processes with gloo: one curriculum, one gradient, one end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pyarrow.parquet import read_table

from sec_grpo.tiny import character_tokenizer, tiny_qwen2
from sec_grpo.trainer.checkpoint import verify

WORKER = Path(__file__).with_name("distributed_worker.py")
SCENARIOS = (
    "train",
    "resume",
    "evaluate",
    "failing",
    "failing_evaluation",
    "signalled",
    "unequal_feedback",
    "ppo",
    "entropy_bonus",
    "dynamic_sampling",
    "dynamic_sampling_odd",
    "dynamic_sampling_failing",
)

pytestmark = pytest.mark.slow


def launch(command, folder):
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=folder,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """name -> what each of the two processes saw."""
    folder = tmp_path_factory.mktemp("distributed")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launch([*torchrun, str(WORKER), str(folder), *SCENARIOS], folder)
    launch([str(WORKER), str(folder), "one_process", "one_process_midway"], folder)
    found = {"folder": folder}
    for name in SCENARIOS:
        files = [folder / f"{name}_{rank}.pt" for rank in (0, 1)]
        found[name] = [torch.load(file, weights_only=False) for file in files]
    for name in ("one_process", "one_process_midway"):
        found[name] = torch.load(folder / f"{name}_0.pt", weights_only=False)
    return found


def assert_same_weights(a, b):
    for name in a["weights"]:
        assert torch.equal(a["weights"][name], b["weights"][name]), name


def test_processes_stay_equal(results):
    one, two = results["train"]
    assert one["step"] == two["step"] == 4
    assert one["curriculum"] == two["curriculum"]
    assert_same_weights(one, two)
    assert one["generations"][0][1] != two["generations"][0][1]


def test_completions_of_both_processes_are_logged_once(results):
    pair = results["train"]
    tokenizer = character_tokenizer("abcdefgh")
    folder = results["folder"] / "train" / "completions"
    assert sorted(path.name for path in folder.iterdir()) == [
        "completions_00001.parquet",
        "completions_00003.parquet",
    ]
    for step, generation in ((1, 0), (3, 1)):
        table = read_table(folder / f"completions_{step:05d}.parquet").to_pydict()
        parts = [one["generations"][generation] for one in pair]
        prompts, ids, scores = ([x for part in parts for x in part[k]] for k in range(3))
        assert table["prompt"] == tokenizer.batch_decode(prompts)
        assert table["completion"] == tokenizer.batch_decode(ids, skip_special_tokens=True)
        assert table["recorder"] == scores
        assert len(set(table["arm"][:4])) == 1  # a group's arm, four times


def test_gradient_is_that_of_the_union(results, oracle):
    one, two = results["train"]
    args = SimpleNamespace(
        num_generations=4,
        max_completion_length=5,
        mask_truncated_completions=False,
        temperature=1.0,
        epsilon=0.2,
        epsilon_high=None,
        beta=0.0,
        use_bias_correction_kl=True,
        loss_type="dapo",
    )
    tokenizer = character_tokenizer("abcdefgh")

    def model_with(state):
        model = tiny_qwen2(tokenizer, hidden_size=16, num_hidden_layers=1, intermediate_size=16)
        model.load_state_dict(state)
        return model.eval()

    losses = [event["loss"] for event in one["log"] if "loss" in event]
    assert losses == [event["loss"] for event in two["log"] if "loss" in event]
    for step in range(4):
        generation = step // 2
        union = tuple(
            a + b
            for a, b in zip(
                one["generations"][generation], two["generations"][generation], strict=True
            )
        )
        model = model_with(one["models"][step])
        old = model_with(one["models"][2 * generation])
        expected = oracle.gradient(model, old, old, union, [list(range(12))], args, 1)
        assert expected.norm() > 1e-4
        for rank in (one, two):
            error = (rank["gradients"][step] - expected).norm() / expected.norm()
            assert error < 2e-5
        if step % 2 == 0:  # on-policy the loss is the mean of -A over the tokens
            advantages = oracle.advantages(union[2], 4)
            lengths = [len(ids) for ids in union[1]]
            pairs = zip(advantages, lengths, strict=True)
            mean = -sum(a * n for a, n in pairs) / sum(lengths)
            assert losses[step] == pytest.approx(mean, abs=1e-5)


def test_policy_loss_is_that_of_the_union(results):
    """Logged without the bonus, which is a mean over the tokens of both processes."""
    logs = [entry for rank in results["entropy_bonus"] for entry in rank["log"] if "loss" in entry]
    assert len(logs) == 4
    for entry in logs:
        bonus = entry["policy_loss"] - entry["loss"]
        assert bonus == pytest.approx(0.3 * entry["entropy"], abs=1e-5)


def test_resume_midway(results):
    for rank in (0, 1):
        assert_same_weights(results["train"][rank], results["resume"][rank])
        assert results["resume"][rank]["curriculum"] == results["train"][rank]["curriculum"]
        assert results["resume"][rank]["generations"] == []


def test_one_process_continues_two(results):
    one = results["one_process"]
    assert one["step"] == 4
    # The same prompts are drawn; the completions are sampled with other seeds.
    prompts = [ids for rank in results["train"] for ids in rank["generations"][1][0]]
    assert one["generations"][0][0] == prompts
    error = results["one_process_midway"]["error"]
    assert "was saved by 2 processes in the middle of a generation batch" in error


def test_checkpoints_are_written_once_and_whole(results):
    folder = results["folder"] / "train"
    assert sorted(p.name for p in folder.glob("*check*")) == [
        f"checkpoint-{n}" for n in (1, 2, 3, 4)
    ]
    for checkpoint in folder.glob("checkpoint-*"):
        verify(checkpoint)
    assert len(list((folder / "checkpoint-3").glob("rollouts_*.pt"))) == 2
    assert not list((folder / "checkpoint-2").glob("rollouts_*.pt"))


def test_evaluation_covers_each_row_once(results):
    one, two = results["evaluate"]
    assert sorted(one["seen"] + two["seen"]) == [0, 1, 2, 3, 4]
    assert one["seen"] == [0, 2, 4]
    for metrics in (one["metrics"], two["metrics"]):
        assert metrics["eval_reward"] == 2.0
        assert metrics["eval_reward/0"] == 2.0
        assert metrics["eval_reward/1"] == 2.0


def test_failure_in_one_process_stops_both(results):
    one, two = results["failing"]
    assert "failed on another process" in one["error"]
    assert "raised KeyError: 'broken'" in two["error"]
    assert one["step"] == two["step"] == 2
    verify(results["folder"] / "failing" / "checkpoint-2")
    one, two = results["failing_evaluation"]
    assert "raised KeyError: 'broken'" in one["error"]
    assert "failed on another process" in two["error"]
    assert one["step"] == two["step"] == 1
    verify(results["folder"] / "failing_evaluation" / "checkpoint-1")


def test_signal_to_one_process_stops_both(results):
    assert results["signalled"] == [{"stopped": True, "step": 3}] * 2
    verify(results["folder"] / "signalled" / "checkpoint-3")


def test_differing_curricula_are_noticed(results):
    for rank in (0, 1):
        error = results["unequal_feedback"][rank]["error"]
        assert error.startswith("the curriculum differs between the processes (process 0: step 0")


def test_ppo_in_two_processes(results):
    one, two = results["ppo"]
    assert_same_weights(one, two)
    assert one["curriculum"] == two["curriculum"]
    assert float(one["weights"]["value_head.linear.weight"].abs().sum()) > 0
    for pair in zip(one["tokens"], two["tokens"], strict=True):
        together = torch.cat(pair)
        assert float(together.mean()) == pytest.approx(0, abs=1e-5)
        assert float(together.std()) == pytest.approx(1, abs=1e-3)
        assert abs(float(pair[0].mean())) > 1e-3


@pytest.mark.parametrize(("name", "size"), [("dynamic_sampling", 4), ("dynamic_sampling_odd", 3)])
def test_dynamic_sampling_in_two_processes(results, oracle, name, size):
    """Each batch is the first live groups that both processes scored, dealt evenly."""
    pair = results[name]
    one, two = pair
    assert one["curriculum"] == two["curriculum"]
    assert_same_weights(one, two)
    assert one["observations"] == len(one["batches"]) == 3
    tokenizer = character_tokenizer("abcdefgh")
    num_prompts = 12 // size
    draws = iter(zip(one["generations"], two["generations"], strict=True))
    num_draws = num_groups = 0
    for batch in zip(one["batches"], two["batches"], strict=True):
        groups, live = [], []
        while len(live) < num_prompts:
            first, second = next(draws)
            num_draws += 1
            rows = [*zip(*first, strict=True), *zip(*second, strict=True)]
            assert len(first[0]) == len(second[0])
            drawn = [rows[i : i + size] for i in range(0, len(rows), size)]
            missing = num_prompts - len(live)
            # A single missing group of three cannot be halved: two prompts are drawn.
            assert len(drawn) == missing + (missing % 2 if size == 3 else 0)
            assert all(len({row for row, _, _ in group}) == 1 for group in drawn)
            groups += drawn
            live += [group for group in drawn if len({score for _, _, score in group}) > 1]
        num_groups += len(groups)
        expected = [row for group in live[:num_prompts] for row in group]
        ids = [i for part in batch for i in part[1]]
        assert ids == [completion for _, completion, _ in expected]
        prompts = ["abcdefgh"[: 2 + row % 4] for row, _, _ in expected]
        assert [i for part in batch for i in part[0]] == [
            tokenizer(prompt)["input_ids"] for prompt in prompts
        ]
        assert [len(part[1]) for part in batch] == [6, 6]
        advantages = oracle.advantages([score for _, _, score in expected], size)
        assert [a for part in batch for a in part[2]] == pytest.approx(advantages, abs=1e-5)
    assert next(draws, None) is None
    assert num_draws > 3  # some batch was refilled
    assert one["drawn"] == num_groups
    logged = sum(event.get("dynamic_sampling/refill_rollouts", 0) for event in one["log"])
    assert logged == size * (num_groups - 3 * num_prompts)


def test_failure_in_a_refill_stops_both(results):
    one, two = results["dynamic_sampling_failing"]
    assert "failed on another process" in one["error"]
    assert "raised KeyError: 'broken'" in two["error"]
    assert one["unchanged"]
    assert two["unchanged"]
    assert (one["calls"], two["calls"]) == (2, 1)
