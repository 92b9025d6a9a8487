"""Verification in worker processes: verdicts in order, and answers that break the verifier."""

import logging
import multiprocessing
import os
import pickle
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from textwrap import dedent

import pytest

from sec_grpo import tasks
from sec_grpo.tasks import TaskReward, Verdict
from sec_grpo.tasks import pool as pool_module
from sec_grpo.tasks.base import judge
from sec_grpo.tasks.mathematics import MathTask
from sec_grpo.tasks.pool import SharedPool, VerifierPool, default_workers

# A verifier that does what the answer says; its class must be importable by the workers.
OBEDIENT = dedent(
    """
    import ctypes, os, time
    from sec_grpo.tasks import Task, Verdict

    class ObedientTask(Task):
        name = "obedient"
        levels = (1,)

        def draw(self, rng, level):
            return {"prompt": "?", "ground_truth": "1"}

        def prompt(self, problem):
            return problem

        def verify(self, text, truth):
            if truth == "bad":
                raise KeyError("no such truth")
            if text == "raise":
                raise ValueError("invalid literal")
            if text == "crash":
                ctypes.string_at(0)
            if text == "exit":
                os._exit(1)
            if text == "hang":
                time.sleep(60)
            if text == "burn":
                9**9**9**9
            if text == "eat":
                bytearray(2 << 30)
            if text == "pid":
                return Verdict(1.0, str(os.getpid()), True)
            if text == "float":
                return 1.0
            if text == "two":
                return Verdict(2.0, "right", True)
            time.sleep(0.001 * (len(text) % 5))
            return Verdict(float(text == truth), "compared", bool(text))
    """
)


