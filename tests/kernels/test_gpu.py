"""What only a GPU shows: default backends, mixed-precision products, no synchronisation."""

from __future__ import annotations

import pytest
import torch

from sec_grpo.kernels import reference
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
