"""What only a GPU shows: default backends, mixed-precision products, no synchronisation."""

from __future__ import annotations

import pytest
import torch

from sec_grpo.kernels import linear_triton, reference, row_exp
from sec_grpo.ops import group_advantages, linear_logprob, linear_policy_loss, policy_loss

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device"),
]


@pytest.fixture
def no_synchronisation():
    """A callable after which an operation that waits for the device raises."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def test_the_update_never_waits_for_the_device(no_synchronisation):
    def step():
        logp = torch.full((12,), -1.0, device="cuda", requires_grad=True)
        arms = torch.arange(4, device="cuda") // 2
        rewards = torch.arange(4, device="cuda").float()
        advantages = group_advantages(
            rewards, num_generations=2, categories=arms, num_categories=2
        ).advantages
        hidden = torch.ones(12, 16, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        weight = torch.ones(64, 16, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        kwargs = {"cu_seqlens": cu_seqlens, "num_items_in_batch": num_items, "loss_type": "bnpo"}
        policy_loss(logp, advantages, **kwargs).loss.backward()
        linear_policy_loss(hidden, weight, targets, advantages, **kwargs).loss.backward()

    cu_seqlens = torch.tensor([0, 3, 3, 7, 12], device="cuda")
    num_items = torch.tensor(12, device="cuda")
    targets = torch.zeros(12, dtype=torch.long, device="cuda")
    step()  # compiles
    no_synchronisation()
    step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_vocab", [507, 32000])
def test_head_error_is_at_most_twice_that_of_plain_torch(dtype, num_vocab):
    generator = torch.Generator("cuda").manual_seed(0)
    options = {"device": "cuda", "generator": generator}
    hidden = torch.randn(200, 256, **options).to(dtype)
    weight = (torch.randn(num_vocab, 256, **options) / 16).to(dtype)
    targets = torch.randint(0, num_vocab, (200,), **options)

    def run(call, cast):
        leaves = [t.to(cast).requires_grad_() for t in (hidden, weight)]
        logp = call(*leaves)
        logp.mean().backward()
        return [t.detach().double() for t in (logp, *(leaf.grad for leaf in leaves))]

    def plain(h, w):
        logits = torch.nn.functional.linear(h, w).float()
        return torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0]

    truth = run(lambda h, w: reference.linear_logprob(h, w, targets)[0], torch.float64)
    ours = run(lambda h, w: linear_logprob(h, w, targets, chunk_size=64), dtype)
    theirs = run(plain, dtype)
    for name, exact, a, b in zip(("logp", "dX", "dW"), truth, ours, theirs, strict=True):
        errors = [torch.linalg.vector_norm(value - exact).item() for value in (a, b)]
        assert errors[0] <= 2 * errors[1], (name, errors)


def test_offsets_past_two_to_the_31():
    """The last row of a padded batch that starts beyond int32."""
    rows, length = 65537, 32768
    logp = torch.zeros(rows, length, dtype=torch.float16, device="cuda")
    logp[-1] = -1.0
    mask = torch.zeros(rows, length, dtype=torch.bool, device="cuda")
    mask[-1] = True
    advantages = torch.zeros(rows, device="cuda")
    advantages[-1] = 2.0
    result = policy_loss(logp, advantages, mask=mask, old_logprobs=logp, loss_type="cispo")
    # min(1, 0.2) 2 1
    torch.testing.assert_close(result.loss.item(), 0.4)
    assert result.metrics["num_tokens"].item() == length


def test_lengths_do_not_recompile():
    from sec_grpo.kernels.policy_loss import _policy_loss_kernel

    def compiled() -> int:
        caches = _policy_loss_kernel.device_caches[torch.cuda.current_device()]
        return len(caches[0])

    counts = []
    for length in (16, 1, 7, 32, 1000, 4096):
        logp = torch.zeros(4, length, device="cuda")
        policy_loss(logp, torch.ones(4, device="cuda"), mask=torch.ones_like(logp).bool())
        counts.append(compiled())
    assert len(set(counts)) == 1, counts


def full_size(num_tokens, num_hidden=2048, num_vocab=151936, seed=0):
    """Qwen's vocabulary; logits of standard deviation 3, targets sampled from them."""
    generator = torch.Generator("cuda").manual_seed(seed)
    options = {"device": "cuda", "generator": generator}
    hidden = torch.randn(num_tokens, num_hidden, **options).bfloat16()
    weight = (torch.randn(num_vocab, num_hidden, **options) * 3 / num_hidden**0.5).bfloat16()
    targets = torch.cat(
        [
            torch.multinomial((part @ weight.T).float().softmax(-1), 1, generator=generator)[:, 0]
            for part in hidden.split(1024)
        ]
    )
    return hidden, weight, targets


