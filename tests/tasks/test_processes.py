"""Worker processes where programs put them: loaders, ranks, threads; and what they leave behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from sec_grpo.tasks import TaskReward, get
from sec_grpo.tasks.pool import SharedPool, VerifierPool

pytest.importorskip("math_verify", reason="math-verify comes with the extra 'tasks'")
MATH = get("math")
# SymPy works on this for most of a minute, so that no machine is done before the limit.
HANGS = r"\boxed{\int_0^\infty \frac{\sin(x^5+\cos(x))}{\sqrt{2+x^7}} dx}"


def descendants() -> dict[int, str]:
    """The states of the processes below this one."""
    parents, states = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            states[int(entry.name)], parents[int(entry.name)] = fields[0], int(fields[1])
    found: dict[int, str] = {}
    waiting = [os.getpid()]
    while waiting:
        parent = waiting.pop()
        children = [pid for pid, other in parents.items() if other == parent]
        found |= {pid: states[pid] for pid in children}
        waiting += children
    return found


def gone_soon(pids) -> bool:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        if not any(os.path.exists(f"/proc/{pid}") for pid in pids):
            return True
        time.sleep(0.05)
    return False


def test_nothing_is_left_behind():
    texts = [r"\boxed{y+x}", HANGS, r"\boxed{x-y}"]

    def use() -> None:
        with VerifierPool(MATH, 2, time_limit=0.2) as pool:
            for _ in range(3):
                verdicts = pool.verify(texts, ["x+y"] * 3)
                assert [verdict.score for verdict in verdicts] == [1.0, 0.0, 0.0]

    use()
    processes = set(descendants())
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(3):
        use()
    assert gone_soon(set(descendants()) - processes)
    assert "Z" not in descendants().values()
    assert len(os.listdir("/proc/self/fd")) == files
    assert threading.active_count() == threads


class Judged(Dataset):
    """Rows that a loader's worker judges."""

    def __init__(self, reward) -> None:
        self.reward = reward

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int):
        answers = [r"\boxed{y+x}", r"\boxed{x-y}"]
        return torch.tensor(self.reward(None, answers, ground_truth=["x+y"] * 2))


@pytest.mark.parametrize(
    ("context", "workers"), [("fork", None), ("fork", 0), ("spawn", None), ("forkserver", None)]
)
def test_in_the_workers_of_a_loader(context, workers, monkeypatch):
    monkeypatch.setattr(SharedPool, "_tasks", [])
    monkeypatch.setattr(SharedPool, "_pool", None)
    reward = TaskReward(MATH, workers=workers)
    assert reward(None, [r"\boxed{y+x}"], ground_truth=["x+y"]) == [1.0]
    before = set(descendants())
    loader = DataLoader(Judged(reward), num_workers=2, multiprocessing_context=context)
    assert [row.tolist() for row in loader] == [[[1.0, pytest.approx(0.1)]]] * 4
    del loader
    # multiprocessing's own servers stay: of resources, and of forks.
    left = [pid for pid in set(descendants()) - before if b"isolated" in command_of(pid)]
    assert gone_soon(left)


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


RANKS = dedent(
    r"""
    import os, sys
    import torch, torch.distributed as dist
    from sec_grpo.tasks import get
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo")
    texts = [r"\boxed{y+x}", sys.argv[1], r"\boxed{x+z}", "none"]
    scores = torch.tensor(get("math").reward(None, texts, ground_truth=[f"x+{'yz'[rank]}"] * 4))
    everyone = [torch.zeros(4) for _ in range(2)]
    dist.all_gather(everyone, scores)
    if rank == 0:
        print([[round(float(value), 1) for value in scores] for scores in everyone])
    dist.destroy_process_group()
    """
)


def test_in_two_ranks(tmp_path):
    (tmp_path / "ranks.py").write_text(RANKS)
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *words, tmp_path / "ranks.py", HANGS],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    # The one that hangs is not verified, and pays nothing.
    assert done.stdout.strip() == "[[1.0, 0.0, 0.1, 0.0], [0.1, 0.0, 1.0, 0.0]]"


BUSY = dedent(
    """
    import os, sys
    from sec_grpo.tasks import get
    from sec_grpo.tasks.pool import VerifierPool
    if __name__ == "__main__":
        pool = VerifierPool(get("math"), 2, time_limit=4.0)
        pool.verify([r"\\boxed{y+x}"] * 2, ["x+y"] * 2)
        print(*[worker._process.pid for worker in pool._workers if worker._process], flush=True)
        pool.verify([sys.argv[1]] * 8, ["x+y"] * 8)
        print("finished")
    """
)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_program_that_is_stopped_leaves_no_process(tmp_path, how):
    (tmp_path / "busy.py").write_text(BUSY)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "busy.py", HANGS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert pids
    time.sleep(0.5)
    children = {pid for parent in pids for pid in children_of(parent)}
    started = time.monotonic()
    process.send_signal(how)
    rest, error = process.communicate(timeout=60)
    # Ctrl-C waits for the answers under way, none of which takes longer than its limit.
    assert time.monotonic() - started < 20
    assert b"finished" not in rest
    assert process.returncode in (-how, 1, 130), error
    assert gone_soon([*pids, *children])


@pytest.mark.parametrize("when", ["importing", "making"])
def test_a_killed_program_ends_what_takes_long(tmp_path, when):
    sleep = "time.sleep(600)"
    (tmp_path / "endless.py").write_text(
        dedent(
            f"""
            import os, time
            from sec_grpo.tasks import NumberedTask, Verdict
            print(os.getpid(), flush=True)
            if {when == "importing"} and "KILLED" not in os.environ: {sleep}
            class Endless(NumberedTask):
                name, levels = "endless", (1,)
                def make(self, level, seed, number): print(os.getpid(), flush=True); {sleep}
                def prompt(self, problem): return problem
                def verify(self, text, truth): return Verdict(0.0, "", False)
            """
        )
    )
    (tmp_path / "program.py").write_text(
        dedent(
            """
            import os
            os.environ["KILLED"] = "1"
            from endless import Endless
            del os.environ["KILLED"]
            Endless().generate(1, 8, seed=0, workers=2)
            """
        )
    )
    program = subprocess.Popen(
        [sys.executable, tmp_path / "program.py"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert program.stdout is not None
    expected = 3 if when == "importing" else 5
    pids = [int(program.stdout.readline()) for _ in range(expected)]
    program.kill()
    program.wait()
    assert gone_soon(pids)


def children_of(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []
