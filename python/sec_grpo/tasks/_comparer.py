"""Compare mathematical answers in a process of its own, which is killed when it takes too long.

math-verify limits its time by signals, which work in the main thread only; SymPy can also hold
the interpreter for minutes in one operation. Another process can be stopped from any thread.
"""

from __future__ import annotations

import importlib.util
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from pathlib import Path

# Seconds of one comparison; the slowest pair of the MATH rows takes well below half a second.
COMPARISON_SECONDS = 2.0
# Seconds to import SymPy on a busy machine.
START_SECONDS = 120.0

# The parent's sys.path: the process then finds the same packages, however the parent came by them.
_START = (
    "import sys, runpy; sys.path[:] = sys.argv[2:]; "
    "runpy.run_path(sys.argv[1], run_name='__main__')"
)
_WORKER = str(Path(__file__).with_name("_math_worker.py"))


class Comparer:
    """One worker process, started when first needed; safe to use from several threads.

    Threads take turns. A forked process starts a worker of its own.

    Args:
        seconds: the time limit of one comparison.
    """

    def __init__(self, seconds: float = COMPARISON_SECONDS) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        os.register_at_fork(after_in_child=self._forget)

    def equal(self, truth: str, answer: str) -> bool | None:
        """Whether math-verify takes two LaTeX answers for equal.

        Returns:
            None if the comparison took too long or too much memory.

        Raises:
            RuntimeError: the process does not start.
        """
        request = json.dumps([truth, answer, self._seconds]).encode() + b"\n"
        with self._lock:
            process = self._running()
            try:
                assert process.stdin is not None
                process.stdin.write(request)
                # The worker's own alarm comes first; this limit is for one that cannot keep it.
                reply = _read_line(process, self._seconds + 1.0)
            except (BrokenPipeError, ConnectionResetError):
                reply = b""
            if reply not in (b"0\n", b"1\n"):
                self._stop()
                return None
            return reply == b"1\n"

    def close(self) -> None:
        """End the worker; the next comparison starts another."""
        with self._lock:
            self._stop()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._stop()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, _WORKER, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        if _read_line(self._process, START_SECONDS) != b"ready\n":
            self._stop()
            raise RuntimeError(
                "the process that compares mathematical answers does not start; try: "
                f"{sys.executable} -c 'import math_verify'"
            )
        return self._process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            _close(process)

    def _forget(self) -> None:
        """In a forked process: the worker is the parent's, and a thread may have held the lock."""
        self._lock = threading.Lock()
        process, self._process = self._process, None
        if process is not None:
            _close(process)
            process.returncode = 0  # not a child of this process: nothing to wait for


def require_math_verify() -> None:
    """Raise ImportError, saying what to install, where math-verify is missing."""
    if importlib.util.find_spec("math_verify") is None:
        raise ImportError("task 'math' needs math-verify: pip install 'sec-grpo[tasks]'")


def _close(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _read_line(process: subprocess.Popen[bytes], seconds: float) -> bytes:
    """The next line of the worker's output; what there is of it after `seconds` or at the end."""
    assert process.stdout is not None
    deadline = time.monotonic() + seconds
    line = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                break
            part = os.read(process.stdout.fileno(), 64)
            if not part:
                break
            line += part
    return line
