"""The Triton group_advantages against the torch reference, on a GPU or in the interpreter."""

from __future__ import annotations

import itertools

import pytest
import torch

from sec_grpo.ops import group_advantages

pytestmark = [pytest.mark.gpu] if torch.cuda.is_available() else []


def assert_same(result, expected):
    assert torch.equal(result.dead.cpu(), expected.dead)
    torch.testing.assert_close(
        result.advantages.cpu(), expected.advantages, rtol=2e-7, atol=1e-12, equal_nan=True
    )
    if expected.counts is not None:
        assert torch.equal(result.counts.cpu(), expected.counts)
        torch.testing.assert_close(
            result.abs_advantage_sum.cpu(), expected.abs_advantage_sum, rtol=2e-7, atol=0
        )


@pytest.mark.parametrize("num_rollouts", [1, 32, 75])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_matches_the_reference(num_rollouts, scale, triton_device, poisoned_memory):
    generator = torch.Generator().manual_seed(num_rollouts)
    rewards = torch.randint(0, 3, (num_rollouts,), generator=generator) / 10
    ids = torch.randint(-9, 9, (num_rollouts,), generator=generator) * 10**12
    arms = torch.randint(0, 20, (num_rollouts,), generator=generator)
    sizes = [{"num_generations": size} for size in (1, 5, 75) if num_rollouts % size == 0]
    for leave_one_out, with_arms in itertools.product([False, True], repeat=2):
        unbiased = leave_one_out == with_arms
        for groups in [{"group_ids": ids}, *sizes]:
            kwargs = {"scale": scale, "leave_one_out": leave_one_out, "unbiased": unbiased}
            expected = group_advantages(
                rewards,
                **groups,
                **kwargs,
                categories=arms if with_arms else None,
                num_categories=20 if with_arms else None,
                backend="torch",
            )
            on_device = {
                k: v.to(triton_device) if isinstance(v, torch.Tensor) else v
                for k, v in groups.items()
            }
            result = group_advantages(
                rewards.to(triton_device),
                **on_device,
                **kwargs,
                categories=arms.to(triton_device) if with_arms else None,
                num_categories=20 if with_arms else None,
                backend="triton",
            )
            assert_same(result, expected)


def test_dead_groups_are_exactly_zero(triton_device):
    rewards = torch.tensor([0.1] * 8 + [0.0, 1.0] * 4, device=triton_device)
    result = group_advantages(rewards, num_generations=8, eps=0.0, backend="triton")
    assert result.advantages[:8].tolist() == [0.0] * 8
    assert result.dead.tolist() == [True] * 8 + [False] * 8


def test_a_prompt_matrix_and_other_dtypes(triton_device):
    rewards = torch.tensor([[1, 0, 0, 1], [2, 2, 2, 2]])
    result = group_advantages(rewards.to(triton_device), backend="triton")
    assert_same(result, group_advantages(rewards, backend="torch"))


def test_no_rollouts(triton_device):
    empty = torch.zeros(0, device=triton_device)
    result = group_advantages(
        empty, num_generations=2, categories=empty.long(), num_categories=3, backend="triton"
    )
    assert result.advantages.shape == (0,)
    assert result.counts.tolist() == [0, 0, 0]


def test_nan_and_inf_make_their_group_nan(triton_device):
    """The public function refuses them on the CPU, so the launcher is called itself."""
    from sec_grpo.kernels.group_advantages import group_advantages as launch

    nan, inf = float("nan"), float("inf")
    rewards = torch.tensor([nan, 1, 1, 1, 0, 1, inf, inf, nan, nan], device=triton_device)
    advantages, dead, _, _ = launch(
        rewards,
        torch.arange(10, device=triton_device) // 2,
        consecutive=2,
        scale="group",
        leave_one_out=False,
        unbiased=True,
        eps=1e-4,
        categories=None,
        num_categories=0,
    )
    assert dead.tolist() == [False, False, True, True, *[False] * 6]
    is_nan = [True, True, False, False, False, False, True, True, True, True]
    assert advantages.isnan().tolist() == is_nan


def test_the_same_call_gives_the_same_bits(triton_device):
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(200, generator=generator).to(triton_device)
    arms = torch.randint(0, 3, (200,), generator=generator).to(triton_device)
    results = [
        group_advantages(
            rewards, num_generations=8, categories=arms, num_categories=3, backend="triton"
        )
        for _ in range(3)
    ]
    for result in results[1:]:
        assert torch.equal(result.advantages, results[0].advantages)
        assert torch.equal(result.abs_advantage_sum, results[0].abs_advantage_sum)
