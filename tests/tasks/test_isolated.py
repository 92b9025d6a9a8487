"""Functions in a process of their own: limits, replacement, threads, forks and the end."""

import gc
import math
import operator
import os
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from sec_grpo.tasks.isolated import CallFailed, Isolated, LeastBusy, NotFinished


@pytest.fixture
def isolate():
    made = []

    def make(function, **limits):
        made.append(Isolated(function, **limits))
        return made[-1]

    yield make
    for isolated in made:
        isolated.close()


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone_soon(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


def test_results_and_exceptions_come_back(isolate):
    divide = isolate(operator.truediv)
    assert divide(3, 4) == 0.75
    with pytest.raises(CallFailed, match="^ZeroDivisionError: division by zero$"):
        divide(1, 0)
    assert divide(1, 4) == 0.25
    with pytest.raises(CallFailed, match="the result takes more than"):
        isolate(operator.mul)("7", 20 << 20)
    assert isolate(operator.add)("\ud800" * 200_000, "\x00\n") == "\ud800" * 200_000 + "\x00\n"


def test_a_call_that_takes_too_long_is_killed_and_the_next_works(isolate):
    process = isolate(eval, time_limit=0.2)
    first = process("__import__('os').getpid()")
    for endless in ("9**9**9**9 > 1", "__import__('time').sleep(60)"):
        started = time.monotonic()
        with pytest.raises(NotFinished, match=r"^took longer than 0\.2 s$"):
            process(endless)
        assert 0.15 < time.monotonic() - started < 5.0
    second = process("__import__('os').getpid()")
    assert second != first
    assert process("__import__('os').getpid()") == second


def test_a_call_that_ignores_its_alarm_is_killed_from_outside(isolate):
    process = isolate(eval, time_limit=0.1)
    stubborn = "__import__('signal').signal(14, 1) and 0 or __import__('time').sleep(60)"
    started = time.monotonic()
    with pytest.raises(NotFinished, match="took longer"):
        process(stubborn)
    assert time.monotonic() - started < 10.0
    assert process("1 + 1") == 2


def test_memory_is_limited(isolate):
    size = isolate(eval, memory_limit=256 << 20)
    assert size("len(bytes(100 << 20))") == 100 << 20
    with pytest.raises(NotFinished, match="^took too much memory$"):
        size("len(bytes(400 << 20))")
    assert size("len(bytes(100 << 20))") == 100 << 20


def test_crashes_are_told_and_survived(isolate):
    process = isolate(eval)
    with pytest.raises(NotFinished, match=r"died of signal 11 \(Segmentation fault\)"):
        process("__import__('ctypes').string_at(0)")
    with pytest.raises(NotFinished, match="exit code 5"):
        process("__import__('os')._exit(5)")
    with pytest.raises(CallFailed, match="SystemExit"):
        process("exit()")
    assert process("2 + 2") == 4


def test_a_killed_process_is_started_again(isolate):
    pid = isolate(os.getppid)
    first = pid()
    os.kill(first, 9)
    # Until it is gone, a child that it has forked already may still answer for it.
    time.sleep(0.3)
    try:
        second = pid()
    except NotFinished:
        second = pid()
    assert second != first
    assert gone_soon(first)


def test_what_is_printed_does_not_answer(isolate):
    assert isolate(eval)("print('[\"value\", 1]', flush=True)") is None


def test_the_least_busy_of_several_is_called():
    several = LeastBusy(3, eval, time_limit=30.0)
    pid = "__import__('os').getppid()"
    alone = {several(pid) for _ in range(5)}
    assert len(alone) == 1
    with ThreadPoolExecutor(3) as threads:
        together = set(threads.map(several, [f"[__import__('time').sleep(1), {pid}][1]"] * 3))
    assert len(together) == 3
    assert alone < together
    assert {several(pid) for _ in range(5)} == alone
    with pytest.raises(CallFailed, match="ZeroDivisionError"):
        several("1 / 0")
    assert {several(pid) for _ in range(5)} == alone


def test_threads_take_turns(isolate):
    add = isolate(operator.add)
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(add, range(200), range(200))) == list(range(0, 400, 2))


