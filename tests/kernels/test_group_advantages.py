"""group_advantages on torch: numbers worked out by hand, and a numpy oracle."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sec_grpo.ops import group_advantages


def test_grpo_divides_by_the_unbiased_std_as_trl_does():
    # mean 1/2, deviations +-1/2, variance 4 (1/4) / 3 = 1/3.
    result = group_advantages(torch.tensor([1.0, 0.0, 0.0, 1.0]), num_generations=4)
    value = 0.5 / (math.sqrt(1 / 3) + 1e-4)
    expected = torch.tensor([value, -value, -value, value])
    torch.testing.assert_close(result.advantages, expected)
    assert result.dead.tolist() == [False] * 4
    assert result.abs_advantage_sum is None
    assert result.counts is None


def test_population_std():
    # variance 4 (1/4) / 4 = 1/4, std 1/2; eps 0: exactly +-1.
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    result = group_advantages(rewards, unbiased=False, eps=0.0)
    assert result.advantages.tolist() == [1.0, -1.0, -1.0, 1.0]


def test_dr_grpo_and_rloo():
    rewards = torch.tensor([3.0, 0.0, 0.0, 5.0, 1.0, 1.0])
    # means 1 and 7/3
    dr_grpo = group_advantages(rewards, num_generations=3, scale="none").advantages
    torch.testing.assert_close(dr_grpo, torch.tensor([2.0, -1, -1, 8 / 3, -4 / 3, -4 / 3]))
    # means of the others: 0, 1.5, 1.5 and 1, 3, 3
    rloo = group_advantages(rewards, num_generations=3, scale="none", leave_one_out=True)
    torch.testing.assert_close(rloo.advantages, torch.tensor([3.0, -1.5, -1.5, 4, -2, -2]))


def test_batch_scale_divides_by_the_std_of_all_rewards():
    # all: mean 1, squares 1 + 1 + 0 + 4 + 1 + 1 = 8, unbiased variance 8/5.
    rewards = torch.tensor([2.0, 0.0, 1.0, 3.0, 0.0, 0.0])
    result = group_advantages(rewards, num_generations=2, scale="batch", eps=0.0).advantages
    expected = torch.tensor([1.0, -1, -1, 1, 0, 0]) / math.sqrt(8 / 5)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("leave_one_out", [False, True])
def test_a_dead_group_gets_exactly_zero(scale, leave_one_out):
    # With eps = 0 the formula is 0 / 0 there.
    rewards = torch.cat([torch.full((8,), 0.1), torch.tensor([0.0, 1.0] * 4)])
    result = group_advantages(
        rewards, num_generations=8, scale=scale, leave_one_out=leave_one_out, eps=0.0
    )
    assert result.advantages[:8].tolist() == [0.0] * 8
    assert (result.advantages[8:] != 0).all()
    assert result.dead.tolist() == [True] * 8 + [False] * 8


def test_a_group_of_one_is_dead():
    result = group_advantages(torch.tensor([4.0, 1.0, 2.0]), torch.tensor([7, -3, -3]))
    assert result.advantages[0] == 0
    assert result.dead.tolist() == [True, False, False]
    # mean 1.5, variance 1/2
    torch.testing.assert_close(result.advantages[2].item(), 0.5 / (math.sqrt(0.5) + 1e-4))


def test_sums_per_category():
    rewards = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 6.0]])
    arms = torch.tensor([[3, 3], [1, 1], [3, 0]])
    result = group_advantages(rewards, scale="none", categories=arms, num_categories=5)
    # advantages 1 -1 | 0 0 | -3 3
    assert result.abs_advantage_sum.tolist() == [3.0, 0.0, 0.0, 5.0, 0.0]
    assert result.counts.tolist() == [1, 2, 0, 3, 0]
    assert result.counts.dtype == torch.int64


def test_largest_value_of_eight_rollouts():
    # mean |A| of G = 8 half right: 0.5 / sqrt(8 (1/4) / 7) = 0.9354.
    rewards = torch.tensor([1.0] * 4 + [0.0] * 4)
    result = group_advantages(rewards, num_generations=8, eps=0.0)
    torch.testing.assert_close(result.advantages.abs().mean().item(), 0.9354143, rtol=1e-6, atol=0)


@given(st.integers(0, 2**32 - 1), st.sampled_from(["group", "batch", "none"]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_any_groups_match_the_numpy_loop(seed, scale, leave_one_out):
    generator = np.random.default_rng(seed)
    num_rollouts = int(generator.integers(1, 40))
    rewards = generator.choice([0.0, 0.1, 1.0, -2.5], num_rollouts).astype(np.float32)
    ids = generator.choice([-5, 0, 3, 10**15], num_rollouts)
    result = group_advantages(
        torch.from_numpy(rewards), torch.from_numpy(ids), scale=scale, leave_one_out=leave_one_out
    )
    r = rewards.astype(np.float64)
    for i in range(num_rollouts):
        group = r[ids == ids[i]]
        if (group == group[0]).all():
            assert result.dead[i]
            assert result.advantages[i] == 0
            continue
        assert not result.dead[i]
        others = (group.sum() - r[i]) / (len(group) - 1)
        expected = r[i] - (others if leave_one_out else group.mean())
        if scale != "none":
            expected /= (group if scale == "group" else r).std(ddof=1) + 1e-4
        np.testing.assert_allclose(result.advantages[i].item(), expected, rtol=1e-6, atol=1e-7)


def test_no_rollouts():
    result = group_advantages(
        torch.zeros(0), num_generations=4, categories=torch.zeros(0).long(), num_categories=2
    )
    assert result.advantages.shape == (0,)
    assert result.counts.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({}, ValueError, r"pass num_generations, group_ids, or rewards \(P, G\)"),
        ({"num_generations": 4}, ValueError, "whole groups of num_generations=4, got B = 6"),
        ({"num_generations": 0}, ValueError, "num_generations must be an integer above 0, got 0"),
        ({"num_generations": 2, "scale": "std"}, ValueError, "scale must be one of group, batch"),
        ({"num_generations": 2, "eps": -1.0}, ValueError, "eps must be finite, at least 0, got"),
        ({"num_generations": 2, "num_categories": 3}, ValueError, "come together"),
        ({"group_ids": torch.zeros(6)}, TypeError, "group_ids must have dtype int32, int64, got"),
        ({"group_ids": torch.zeros(5).long()}, ValueError, r"group_ids must have shape \(6,\)"),
        ({"num_generations": 2, "backend": "cuda"}, ValueError, "backend must be 'auto', 'triton'"),
        (
            {"num_generations": 2, "categories": torch.full((6,), 3), "num_categories": 3},
            ValueError,
            r"categories must be in \[0, 3\), got values in \[3, 3\]",
        ),
    ],
)
def test_errors_name_the_argument(kwargs, error, message):
    with pytest.raises(error, match=message):
        group_advantages(torch.zeros(6), **kwargs)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_rewards_raise_on_the_cpu(bad):
    with pytest.raises(ValueError, match=r"rewards must be finite, got .* at position 2"):
        group_advantages(torch.tensor([0.0, 1.0, bad, 0.0]), num_generations=2)