@pytest.mark.parametrize("product", ["library", "fused"])
@pytest.mark.parametrize("memory_mode", ["fast", "low"])
def test_full_size_errors_are_at_most_half_of_those_with_bfloat16_logits(
    product, memory_mode, monkeypatch
):
    monkeypatch.setattr(linear_triton, "PRODUCT", product)
    hidden, weight, targets = full_size(384)
    cu_seqlens = torch.arange(0, 385, 96, device="cuda")
    advantages = torch.tensor([1.0, -0.5, 2.0, -1.0], device="cuda")
    per_token = advantages.repeat_interleave(96)

    def run(loss_of, cast):
        leaves = [t.to(cast).requires_grad_() for t in (hidden, weight)]
        logp = loss_of(*leaves)
        return [t.detach().double() for t in (logp, *(leaf.grad for leaf in leaves))]

    def exact(h, w):
        logp = reference.linear_logprob(h, w, targets)[0]
        (-(logp * per_token).mean()).backward()
        return logp

    def plain(h, w):
        logits = torch.nn.functional.linear(h, w)
        logp = torch.log_softmax(logits.float(), -1).gather(1, targets[:, None])[:, 0]
        (-(logp * per_token).mean()).backward()
        return logp

    def ours(h, w):
        result = linear_policy_loss(
            h, w, targets, advantages, cu_seqlens=cu_seqlens, memory_mode=memory_mode
        )
        result.loss.backward()
        return result.logprobs

    truth = run(exact, torch.float64)
    found, others = run(ours, torch.bfloat16), run(plain, torch.bfloat16)
    for name, value, a, b in zip(("logp", "dX", "dW"), truth, found, others, strict=True):
        errors = [torch.linalg.vector_norm(t - value).item() for t in (a, b)]
        assert errors[0] <= 0.5 * errors[1], (name, errors)


@pytest.mark.parametrize(("memory_mode", "gib"), [("fast", 1.0), ("low", 0.3)])
def test_memory_beyond_the_gradients(memory_mode, gib):
    hidden, weight, targets = full_size(16384)
    hidden.requires_grad_()
    weight.requires_grad_()
    advantages = torch.ones(4, device="cuda")
    cu_seqlens = torch.arange(0, 16385, 4096, device="cuda")

    def call():
        hidden.grad = weight.grad = None
        linear_policy_loss(
            hidden, weight, targets, advantages, cu_seqlens=cu_seqlens, memory_mode=memory_mode
        ).loss.backward()

    call()
    hidden.grad = weight.grad = None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    # In float32 where it is accumulated, beside the bfloat16 that it becomes at the end.
    of_weight = weight.numel() * (4 + 2 if memory_mode == "fast" else 2)
    gradients = of_weight + 2 * hidden.numel() * 2
    assert torch.cuda.max_memory_allocated() - before - gradients <= gib * 2**30


def test_masked_and_dead_rows_cost_no_product():
    """Half of the tokens masked: the time of the other half, and nothing of them in the result."""
    hidden, weight, targets = full_size(8192)
    hidden.requires_grad_()
    mask = torch.zeros(2, 4096, dtype=torch.bool, device="cuda")
    mask[:, :1024] = True
    padded = hidden.view(2, 4096, -1)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
    advantages = torch.ones(2, device="cuda")
    for _ in range(3):
        events[0].record()
        for i, chosen in enumerate((None, mask)):
            linear_policy_loss(
                padded, weight, targets.view(2, 4096), advantages, mask=chosen
            ).loss.backward()
            events[i + 1].record()
        events[2].synchronize()
    whole = events[0].elapsed_time(events[1])
    # A quarter of the rows; twice that allows for what does not shrink with them.
    assert events[1].elapsed_time(events[2]) < 0.5 * whole


def test_lengths_do_not_recompile_the_head():
    kernels = (row_exp._exp_kernel, row_exp._finish_kernel, row_exp._combine_kernel)
    weight = torch.randn(507, 64, device="cuda").bfloat16()

    def compiled() -> int:
        return sum(len(k.device_caches[torch.cuda.current_device()][0]) for k in kernels)

    counts = []
    for length in (16, 1, 7, 300, 1000, 4096):
        hidden = torch.randn(length, 64, device="cuda").bfloat16().requires_grad_()
        linear_policy_loss(
            hidden,
            weight,
            torch.zeros(length, dtype=torch.long, device="cuda"),
            torch.ones(1, device="cuda"),
            cu_seqlens=torch.tensor([0, length], device="cuda"),
        ).loss.backward()
        counts.append(compiled())
    assert len(set(counts)) == 1, counts


def test_compiles_whole():
    """The operators under torch.compile, with the Triton backend inside."""

    @torch.compile(fullgraph=True, dynamic=True)
    def loss(hidden, weight, targets, advantages, cu_seqlens):
        return linear_policy_loss(
            hidden * 2, weight, targets, advantages, cu_seqlens=cu_seqlens
        ).loss

    weight = torch.randn(507, 64, device="cuda").bfloat16().requires_grad_()
    for length in (40, 64):
        hidden = torch.randn(length, 64, device="cuda").bfloat16().requires_grad_()
        rest = (
            torch.zeros(length, dtype=torch.long, device="cuda"),
            torch.ones(1, device="cuda"),
            torch.tensor([0, length], device="cuda"),
        )
        results = []
        for run in (loss, loss._torchdynamo_orig_callable):
            gradients = torch.autograd.grad(run(hidden, weight, *rest), (hidden, weight))
            results.append(gradients)
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-2, atol=1e-4)
