"""Groups from another trainer's rollouts, which come in any order and may be incomplete."""

from __future__ import annotations

import numpy as np
import torch

from sec_grpo import SEC, Curriculum
from sec_grpo.integrations.feedback import group_feedback, rollout_advantages


def test_a_rollout_s_advantage_is_that_of_its_tokens() -> None:
    advantages = torch.tensor([[0.7, 0.7, 9.0], [-0.3, 9.0, 9.0], [5.0, 5.0, 5.0], [1.0, 9.0, 2.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 1]])
    found = rollout_advantages(advantages, mask)
    np.testing.assert_allclose(found, [0.7, -0.3, 0.0, 1.5], rtol=1e-6)
    # Exactly what verl wrote, not a rounded mean of it.
    assert found[0] == np.float32(0.7)


def test_groups_are_put_together_by_key() -> None:
    keys = ["b", "a", "b", "a"]
    found = group_feedback(keys, np.array([1.0, 2.0, -1.0, -2.0]), np.array([5.0, 6.0, 7.0, 8.0]))
    assert found.keys == ["b", "a"]
    assert found.advantages.tolist() == [[1.0, -1.0], [2.0, -2.0]]
    assert found.rewards.tolist() == [[5.0, 7.0], [6.0, 8.0]]


def test_a_smaller_group_teaches_its_own_means() -> None:
    keys = ["a"] * 4 + ["b"] * 2 + ["c"] * 3
    advantages = np.array([1.0, -1.0, 2.0, -2.0, 0.9, -0.9, 0.0, 0.0, 0.0])
    rewards = np.array([1.0, 2.0, 3.0, 4.0, 1.0, 0.0, 2.0, 2.0, 2.0])
    found = group_feedback(keys, advantages, rewards)
    assert found.advantages.shape == found.rewards.shape == (3, 4)
    np.testing.assert_allclose(np.abs(found.advantages).mean(1), [1.5, 0.9, 0.0])
    np.testing.assert_allclose(found.rewards.mean(1), [2.5, 0.5, 2.0])
    curriculum = Curriculum([0, 1, 2], SEC(alpha=1.0))
    curriculum.observe([0, 1, 2], advantages=found.advantages, rewards=found.rewards)
    np.testing.assert_allclose(curriculum.values(), [1.5, 0.9, 0.0])
    assert curriculum.arm_table()["dead_groups"].tolist() == [0, 0, 1]
