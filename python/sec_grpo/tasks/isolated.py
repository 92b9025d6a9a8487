"""Run a function in a process of its own, which is killed when it takes too long.

Signals limit time in the main thread only, and one operation on big integers can hold the
interpreter for minutes; another process can be stopped from any thread, in any process.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import selectors
import signal
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import spawn
from typing import Any

from sec_grpo.tasks import importing

# Seconds to import what the function needs, on a busy machine.
START_SECONDS = 120.0
# Seconds after its time limit until a process that disabled its own alarm is killed from outside.
_GRACE_SECONDS = 1.0
# Bytes of the longest result.
MAX_REPLY = 16 << 20

# One processor each, and sets in the same order in every process.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
# The parent's sys.path: the process then finds the same packages, however the parent came by them.
_START = (
    "import sys; sys.path[:] = sys.argv[1:]; from sec_grpo.tasks import _isolated_main; "
    "_isolated_main.main()"
)

_live: weakref.WeakSet[Isolated] = weakref.WeakSet()
# In a process that `Isolated` started: what is called there is limited already.
inside = False
# In such a process, while it imports the main module of the one that started it.
importing_main = False


class NotFinished(Exception):
    """A call gave no result; the message is the reason, in a few words."""


class CallFailed(NotFinished):
    """The function raised; the message holds the type and the text of the exception."""


class Isolated:
    """`function`, called in a process of its own with a limit on time and memory.

    The process starts at the first call (by `subprocess`, so threads, CUDA and daemonic processes
    are no obstacle), imports what the function needs and forks a child that runs it. The kernel
    kills a child that exceeds the time; the next one is forked within milliseconds. Threads take
    turns. A forked or unpickled copy starts a process of its own. Inside such a process, calls of
    another `Isolated` run directly, under the limits already there.

    Args:
        function: picklable (of a module, or a method of a picklable object); takes picklable
            arguments and returns what JSON can hold. What it prints goes to stderr.
        time_limit: seconds of one call, by the clock.
        memory_limit: bytes that one call may add to the address space, where the system has such
            limits (Linux).
        warm_up: called once in the process before it is ready, without limits: for imports.

    Raises:
        ValueError: a limit is not a positive finite number.
        TypeError: `function` cannot be pickled.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        time_limit: float = 1.0,
        memory_limit: int = 1 << 30,
        warm_up: Callable[[], Any] | None = None,
    ) -> None:
        for name, limit in (("time_limit", time_limit), ("memory_limit", memory_limit)):
            if not (0 < limit < math.inf):
                raise ValueError(f"{name} must be a positive finite number. Got {limit!r}.")
        self._arguments = (function, time_limit, memory_limit, warm_up)
        self._function = function
        self._time_limit = float(time_limit)
        self._setup = _pickled_setup(function, float(time_limit), int(memory_limit), warm_up)
        self._lock = threading.Lock()
        # One entry for each call under way or waiting; adding and removing one is atomic.
        self._calls: list[None] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize | None = None
        _live.add(self)

    def __call__(self, *args: Any) -> Any:
        """The result of `function(*args)`, as JSON gives it back (a tuple becomes a list).

        Raises:
            CallFailed: the function raised.
            NotFinished: it took too long or too much memory, or its process died.
            RuntimeError: the process does not start; the message says why.
        """
        if importing_main:
            raise RuntimeError(
                "the main module starts processes while another process imports it; put what it "
                "runs under: if __name__ == '__main__':"
            )
        if inside:
            return self._function(*args)
        request = pickle.dumps(args, pickle.HIGHEST_PROTOCOL)
        self._calls.append(None)
        try:
            kind, value = self._reply(request)
        finally:
            self._calls.pop()
        if kind == "value":
            return value
        if kind == "raised":
            raise CallFailed(value)
        if kind == "memory":
            raise NotFinished("took too much memory")
        raise NotFinished("its process died" if kind == "gone" else self._cause(value))

    @property
    def calls(self) -> int:
        """How many calls are under way, in this process: one that runs, and those that wait."""
        return len(self._calls)

    def _reply(self, request: bytes) -> tuple[str, Any]:
        with self._lock:
            process = self._running()
            try:
                reply = _exchange(process, request, self._time_limit + _GRACE_SECONDS)
            except BaseException:
                # Also Ctrl-C: the reply of a call that was given up must not answer the next.
                self._stop()
                raise
            if reply is None or reply[0] == "gone":
                self._stop()
        if reply is None:
            raise NotFinished(_too_long(self._time_limit))
        return reply

    def start(self) -> None:
        """Start the process now instead of at the first call."""
        if not inside:
            with self._lock:
                self._running()

    def close(self) -> None:
        """End the process; the next call starts another."""
        with self._lock:
            self._stop()

    def kill(self) -> None:
        """End the process at once, from any thread: a call under way raises NotFinished."""
        process = self._process
        if process is not None and process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def __reduce__(self) -> Any:
        return _rebuilt, self._arguments

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._stop()
        process = subprocess.Popen(
            [sys.executable, "-c", _START, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            # A group of its own, so that Ctrl-C leaves it alone and a kill reaches the child too.
            start_new_session=True,
            env={**os.environ, **_ENVIRONMENT},
        )
        self._process = process
        self._end = weakref.finalize(self, _end, process, os.getpid())
        reply = _exchange(process, self._setup, START_SECONDS)
        if reply is None or reply[0] != "ready":
            self._stop()
            why = (
                f"nothing heard for {START_SECONDS:g} s" if reply is None else reply[1] or "it died"
            )
            raise RuntimeError(
                f"the process that runs {_name(self._function)} does not start: {why}"
            )
        return process

    def _stop(self) -> None:
        if self._end is not None:
            self._end()
        self._process = self._end = None

    def _cause(self, exit_code: int) -> str:
        if exit_code == -signal.SIGALRM:
            return _too_long(self._time_limit)
        if exit_code < 0:
            return f"its process died of signal {-exit_code} ({signal.strsignal(-exit_code)})"
        return f"its process ended with exit code {exit_code}"

    def _forget(self) -> None:
        """In a forked process: the other is the parent's, and a thread may have held the lock."""
        self._lock = threading.Lock()
        self._calls = []
        process, self._process = self._process, None
        if self._end is not None:
            self._end.detach()
            self._end = None
        if process is not None:
            _close_pipes(process)
            process.returncode = 0  # not a child of this process: nothing to wait for


class LeastBusy:
    """Several `Isolated` of one function: a call takes the one with the fewest others.

    Those after the first start their processes when threads call at the same time.

    Args:
        most: how many.
        function, limits: as for `Isolated`.
    """

    def __init__(self, most: int, function: Callable[..., Any], **limits: Any) -> None:
        self._all = [Isolated(function, **limits) for _ in range(most)]

    def __call__(self, *args: Any) -> Any:
        """As `Isolated` does it."""
        return min(self._all, key=lambda isolated: isolated.calls)(*args)


def _forget_all() -> None:
    for isolated in list(_live):
        isolated._forget()


os.register_at_fork(after_in_child=_forget_all)


def _rebuilt(function: Any, time_limit: float, memory_limit: int, warm_up: Any) -> Isolated:
    return Isolated(function, time_limit=time_limit, memory_limit=memory_limit, warm_up=warm_up)


def _pickled_setup(function: Any, time_limit: float, memory_limit: int, warm_up: Any) -> bytes:
    try:
        called = pickle.dumps((function, warm_up), pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise TypeError(
            f"{_name(function)} cannot be sent to another process: {error}. Define it at the top "
            "of a module, and let its object hold nothing that cannot be pickled."
        ) from error
    main = _main_module() if b"__main__" in called else {}
    files = {name: path for name, path in importing.files.items() if name.encode() in called}
    return pickle.dumps((main, files, called, time_limit, memory_limit), pickle.HIGHEST_PROTOCOL)


def _main_module() -> dict[str, Any]:
    """How another process imports this one's main module, as multiprocessing does it."""
    data: dict[str, Any] = dict(spawn.get_preparation_data("isolated"))
    kept: dict[str, Any] = {
        key: data[key] for key in ("sys_argv", "dir", "orig_dir") if key in data
    }
    main: dict[str, Any] = {key: data[key] for key in data if key.startswith("init_main_from")}
    if not main:
        raise TypeError(
            "a function or task of an interactive session cannot be sent to another process: "
            "move it to a module and import it from there"
        )
    return {**kept, **main}


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", None) or repr(function)


def _too_long(seconds: float) -> str:
    return f"took longer than {seconds:g} s"


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    """Kill `process` and its child, in the process that started it."""
    if os.getpid() != owner:
        return
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            process.kill()
        process.wait()
    _close_pipes(process)


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _exchange(process: subprocess.Popen[bytes], request: bytes, seconds: float) -> Any:
    """Send a request and read the reply, a line of JSON; None if none comes within `seconds`."""
    assert process.stdin is not None
    assert process.stdout is not None
    source, sink = process.stdout.fileno(), process.stdin.fileno()
    os.set_blocking(sink, False)
    unsent = memoryview(struct.pack(">Q", len(request)) + request)
    reply = bytearray()
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        selector.register(source, selectors.EVENT_READ)
        selector.register(sink, selectors.EVENT_WRITE)
        while not reply.endswith(b"\n") and len(reply) <= MAX_REPLY:
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                return None
            for key, _ in ready:
                if key.fd == source:
                    part = os.read(source, 1 << 16)
                    if not part:
                        return "gone", None
                    reply += part
                    continue
                try:
                    unsent = unsent[os.write(sink, unsent) :]
                except BrokenPipeError:
                    unsent = unsent[len(unsent) :]
                if not unsent:
                    selector.unregister(sink)
    try:
        kind, value = json.loads(reply)
    except ValueError:
        return "gone", None
    return kind, value
