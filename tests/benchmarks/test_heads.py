"""What the benchmarks compare computes the same loss and gradients."""

from __future__ import annotations

import pytest
import torch
from heads import IMPLEMENTATIONS, OTHER_LOSS, bare_products, logprobs_of, make_case, skip_dead


@pytest.fixture(scope="module")
def made():
    return make_case(64, 16, 300, device="cpu", dtype=torch.float32, sequences=4, dead=0.5)


def gradients(loss_of, hidden, weight):
    leaves = [t.detach().clone().requires_grad_() for t in (hidden, weight)]
    loss_of(*leaves).backward()
    return [leaf.grad for leaf in leaves]


# torch.compile has nothing of ours in it, and takes a minute to build here.
@pytest.mark.parametrize("name", sorted(set(IMPLEMENTATIONS) - OTHER_LOSS - {"torch.compile"}))
def test_every_implementation_has_the_same_gradient(name, made):
    hidden, weight, case = made
    try:
        loss_of = IMPLEMENTATIONS[name](case)
    except ImportError as error:
        pytest.skip(f"{name}: {error}")
    expected = gradients(IMPLEMENTATIONS["torch eager"](case), hidden, weight)
    assert expected[0].abs().max() > 1e-4
    for found, truth in zip(gradients(loss_of, hidden, weight), expected, strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-6)


def test_leaving_out_dead_sequences_changes_nothing(made):
    hidden, weight, case = made
    assert (case.advantages == 0).sum() == 2
    expected = gradients(IMPLEMENTATIONS["torch eager"](case), hidden, weight)
    for found, truth in zip(gradients(skip_dead(case), hidden, weight), expected, strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["sec-grpo", "sec-grpo, torch", "trl"])
def test_log_probabilities(name, made):
    hidden, weight, case = made
    expected = logprobs_of("torch eager", case)(hidden, weight)
    torch.testing.assert_close(logprobs_of(name, case)(hidden, weight), expected)


def test_bare_products_are_those_of_a_backward(made):
    hidden, weight, _ = made
    logits = hidden @ weight.T
    for count, shape in ((1, logits.shape), (2, hidden.shape), (3, weight.shape)):
        assert bare_products(count)(hidden, weight).shape == shape
