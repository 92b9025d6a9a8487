"""The fused head beside other libraries, and beside its matrix products alone (GPU).

    pytest benchmarks/bench_heads.py --benchmark-json=heads.json

Axes: N tokens, D hidden, V vocabulary. Four groups of timings:

- train: forward + backward with gradients of hidden and weight, 3 products at least;
- frozen: of hidden alone, as with LoRA, 2 products at least;
- logprobs: no gradient, 1 product;
- dead: as train, half the sequences with advantage 0, which only we leave out.

Gradients (log-probabilities) are compared with the first ones before anything is timed.
`extra_info` holds the shape, the peak memory of a call above its inputs and their gradients, and
the library's version; "bare products" are what everything is measured against. Out of memory is
recorded, not hidden.
"""

from __future__ import annotations

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

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device"),
]

V = 151936
SHAPES = [(n, d) for n in (4096, 16384, 65536) for d in (1536, 2048, 4096)]
ROUNDS, WARMUP = 7, 2
# Rows of the result that are compared: some of every library's first chunk.
COMPARED = 256
PRODUCTS = {"train": 3, "frozen": 2, "logprobs": 1, "dead": 3}


@pytest.fixture(scope="module", params=SHAPES, ids=lambda s: f"N{s[0]}-D{s[1]}")
def shape(request):
    yield request.param
    torch.cuda.empty_cache()


def build(group: str, name: str, shape):
    """What is to be timed, and its result for comparison."""
    num_tokens, num_hidden = shape
    hidden, weight, case = make_case(
        num_tokens, num_hidden, V, device="cuda", dtype=torch.bfloat16,
        dead=0.5 if group == "dead" else 0.0,
    )  # fmt: skip
    if name == "bare products":
        product = bare_products(PRODUCTS[group])
        return lambda: product(hidden, weight)[:COMPARED]
    if group == "logprobs":
        logprobs = logprobs_of(name, case)
        if logprobs is None:
            pytest.skip("no function for log-probabilities alone")

        @torch.no_grad()
        def forward():
            return logprobs(hidden, weight)

        return forward
    make = skip_dead if (group, name) == ("dead", "sec-grpo") else IMPLEMENTATIONS[name]
    loss_of = make(case)
    hidden.requires_grad_()
    weight.requires_grad_(group != "frozen")

    def train():
        hidden.grad = weight.grad = None
        loss_of(hidden, weight).backward()
        return hidden.grad

    return train


@pytest.fixture(scope="module")
def first_results():
    return {}


@pytest.mark.parametrize("name", ["bare products", *IMPLEMENTATIONS])
@pytest.mark.parametrize("group", PRODUCTS)
def test_head(benchmark, group, name, shape, first_results):
    benchmark.group = f"{group} N={shape[0]} D={shape[1]} V={V}"
    info = benchmark.extra_info
    info.update(group=group, name=name, tokens=shape[0], hidden=shape[1], vocab=V)
    info["version"] = package_version(name)
    try:
        call = build(group, name, shape)
        result = call()[:COMPARED].float().clone()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        # Gradients of the call before are freed first: what is above them is the call's own.
        info["peak_gib"] = (torch.cuda.max_memory_allocated() - before) / 2**30
    except ImportError as error:
        pytest.skip(f"{name}: {error}")
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        info["out_of_memory"] = True
        benchmark.pedantic(lambda: None, rounds=1)
        return
    if name not in OTHER_LOSS and name != "bare products":
        expected = first_results.setdefault((group, shape), result)
        error = torch.linalg.vector_norm(result - expected) / torch.linalg.vector_norm(expected)
        assert error < 0.05, error.item()

    def synchronised():
        call()
        torch.cuda.synchronize()

    benchmark.pedantic(synchronised, rounds=ROUNDS, warmup_rounds=WARMUP)