def test_a_fork_has_a_process_of_its_own(isolate):
    parent_of = isolate(os.getppid)
    mine = parent_of()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, str(parent_of()).encode())
        parent_of.close()
        os._exit(0)
    os.waitpid(child, 0)
    other = int(os.read(read, 100))
    assert other != mine
    assert parent_of() == mine
    assert gone_soon(other)


def test_a_pickled_copy_works_alone(isolate):
    double = isolate(math.sqrt, time_limit=0.5)
    assert double(9.0) == 3.0
    copy = pickle.loads(pickle.dumps(double))
    assert copy(16.0) == 4.0
    copy.close()


def test_it_works_in_a_daemonic_process_with_isolation_inside(tmp_path):
    (tmp_path / "nested.py").write_text(
        "import multiprocessing, os\n"
        "from sec_grpo.tasks.isolated import Isolated\n"
        "inner = Isolated(os.getpid)\n"
        "def pids():\n"
        "    return [os.getpid(), inner()]\n"
        "def work(pipe):\n"
        "    outer = Isolated(pids)\n"
        "    pipe.send(outer())\n"
        "if __name__ == '__main__':\n"
        "    ours, theirs = multiprocessing.Pipe()\n"
        "    process = multiprocessing.Process(target=work, args=(theirs,), daemon=True)\n"
        "    process.start()\n"
        "    one, two = ours.recv()\n"
        "    print(one == two and one != process.pid)\n"
    )
    done = subprocess.run(
        [sys.executable, tmp_path / "nested.py"], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize("guarded", [True, False])
def test_functions_of_the_main_module(tmp_path, guarded):
    script = tmp_path / "script.py"
    guard = "if __name__ == '__main__':" if guarded else "if True:"
    script.write_text(
        "from sec_grpo.tasks.isolated import Isolated\n"
        f"def triple(x):\n    return 3 * x\n{guard}\n    print(Isolated(triple)(14))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    if guarded:
        assert done.stdout == "42\n", done.stderr
    else:
        assert "put what it runs under: if __name__ == '__main__':" in done.stderr
    typed = "from sec_grpo.tasks.isolated import Isolated\ndef f(): pass\nIsolated(f)"
    shell = subprocess.run([sys.executable, "-c", typed], capture_output=True, text=True)
    assert "move it to a module" in shell.stderr


def test_processes_end_with_their_owner(isolate):
    parent_of = isolate(os.getppid)
    pid = parent_of()
    parent_of.close()
    assert gone_soon(pid)
    other = Isolated(os.getppid)
    pid = other()
    del other
    gc.collect()
    assert gone_soon(pid)
    code = (
        "import os; from sec_grpo.tasks.isolated import Isolated; f = Isolated(os.getppid); "
        "print(f(), flush=True); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert killed.returncode == -9
    assert gone_soon(int(killed.stdout))


def test_what_cannot_run_is_refused(tmp_path, monkeypatch):
    with pytest.raises(TypeError, match="cannot be sent to another process.*top of a module"):
        Isolated(lambda: 1)
    for bad in ({"time_limit": 0}, {"time_limit": math.nan}, {"memory_limit": -1}):
        with pytest.raises(ValueError, match="must be a positive finite number"):
            Isolated(abs, **bad)
    (tmp_path / "works_here_only.py").write_text(
        "import os\nif os.environ.get('HERE') != '1': raise ImportError('no such device')\n"
        "def f(): return 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HERE", "1")
    import works_here_only  # type: ignore[import-not-found]

    isolated = Isolated(works_here_only.f)
    monkeypatch.setenv("HERE", "0")
    with pytest.raises(RuntimeError, match="f does not start: ImportError: no such device"):
        isolated()


def test_the_child_is_replaced_after_many_calls(isolate):
    pid = isolate(os.getpid)
    pids = [pid() for _ in range(2100)]
    assert len(set(pids)) == 2
