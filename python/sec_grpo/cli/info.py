"""`sec-grpo info`: versions, backends and devices."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.table import Table

PACKAGES = ("sec-grpo", "torch", "triton", "transformers", "accelerate", "datasets", "numpy")
OPTIONAL_PACKAGES = (
    "peft",
    "trl",
    "math-verify",
    "reasoning-gym",
    "scikit-learn",
    "liger-kernel",
    "tensorboard",
    "wandb",
    "trackio",
)


def info() -> None:
    """Show versions, backends and devices, for a bug report or a benchmark."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row("python", f"{platform.python_version()} on {platform.platform()}")
    for package in (*PACKAGES, *OPTIONAL_PACKAGES):
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

    rows = [
        ("native core", str(_core.__file__)),
        ("processor", f"{processor()}, {torch.get_num_threads()} threads used by torch"),
        ("memory", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"),
    ]
    built_for = torch.version.hip or torch.version.cuda
    if built_for:
        rows.append(("torch built for", f"{'ROCm' if torch.version.hip else 'CUDA'} {built_for}"))
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        memory = properties.total_memory / 2**30
        kind = "ROCm" if torch.version.hip else "CUDA"
        capability = f"compute capability {properties.major}.{properties.minor}"
        rows.append((f"{kind} device {i}", f"{properties.name}, {memory:.0f} GiB, {capability}"))
    if torch.cuda.is_available():
        rows.append(("backend=auto", "triton on GPU tensors, torch on CPU tensors"))
    else:
        rows.append(("GPU", "none found"))
        rows.append(("backend=auto", "torch"))
    return rows


def processor() -> str:
    """The processor's name and how many of its cores this process may use."""
    names = Path("/proc/cpuinfo")
    lines = names.read_text().splitlines() if names.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = models[0] if models else platform.processor() or platform.machine()
    return f"{name}, {len(os.sched_getaffinity(0))} cores"
