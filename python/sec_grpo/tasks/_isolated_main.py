"""The process that `Isolated` starts: it imports, then forks a child that answers the calls.

A request is its length in 8 bytes and a pickle; a reply is a line of JSON [kind, value], because
the child reads what a model wrote and its word is not to be unpickled. The child may die at any
call: of the alarm (whose default action needs no Python code to run, so that not even one long
operation on big integers outlives it), of a stack overflow, of the system's memory killer. The
process then reports how and forks another.
"""

from __future__ import annotations

import json
import multiprocessing.spawn
import os
import pickle
import resource
import select
import signal
import struct
import threading
import warnings
from collections.abc import Callable
from typing import Any, BinaryIO

from sec_grpo.tasks import importing, isolated

# Calls after which a child gives way to a new one, so that what libraries keep is bounded.
CALLS_PER_CHILD = 2000
# Exit code of a child that asks to be replaced.
REPLACE = 77
# Characters of an exception's text that are reported.
_MAX_MESSAGE = 500


def main() -> None:
    """Import the function, then keep a child that runs it until the input ends."""
    requests = os.fdopen(os.dup(0), "rb", buffering=0)
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    isolated.inside = True
    # Python warns of forking beside a thread; this one only waits.
    warnings.filterwarnings("ignore", ".*multi-threaded", DeprecationWarning)
    threading.Thread(target=_end_with_parent, args=(requests.fileno(),), daemon=True).start()
    setup = _read(requests)
    if setup is None:
        return
    try:
        main_module, files, called, time_limit, memory_limit = pickle.loads(setup)
        for name, path in files.items():
            importing.from_file(name, path)
        if main_module:
            isolated.importing_main = True
            multiprocessing.spawn.prepare(main_module)
            isolated.importing_main = False
        function, warm_up = pickle.loads(called)
        if warm_up is not None:
            warm_up()
    except BaseException as error:
        _write(replies, "failed", _described(error))
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _write(replies, "ready", None)
    while True:
        child = os.fork()
        if child == 0:
            _limit_memory(memory_limit)
            os._exit(_serve(function, time_limit, requests, replies))
        exit_code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if exit_code == 0:
            return
        if exit_code != REPLACE:
            _write(replies, "died", exit_code)


def _end_with_parent(requests: int) -> None:
    """Kill this process and its child once nobody can send requests any more.

    Without it, a parent that was killed would be noticed after the call under way alone.
    """
    closed = select.poll()
    closed.register(requests, 0)
    closed.poll()
    os.killpg(0, signal.SIGKILL)


def _serve(
    function: Callable[..., Any], time_limit: float, requests: BinaryIO, replies: BinaryIO
) -> int:
    """Answer requests; the exit code."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for _ in range(CALLS_PER_CHILD):
        request = _read(requests)
        if request is None:
            return 0
        signal.setitimer(signal.ITIMER_REAL, time_limit)
        try:
            kind, value = "value", json.dumps(function(*pickle.loads(request)))
            if len(value) > isolated.MAX_REPLY - 100:
                raise ValueError(f"the result takes more than {isolated.MAX_REPLY} bytes")
        except MemoryError:
            kind, value = "memory", "null"
        except BaseException as error:
            kind, value = "raised", json.dumps(_described(error))
        signal.setitimer(signal.ITIMER_REAL, 0)
        replies.write(f'["{kind}", {value}]\n'.encode())
        if kind == "memory":
            return REPLACE
    return REPLACE


def _read(requests: BinaryIO) -> bytes | None:
    """The next request; None at the end of the input."""
    header = _read_exactly(requests, 8)
    return None if header is None else _read_exactly(requests, struct.unpack(">Q", header)[0])


def _read_exactly(requests: BinaryIO, size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        part = requests.read(min(size - len(parts), 1 << 20))
        if not part:
            return None
        parts += part
    return bytes(parts)


def _write(replies: BinaryIO, kind: str, value: Any) -> None:
    replies.write(json.dumps([kind, value]).encode() + b"\n")


def _described(error: BaseException) -> str:
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:
        text = type(error).__name__
    return text[:_MAX_MESSAGE]


def _limit_memory(growth: int) -> None:
    """Let the address space grow by `growth` bytes from here, where the system can tell its size.

    The growth, not the size: libraries such as torch reserve far more than they use.
    """
    try:
        with open("/proc/self/statm") as file:
            size = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = size + growth
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
