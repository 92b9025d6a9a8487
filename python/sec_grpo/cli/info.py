"""`sec-grpo info`: versions, backends and devices."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from rich.console import Console
from rich.table import Table

PACKAGES = (
    "sec-grpo",
    "torch",
    "triton",
    "transformers",
    "accelerate",
    "datasets",
    "numpy",
    "peft",
    "trl",
)


def info() -> None:
    """Show versions, backends and devices, for a bug report or a benchmark."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("python", f"{platform.python_version()} on {platform.platform()}")
    for package in PACKAGES:
        table.add_row(package, installed_version(package))
    for name, value in devices():
        table.add_row(name, value)
    Console().print(table)


def installed_version(package: str) -> str:
    """The version of an installed package, or "not installed"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def devices() -> list[tuple[str, str]]:
    """Accelerators, threads and the backend that `backend="auto"` takes on them."""
    import torch

    from sec_grpo import _core

    rows = [("native core", str(_core.__file__)), ("CPU threads", str(torch.get_num_threads()))]
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        memory = properties.total_memory / 2**30
        kind = "ROCm" if torch.version.hip else "CUDA"
        rows.append((f"{kind} device {i}", f"{properties.name}, {memory:.0f} GiB"))
    if torch.cuda.is_available():
        rows.append(("backend=auto", "triton on GPU tensors, torch on CPU tensors"))
    else:
        rows.append(("GPU", "none found"))
        rows.append(("backend=auto", "torch"))
    return rows
