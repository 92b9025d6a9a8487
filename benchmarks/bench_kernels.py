"""Microbenchmarks of the loss ops: `pytest benchmarks/bench_kernels.py` (pytest-benchmark).

Axes: N tokens, D hidden, V vocabulary, G group, B rollouts.

Each benchmark first checks its result, then times it, warm-up outside, the device synchronised
inside the timed call. `extra_info` holds the shape, what limits it, and the peak memory of one
call above its inputs, from the allocator. Save a run with `--benchmark-json=FILE`. CPU shapes show
the ordering of memory and that nothing regresses, not a GPU's speed.
"""

from __future__ import annotations

import pytest
import torch
from peak_memory import peak_bytes

from sec_grpo.ops import group_advantages, linear_policy_loss, policy_loss

NEEDS_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device"),
]
CPU = pytest.param("cpu", id="cpu")
CUDA = pytest.param("cuda", id="cuda", marks=NEEDS_GPU)

# (N, D, V): on the CPU a small head whose (N, V) logits are 67 MB; on a GPU the budget's shape.
HEAD_SHAPES = [
    pytest.param("cpu", 1024, 128, 16384, id="cpu-1024x128x16384"),
    pytest.param("cuda", 16384, 2048, 151936, id="cuda-16384x2048x151936", marks=NEEDS_GPU),
]