@pytest.fixture(scope="module")
def obedient(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modules")
    (folder / "obedient_task.py").write_text(OBEDIENT)
    sys.path.insert(0, str(folder))
    yield tasks.get("obedient_task:ObedientTask")
    sys.path.remove(str(folder))


def test_verdicts_are_those_of_the_task_in_order(obedient):
    texts = [str(i) * (1 + i % 7) for i in range(200)]
    truths = [text if i % 3 else "other" for i, text in enumerate(texts)]
    with VerifierPool(obedient, 2) as pool:
        assert pool.verify(texts, truths) == [
            Verdict(float(i % 3 > 0), "compared", True) for i in range(200)
        ]
        assert pool.verify([], []) == []
        assert pool.verify(["5"], ["5"]) == [(1.0, "compared", True)]
        pids = {verdict.reason for verdict in pool.verify(["pid"] * 50, ["1"] * 50)}
    assert 1 <= len(pids) <= 2
    assert str(os.getpid()) not in pids


def test_no_answer_loses_the_batch(obedient):
    texts = ["1", "raise", "crash", "2", "hang", "exit", "burn", "eat", "1"]
    with VerifierPool(obedient, 2, time_limit=0.3) as pool:
        for _ in range(2):
            started = time.monotonic()
            verdicts = pool.verify(texts, ["1"] * len(texts))
            assert time.monotonic() - started < 30
            assert [verdict.score for verdict in verdicts] == [1, 0, 0, 0, 0, 0, 0, 0, 1]
            reasons = [verdict.reason for verdict in verdicts]
            assert reasons[1] == "not verified: ValueError: invalid literal"
            assert "signal 11" in reasons[2]
            assert reasons[3] == "compared"
            assert reasons[4] == reasons[6] == "not verified: took longer than 0.3 s"
            assert "exit code 1" in reasons[5]
            assert reasons[7] == "not verified: took too much memory"
            assert not any(verdict.well_formed for verdict in verdicts[4:8])


def test_a_row_at_fault_is_named(obedient):
    message = "row 1 with the truth 'bad': KeyError: 'no such truth'"
    with VerifierPool(obedient, 1) as pool:
        with pytest.raises(ValueError, match=message):
            pool.verify(["1", "1", "1"], ["1", "bad", "1"])
        with pytest.raises(ValueError, match="must return a Verdict with a score from 0 to 1"):
            pool.verify(["float"], ["1"])
        with pytest.raises(ValueError, match="Got 1 truths for 2 texts"):
            pool.verify(["1", "2"], ["1"])
    for workers in (0, 1):
        reward = TaskReward(obedient, workers=workers)
        with pytest.raises(ValueError, match=f"obedient_reward cannot judge {message}"):
            reward(None, ["1", "1"], ground_truth=["1", "bad"])
        with pytest.raises(ValueError, match=r"row 0.*Verdict\(score=2.0"):
            reward(None, ["two"], ground_truth=["1"])


@pytest.mark.parametrize("workers", [0, 2])
def test_rewards_with_and_without_workers(obedient, workers, caplog):
    logged = {}
    reward = TaskReward(obedient, workers=workers)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            rewards = reward(
                None,
                ["1", "raise", "2", ""],
                ground_truth=["1"] * 4,
                log_metric=logged.__setitem__,
            )
            assert rewards == [1.0, 0.0, 0.1, 0.0]
    assert logged == ({"rewards/obedient_reward/not_verified": 0.25} if workers else {})
    (record,) = caplog.records
    assert "row 1 ('raise'): not verified: ValueError: invalid literal" in record.getMessage()


def test_an_exception_that_the_answer_is_not_to_blame_for_is_raised(obedient):
    assert judge(obedient, "raise", "1").score == 0.0
    with pytest.raises(KeyError):
        judge(obedient, "1", "bad")


def test_threads_share_a_pool(obedient):
    with VerifierPool(obedient, 2) as pool, ThreadPoolExecutor(4) as threads:
        batches = [[f"{k}", "x", f"{k}{k}"] for k in range(12)]
        verdicts = threads.map(pool.verify, batches, [[f"{k}"] * 3 for k in range(12)])
        assert [[v.score for v in batch] for batch in verdicts] == [[1.0, 0.0, 0.0]] * 12


def in_child(reward, pipe):
    pipe.send(reward(None, ["1", "hang", "2"], ground_truth=["1"] * 3))


@pytest.mark.parametrize("daemon", [True, False])
def test_forked_processes_have_workers_of_their_own(obedient, daemon):
    reward = TaskReward(obedient, workers=2, time_limit=0.3)
    assert reward(None, ["1", "2"], ground_truth=["1"] * 2) == [1.0, 0.1]
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=in_child, args=(reward, theirs), daemon=daemon)
    process.start()
    assert ours.poll(60)
    assert ours.recv() == [1.0, 0.0, 0.1]
    process.join(30)
    assert process.exitcode == 0
    assert reward(None, ["1", "2"], ground_truth=["1"] * 2) == [1.0, 0.1]


def test_a_pickled_reward_verifies(obedient):
    reward = pickle.loads(pickle.dumps(TaskReward(obedient, workers=1, correct=2.0)))
    assert reward(None, ["1", "2"], ground_truth=["1"] * 2) == [2.0, 0.1]


