"""The device "pretend" of accelerator.cpp: make it, train on it, and see who reads it.

There is no GPU where these tests run, so this shows what one would: tensors of two devices in one
operation, and the host waiting in the middle of an update.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections import Counter
from pathlib import Path

import torch
from torch.utils import backend_registration
from torch.utils.cpp_extension import load

import sec_grpo
from sec_grpo.kernels import linear_chunked

SOURCE = Path(__file__).with_name("accelerator.cpp")
OWN = [Path(module.__file__).resolve().parent for module in (sec_grpo, linear_chunked)]


class Module(backend_registration._DummyBackendModule):
    """torch.pretend"""

    __name__ = "pretend"

    def get_amp_supported_dtype(self):
        return [torch.bfloat16]

    def is_available(self):
        return True

    def device_count(self):
        return 1

    def current_device(self):
        return 0

    def synchronize(self, device=None):
        pass

    def empty_cache(self):
        pass

    # Operations are the CPU's, and so are the random states.
    def get_rng_state(self, device=None):
        return torch.get_rng_state()

    def set_rng_state(self, state, device=None):
        pass

    def manual_seed(self, seed):
        pass

    def manual_seed_all(self, seed):
        pass


def install(folder: Path) -> Counter[tuple[str, str]]:
    """Build and register the device, and let accelerate choose it.

    Returns a counter of (kind, file) of our own code that made the host read the device, "item" or
    "copy"; what transformers and torch do of themselves is not in it.
    """
    folder.mkdir()
    # ninja comes with the environment whose Python this is.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    library = load("pretend", [str(SOURCE)], build_directory=str(folder), extra_cflags=["-O0"])
    backend_registration._setup_privateuseone_for_python_backend("pretend", Module())
    os.environ["ACCELERATE_TORCH_DEVICE"] = "pretend"
    reads: Counter[tuple[str, str]] = Counter()

    def record(kind: str) -> None:
        stack = traceback.extract_stack()
        innermost = next(f for f in reversed(stack[:-1]) if f"{os.sep}torch{os.sep}" not in f[0])
        file = Path(innermost.filename).resolve()
        if any(file.is_relative_to(folder) for folder in OWN):
            reads[kind, file.name] += 1

    library.on_read(record)
    return reads