def measure(benchmark, call, device: str, **extra) -> None:
    """Time `call`, and store its shape and peak memory."""

    def synchronised():
        result = call()
        if device == "cuda":
            torch.cuda.synchronize()
        return result

    benchmark.extra_info.update(
        extra,
        device=torch.cuda.get_device_name() if device == "cuda" else "cpu",
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        peak_mb=round(peak_bytes(call, device) / 1e6, 2),
    )
    benchmark.pedantic(synchronised, rounds=5, warmup_rounds=2)


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_group_advantages(benchmark, device):
    """B = 2048 rollouts in groups of 8, 9 arms: limited by launches, bytes are nothing."""
    rewards = torch.arange(2048.0, device=device) % 3
    arms = (torch.arange(2048, device=device) // 8) % 9

    def call():
        return group_advantages(rewards, num_generations=8, categories=arms, num_categories=9)

    grouped = rewards.view(-1, 8)
    deviation = grouped - grouped.mean(1, keepdim=True)
    expected = (deviation / (grouped.std(1, keepdim=True) + 1e-4)).view(-1)
    torch.testing.assert_close(call().advantages, expected)
    measure(benchmark, call, device, rollouts=2048, arms=9)


@pytest.mark.parametrize("backend", ["own", "eager"])
@pytest.mark.parametrize("device", [CPU, CUDA])
def test_policy_loss(benchmark, device, backend):
    """64 sequences, N = 65536: forward and backward; 3 reads and 2 writes of 4 N bytes at least."""
    generator = torch.Generator().manual_seed(0)
    logp = -torch.rand(64, 1024, generator=generator).to(device)
    old = logp - 0.2 * torch.randn(64, 1024, generator=generator).to(device)
    advantages = torch.randn(64, generator=generator).to(device)
    mask = torch.ones(64, 1024, dtype=torch.bool, device=device)

    def own(leaf):
        return policy_loss(leaf, advantages, mask=mask, old_logprobs=old).loss

    def eager(leaf):
        ratio = (leaf - old).exp()
        first = ratio * advantages[:, None]
        second = ratio.clamp(0.8, 1.2) * advantages[:, None]
        return -(torch.min(first, second) * mask).sum() / mask.sum()

    def call(loss=own if backend == "own" else eager):
        leaf = logp.clone().requires_grad_()
        loss(leaf).backward()
        return leaf.grad

    torch.testing.assert_close(call(own), call(eager))
    measure(benchmark, call, device, tokens=65536, least_mb=5 * 4 * 65536 / 1e6)


def in_graph(call):
    """A replay of what the call launches, as a CUDA graph: the GPU's time without Python's."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


@pytest.mark.parametrize("work", ["own", "copy"])
@pytest.mark.parametrize(
    ("device", "how"),
    [
        pytest.param("cpu", "called", id="cpu-called"),
        pytest.param("cuda", "called", id="cuda-called", marks=NEEDS_GPU),
        pytest.param("cuda", "replayed", id="cuda-replayed", marks=NEEDS_GPU),
    ],
)
def test_advantages_and_policy_loss(benchmark, device, how, work):
    """1024 rollouts of 1024 tokens: advantages, loss, gradient; beside a copy of as many bytes.

    Bytes: the forward reads logp and old and writes the gradient, the backward reads and writes it.
    """
    generator = torch.Generator().manual_seed(0)
    logp = -torch.rand(1024, 1024, generator=generator).to(device)
    old = logp - 0.2 * torch.randn(1024, 1024, generator=generator).to(device)
    rewards = torch.rand(1024, generator=generator).to(device)
    leaf = logp.clone().requires_grad_()
    touched = 5 * logp.numel() * logp.element_size()
    source = torch.empty(touched // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def own():
        leaf.grad = None
        advantages = group_advantages(rewards, num_generations=8).advantages
        policy_loss(leaf, advantages, old_logprobs=old).loss.backward()

    call = own if work == "own" else lambda: target.copy_(source)
    if how == "replayed":
        call = in_graph(call)
    call()
    if work == "own":
        grouped = rewards.view(-1, 8)
        deviation = grouped - grouped.mean(1, keepdim=True)
        advantages = (deviation / (grouped.std(1, keepdim=True) + 1e-4)).view(-1, 1)
        ratio = (logp - old).exp()
        live = torch.where(advantages > 0, ratio <= 1.2, ratio >= 0.8)
        torch.testing.assert_close(leaf.grad, -(ratio * advantages * live) / logp.numel())
    measure(
        benchmark, call, device, how=how, work=work, tokens=logp.numel(), touched_mb=touched / 1e6
    )


@pytest.mark.parametrize("head", ["chunked", "eager"])
@pytest.mark.parametrize(("device", "num_tokens", "num_hidden", "num_vocab"), HEAD_SHAPES)
def test_linear_policy_loss(benchmark, head, device, num_tokens, num_hidden, num_vocab):
    """Forward and backward through the head: compute-bound, 8 N D V operations when chunked."""
    generator = torch.Generator(device).manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    options = {"generator": generator, "device": device}
    hidden = torch.randn(num_tokens, num_hidden, **options).to(dtype)
    weight = (torch.randn(num_vocab, num_hidden, **options) / num_hidden**0.5).to(dtype)
    targets = torch.randint(0, num_vocab, (num_tokens,), **options)
    advantages = torch.tensor([1.0, -1.0, 0.5, -0.5], device=device)
    cu_seqlens = torch.linspace(0, num_tokens, 5).long().to(device)
    # 8 MiB of logits a chunk on the CPU, so that its shape has several.
    chunk = None if device == "cuda" else (8 << 20) // (4 * num_vocab)

    def chunked(h, w):
        return linear_policy_loss(
            h, w, targets, advantages, cu_seqlens=cu_seqlens, chunk_size=chunk
        ).loss

    def eager(h, w):
        logits = torch.nn.functional.linear(h, w).float()
        logp = torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0]
        return policy_loss(logp, advantages, cu_seqlens=cu_seqlens).loss

    def call(loss=chunked if head == "chunked" else eager):
        leaves = [t.clone().requires_grad_() for t in (hidden, weight)]
        loss(*leaves).backward()
        return [leaf.grad for leaf in leaves]

    tolerance = {"rtol": 1e-3, "atol": 1e-7} if device == "cpu" else {"rtol": 0.05, "atol": 1e-5}
    for ours, plain in zip(call(chunked), call(eager), strict=True):
        torch.testing.assert_close(ours, plain, **tolerance)
    measure(
        benchmark,
        call,
        device,
        shape=[num_tokens, num_hidden, num_vocab],
        logits_mb=round(num_tokens * num_vocab * 4 / 1e6, 1),
    )