def test_slow_imports_of_a_verifier_do_not_count(tmp_path, monkeypatch):
    (tmp_path / "slow_module.py").write_text("import time; time.sleep(0.6)")
    (tmp_path / "importing_task.py").write_text(
        OBEDIENT.replace("ObedientTask", "ImportingTask").replace(
            "if truth ==", "import slow_module\n        if truth =="
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    with VerifierPool(tasks.get("importing_task:ImportingTask"), 1, time_limit=0.3) as pool:
        verdicts = pool.verify(["1", "hang", "1"], ["1"] * 3)
    assert [verdict.score for verdict in verdicts] == [1.0, 0.0, 1.0]


def test_slow_tasks_share_workers_by_default(obedient, monkeypatch):
    pytest.importorskip("math_verify", reason="math-verify comes with the extra 'tasks'")
    monkeypatch.setattr(SharedPool, "_tasks", [])
    monkeypatch.setattr(SharedPool, "_pool", None)
    math = tasks.get("math")
    first, second = TaskReward(math), TaskReward(math, well_formed=0.0)
    completions = [r"\boxed{y + x}", r"\boxed{x - y}"]
    assert first(None, completions, ground_truth=["x+y"] * 2) == [1.0, 0.1]
    pool = SharedPool._pool
    assert second(None, completions, ground_truth=["x+y"] * 2) == [1.0, 0.0]
    assert SharedPool._pool is pool
    assert len(pool._workers) == default_workers()
    pids = {worker._process.pid for worker in pool._workers if worker._process}
    # A task that comes later starts them anew; the first goes on.
    later = MathTask()
    assert TaskReward(later)(None, completions, ground_truth=["x+y"] * 2) == [1.0, 0.1]
    assert first(None, completions, ground_truth=["x+y"] * 2) == [1.0, 0.1]
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)
    assert [len(SharedPool._pool.tasks), len(SharedPool._tasks)] == [2, 2]
    # A task from elsewhere, or other limits: processes of its own.
    monkeypatch.setattr(type(obedient), "slow", True)
    for reward in (TaskReward(obedient), TaskReward(math, time_limit=0.5)):
        assert isinstance(reward._pool, VerifierPool)
    assert TaskReward(obedient)(None, ["1", "raise"], ground_truth=["1"] * 2) == [1.0, 0.0]
    assert TaskReward(math, workers=0)._pool is None


def test_only_what_takes_long_goes_to_the_processes(obedient, monkeypatch):
    def at_once(self, text, truth):
        if truth == "bad":
            raise KeyError(truth)
        return Verdict(0.5, "at once", True) if text == "2" else None

    monkeypatch.setattr(type(obedient), "at_once", at_once)
    with VerifierPool(obedient, 2) as pool:
        assert pool.verify(["2", "2"], ["1"] * 2) == [(0.5, "at once", True)] * 2
        assert pool._workers == []
        verdicts = pool.verify(["1", "2", "pid"], ["1"] * 3)
        assert [verdict.score for verdict in verdicts] == [1.0, 0.5, 1.0]
        assert verdicts[2].reason != str(os.getpid())
        with pytest.raises(ValueError, match="row 1 with the truth 'bad': KeyError"):
            pool.verify(["2", "1"], ["1", "bad"])


def test_ranks_share_the_processors(monkeypatch):
    monkeypatch.setattr(pool_module, "processors", lambda: 12)
    assert default_workers() == 8
    for ranks, workers in (("4", 3), ("5", 2), ("40", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        assert default_workers() == workers


def test_the_math_task_in_workers():
    pytest.importorskip("math_verify", reason="math-verify comes with the extra 'tasks'")
    reward = TaskReward(tasks.get("math"), workers=1)
    answers = [
        "y+x",
        "x-y",
        r"\int_0^\infty \frac{\sin(x^5+\cos(x))}{\sqrt{2+x^7}} dx",
        r"\frac{2x+2y}{2}",
    ]
    completions = [f"\\boxed{{{answer}}}" for answer in answers]
    rewards = reward(None, completions, ground_truth=["x+y"] * 4)
    assert rewards[:2] == [1.0, 0.1]
    assert rewards[2] in (0.0, 0.1)
    assert rewards[3] == 1.0


def test_progress_of_a_long_batch_on_a_terminal(obedient, capfd, monkeypatch):
    with VerifierPool(obedient, 1, time_limit=0.6) as pool:
        pool.verify(["hang"] * 2, ["1"] * 2, progress=True)
        assert capfd.readouterr().err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")  # what rich takes for a terminal
    with VerifierPool(obedient, 1, time_limit=0.6) as pool:
        pool.verify(["hang"] * 3, ["1"] * 3, progress=True)
        assert "verifying" in capfd.readouterr().err
        pool.verify(["1"] * 3, ["1"] * 3, progress=True)
        pool.verify(["hang"] * 3, ["1"] * 3)
        assert "verifying" not in capfd.readouterr().err


@pytest.mark.parametrize("workers", [-1, 1.5, True, "2"])
def test_workers_must_be_a_number(obedient, workers):
    with pytest.raises(ValueError, match="workers must be an integer of at least 1"):
        VerifierPool(obedient, workers)


def test_a_task_that_cannot_be_sent_is_refused_at_once():
    task = tasks.get("sort").__class__()
    task.extra = lambda: None
    with pytest.raises(TypeError, match="cannot be sent to another process"):
        TaskReward(task, workers=2)
