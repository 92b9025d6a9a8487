"""The head as custom operators: what torch requires of them, and programs around them."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from sec_grpo.kernels import advantages_operator, linear_operator
from sec_grpo.kernels.reference import PolicyLossSpec, spec_arguments, spec_of_arguments
from sec_grpo.ops import group_advantages, linear_logprob, linear_policy_loss, policy_loss

N, D, V = 7, 5, 11


def make(requires_grad: bool = True):
    generator = torch.Generator().manual_seed(0)
    shapes = ((N, D), (V, D), (V,))
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    targets = torch.randint(0, V, (N,), generator=generator)
    return [t.requires_grad_(requires_grad) for t in tensors], targets


@pytest.mark.parametrize("full", [False, True])
def test_operators_pass_torchs_own_checks(full):
    (hidden, weight, bias), targets = make()
    bias = bias if full else None
    row_class = torch.tensor([0, 0, 1, 2, 0, 1, 0], dtype=torch.uint8) if full else None
    temperatures = torch.linspace(0.5, 2, N) if full else None
    head = (hidden, weight, bias, targets, temperatures, row_class, 1.0, 0.7, 3.0)
    torch.library.opcheck(linear_operator._linear_logprob, (*head, True, 3, "torch", "auto"))
    per_token = (torch.randn(N), None, None, None, torch.ones(N), torch.ones(N) if full else None)
    spec = spec_arguments(PolicyLossSpec())
    torch.library.opcheck(
        linear_operator._linear_policy_gradient,
        ([True, True, full], *head, 3, "torch", *per_token, *spec),
    )


@pytest.mark.parametrize("arms", [None, torch.tensor([0, 1, 1, 0])])
def test_the_operator_of_advantages_passes_torchs_own_checks(arms):
    tensors = (torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([7, 7, 2, 2]))
    options = ("group", False, True, 1e-4, arms, 0 if arms is None else 2, "torch")
    torch.library.opcheck(advantages_operator.group_advantages, (*tensors, None, *options))


def test_a_spec_survives_its_operator():
    spec = PolicyLossSpec("sapo", "sequence", 0.1, 0.3, 2.0, None, 0.4, "k1", True, 1.5, 1.6, 4, 5)
    assert spec_of_arguments(*spec_arguments(spec)) == spec
    capped = PolicyLossSpec(dual_clip=3.0)
    assert spec_of_arguments(*spec_arguments(capped)).negative_cap == 3.0


def program(hidden, weight, bias, targets, rewards, cu_seqlens, mask, old):
    advantages = group_advantages(rewards, num_generations=2).advantages
    options = {"cu_seqlens": cu_seqlens, "mask": mask, "old_logprobs": old}
    fused = linear_policy_loss(
        hidden.tanh(), weight, targets, advantages, bias=bias, entropy_coef=0.1, **options
    )
    logp, entropy = linear_logprob(hidden.tanh(), weight, targets, return_entropy=True)
    apart = policy_loss(logp, advantages, loss_type="grpo", **options)
    return fused.loss + apart.loss + entropy.mean(), fused.metrics


@pytest.mark.slow
def test_compiles_whole_and_once_for_all_lengths():
    compiled = torch.compile(program, fullgraph=True, dynamic=True)
    (_, weight, bias), _ = make()
    counters = torch._dynamo.utils.counters["stats"]
    counters.clear()
    for num_tokens in (9, 12, 31):
        generator = torch.Generator().manual_seed(num_tokens)
        hidden = torch.randn(num_tokens, D, generator=generator, requires_grad=True)
        rest = (
            torch.randint(0, V, (num_tokens,), generator=generator),
            torch.tensor([1.0, 0.0, 1.0, 0.0]),
            torch.tensor([0, 3, 4, 4, num_tokens]),
            torch.rand(num_tokens, generator=generator) < 0.7,
            -torch.rand(num_tokens, generator=generator),
        )
        results = []
        for run in (program, compiled):
            leaves = [t.detach().clone().requires_grad_() for t in (hidden, weight, bias)]
            loss, metrics = run(*leaves, *rest)
            loss.backward()
            results.append([loss.detach(), *metrics.values(), *(leaf.grad for leaf in leaves)])
        for eager, found in zip(*results, strict=True):
            torch.testing.assert_close(found, eager)
    assert counters["unique_graphs"] == 1


@pytest.mark.slow
def test_advantages_compile_whole():
    def program(rewards):
        found = group_advantages(rewards, num_generations=2)
        return found.advantages, found.dead

    rewards = torch.tensor([1.0, 0.0, 0.5, 0.5, 0.0, 1.0])
    for eager, found in zip(
        program(rewards), torch.compile(program, fullgraph=True)(rewards), strict=True
    ):
        torch.testing.assert_close(found, eager)


def test_gradient_checkpointing_and_accumulation_change_nothing():
    (hidden, weight, bias), targets = make()
    kwargs = {"cu_seqlens": torch.tensor([0, 3, N]), "bias": bias}
    advantages = torch.tensor([1.0, -0.5])

    def loss(h):
        return linear_policy_loss(h * 2, weight, targets, advantages, **kwargs).loss

    plain = torch.autograd.grad(loss(hidden), (hidden, weight, bias))
    again = torch.autograd.grad(
        checkpoint(loss, hidden, use_reentrant=False), (hidden, weight, bias)
    )
    for a, b in zip(plain, again, strict=True):
        assert torch.equal(a, b)
    for _ in range(2):
        (loss(hidden) / 2).backward()
    for leaf, gradient in zip((hidden, weight, bias), plain, strict=True):
        torch.testing.assert_close(leaf.grad, gradient)


def test_a_second_derivative_is_refused():
    (hidden, weight, _), targets = make()
    logp = linear_logprob(hidden, weight, targets)
    (gradient,) = torch.autograd.grad(logp.sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        gradient.sum().backward()


def test_tied_weights_get_both_gradients():
    """The embedding and the head are one tensor: its gradients add up."""
    (_, weight, _), targets = make()
    advantages = torch.tensor([1.0])
    cu_seqlens = torch.tensor([0, N])

    def loss(embedding, head):
        hidden = torch.nn.functional.embedding(targets.roll(1), embedding)
        return linear_policy_loss(hidden, head, targets, advantages, cu_seqlens=cu_seqlens).loss

    apart = [weight.detach().clone().requires_grad_() for _ in range(2)]
    expected = sum(torch.autograd.grad(loss(*apart), apart))
    (found,) = torch.autograd.grad(loss(weight, weight), weight)
    torch.testing.assert_close(found, expected)
