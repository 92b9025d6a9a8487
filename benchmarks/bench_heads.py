"""The fused head beside other libraries, and beside its matrix products alone.

    pytest benchmarks/bench_heads.py --benchmark-json=heads.json
    pytest benchmarks/bench_heads.py -k cuda-N16384-D2048      # one shape

Axes: N tokens, D hidden, V vocabulary. Four groups of timings:

- train: forward + backward with gradients of hidden and weight, 3 products at least;
- frozen: of hidden alone, as with LoRA, 2 products at least;
- logprobs: no gradient, 1 product;
- dead: as train, half the sequences with advantage 0, which only we leave out.

Gradients (log-probabilities) are compared with the first ones before anything is timed.
`extra_info` holds the shape, the peak memory of a call above its inputs and their gradients, and
the library's version; "bare products" are what everything is measured against. Out of memory is
recorded, not hidden. The small shape on the CPU shows that the comparison works, not who is fast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from heads import (
    IMPLEMENTATIONS,
    OTHER_LOSS,
    bare_products,
    logprobs_of,
    make_case,
    package_version,
    skip_dead,
)
from peak_memory import peak_bytes
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    device: str
    tokens: int
    hidden: int
    vocab: int

    @property
    def name(self) -> str:
        return f"{self.device}-N{self.tokens}-D{self.hidden}"


# The budget's shape first: a run that is cut short has it.
GPU_SHAPES = [
    Shape("cuda", tokens, hidden, 151936)
    for tokens in (16384, 4096, 65536)
    for hidden in (2048, 1536, 4096)
]
NEEDS_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device"),
]
SHAPES = [
    pytest.param(Shape("cpu", 256, 32, 4096), id="cpu-N256-D32"),
    *(pytest.param(shape, id=shape.name, marks=NEEDS_GPU) for shape in GPU_SHAPES),
]
BARE, OURS = "bare products", "sec-grpo"
PRODUCTS = {"train": 3, "frozen": 2, "logprobs": 1, "dead": 3}
"""of each group; "dead" is for ours alone, to the others it is "train" again"""
TIMED = [
    (group, name)
    for group in PRODUCTS
    for name in (BARE, *IMPLEMENTATIONS)
    if group != "dead" or name in (BARE, OURS)
]
ROUNDS, WARMUP = 5, 1
COMPARED = 256
"""rows of the result that are compared: some of every library's first chunk"""
EQUAL = 0.05
"""relative; between libraries that round logits to bfloat16 and those that do not"""


@pytest.fixture(scope="module", params=SHAPES)
def shape(request):
    yield request.param
    if request.param.device == "cuda":
        torch.cuda.empty_cache()


@pytest.fixture(scope="module")
def cases(shape):
    """dead share -> hidden, weight and the rest, made once a shape."""
    dtype = torch.bfloat16 if shape.device == "cuda" else torch.float32
    sizes = (shape.tokens, shape.hidden, shape.vocab)
    return {
        dead: make_case(*sizes, device=shape.device, dtype=dtype, dead=dead) for dead in (0.0, 0.5)
    }


@pytest.fixture(scope="module")
def first_results():
    return {}


def build(group: str, name: str, cases) -> Callable[[], Tensor]:
    """What is to be timed; its result is compared with the others'."""
    hidden, weight, case = cases[0.5 if group == "dead" else 0.0]
    hidden, weight = hidden.detach(), weight.detach()
    if name == BARE:
        product = bare_products(PRODUCTS[group])
        return lambda: product(hidden, weight)
    if group == "logprobs":
        logprobs = logprobs_of(name, case)
        if logprobs is None:
            pytest.skip("no function for log-probabilities alone")

        @torch.no_grad()
        def forward() -> Tensor:
            return logprobs(hidden, weight)

        return forward
    make = skip_dead if group == "dead" else IMPLEMENTATIONS[name]
    loss_of = make(case)
    hidden.requires_grad_()
    weight.requires_grad_(group != "frozen")

    def train() -> Tensor:
        hidden.grad = weight.grad = None
        loss_of(hidden, weight).backward()
        return hidden.grad

    return train


@pytest.mark.parametrize(("group", "name"), TIMED, ids=lambda value: value.replace(" ", "_"))
def test_head(benchmark, group, name, shape, cases, first_results):
    benchmark.group = f"{group} {shape.name}"
    info = benchmark.extra_info
    info.update(group=group, name=name, shape=shape.name, version=package_version(name))
    try:
        call = build(group, name, cases)
        result = call()[:COMPARED].float().clone()
        # Gradients of the call before are freed first: what is above them is the call's own.
        info["peak_gib"] = peak_bytes(call, shape.device) / 2**30
    except ImportError as error:
        pytest.skip(f"{name}: {error}")
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        info["out_of_memory"] = True
        benchmark.pedantic(lambda: None, rounds=1)
        return
    if name not in OTHER_LOSS and name != BARE:
        expected = first_results.setdefault((group, shape), result)
        error = torch.linalg.vector_norm(result - expected) / torch.linalg.vector_norm(expected)
        assert error < EQUAL, error.item()

    def synchronised():
        call()
        if shape.device == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(synchronised, rounds=ROUNDS, warmup_rounds=WARMUP)
