"""The sizes and the product of the Triton head, tried side by side on this GPU.

    python benchmarks/tune_linear.py                      # results/tune_linear_gpu.json
    python benchmarks/tune_linear.py --shape 16384 2048   # one of its shapes

Axes: N tokens, D hidden, V vocabulary. Times forward + backward of `linear_policy_loss`, bfloat16,
for every combination of the product ("library" or "fused"), the bytes of a chunk's exponentials and
those of a slice's logits, and for other warps of the row kernels, beside the three products alone;
prints the medians as ratios to these. What is fastest belongs into `kernels/linear_triton.py` and
`kernels/row_exp.py`.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from dataclasses import dataclass

import torch
from heads import IMPLEMENTATIONS, bare_products, make_case
from results_file import write_part
from rich.console import Console
from rich.table import Table

from sec_grpo.kernels import linear_triton, row_exp

SHAPES = [(16384, 2048), (16384, 4096), (4096, 2048)]
V = 151936
RESULT = "tune_linear_gpu.json"
EXP_MIB = (416, 832)
SLICE_MIB = (10, 20, 40, 80, 2048)
WARPS = (1, 2, 4)
BARE = "bare products"
ROUNDS = 9


def part_name(num_tokens: int, num_hidden: int) -> str:
    return f"N{num_tokens}-D{num_hidden}"


def median_ms(call) -> float:
    """Median of ROUNDS calls by the device's clock, after two to warm up."""
    for _ in range(2):
        call()
    times = []
    for _ in range(ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


@dataclass(frozen=True)
class Variant:
    product: str = linear_triton.PRODUCT
    exp_mib: int = linear_triton.EXP_BYTES >> 20
    slice_mib: int = linear_triton.SLICE_BYTES >> 20
    warps: int = row_exp.NUM_WARPS

    @property
    def name(self) -> str:
        if self.product == "fused":  # which has no slices, and no row kernel of its own
            return f"fused, {self.exp_mib} MiB"
        sizes = f"{self.exp_mib} MiB, slices of {self.slice_mib} MiB"
        return f"library, {sizes}, {self.warps} warps"

    def use(self) -> None:
        linear_triton.PRODUCT = self.product
        linear_triton.EXP_BYTES = self.exp_mib << 20
        linear_triton.SLICE_BYTES = self.slice_mib << 20
        row_exp.NUM_WARPS = self.warps


def variants() -> list[Variant]:
    library = [Variant("library", *sizes) for sizes in itertools.product(EXP_MIB, SLICE_MIB)]
    return [
        *library,
        *(Variant("library", warps=warps) for warps in WARPS if warps != row_exp.NUM_WARPS),
        *(Variant("fused", exp) for exp in EXP_MIB),
    ]


def tune(num_tokens: int, num_hidden: int) -> dict:
    hidden, weight, case = make_case(num_tokens, num_hidden, V, device="cuda", dtype=torch.bfloat16)
    product = bare_products(3)
    rows = {BARE: median_ms(lambda: product(hidden, weight))}
    loss_of = IMPLEMENTATIONS["sec-grpo"](case)
    hidden.requires_grad_()
    weight.requires_grad_()

    def train():
        hidden.grad = weight.grad = None
        loss_of(hidden, weight).backward()

    for variant in variants():
        variant.use()
        rows[variant.name] = median_ms(train)
    Variant().use()
    return {"tokens": num_tokens, "hidden": num_hidden, "vocab": V, "median_ms": rows}


def show(measured: dict) -> None:
    times = measured["median_ms"]
    table = Table("variant", f"N={measured['tokens']} D={measured['hidden']}")
    for name, time in times.items():
        table.add_row(name, f"{time:.1f} ms  {time / times[BARE]:.2f}x")
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs=2, type=int, metavar=("N", "D"), help="default: all")
    shape = parser.parse_args().shape
    if not torch.cuda.is_available():
        print("tune_linear: no CUDA or ROCm device here, so nothing was run")
        return
    for num_tokens, num_hidden in [shape] if shape else SHAPES:
        measured = tune(num_tokens, num_hidden)
        write_part(RESULT, part_name(num_tokens, num_hidden), measured)
        show(measured)


if __name__ == "__main__":
    main()
