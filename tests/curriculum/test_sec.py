"""SEC against a float64 twin and against the numbers of the paper."""

import numpy as np
import pytest

from sec_grpo.curriculum import SEC, Curriculum


class NumpySEC:
    """SEC of arXiv 2505.14970 in plain numpy."""

    def __init__(self, arm_of: np.ndarray, alpha: float, temperature: float, undrawn: str) -> None:
        self.arm_of, self.alpha, self.temperature = arm_of, alpha, temperature
        self.undrawn = undrawn
        self.q = np.zeros(arm_of.max() + 1)

    def probabilities(self) -> np.ndarray:
        weights = np.exp((self.q - self.q.max()) / self.temperature)
        return weights / weights.sum()

    def observe(self, indices: np.ndarray, advantages: np.ndarray) -> None:
        arms = self.arm_of[indices]
        for arm in range(len(self.q)):
            if (arms == arm).any():
                reward = np.abs(advantages[arms == arm].astype(np.float64)).mean()
                self.q[arm] = self.alpha * reward + (1 - self.alpha) * self.q[arm]
            elif self.undrawn == "decay":
                self.q[arm] *= 1 - self.alpha


@pytest.mark.parametrize("undrawn", ["keep", "decay"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("num_arms", "alpha", "temperature"), [(3, 0.5, 1.0), (9, 0.5, 0.2), (40, 0.1, 0.03)]
)
def test_agrees_with_numpy(
    num_arms: int, alpha: float, temperature: float, dtype: type, undrawn: str
) -> None:
    rng = np.random.default_rng(0)
    arm_of = np.concatenate([np.arange(num_arms), rng.integers(0, num_arms, 500)])
    curriculum = Curriculum(arm_of, SEC(alpha, temperature, undrawn), seed=3)
    twin = NumpySEC(arm_of, alpha, temperature, undrawn)
    for step in range(100):
        indices = curriculum.draw(16)
        # The level of |A| wanders, so that Q rises and falls by several temperatures.
        scale = 0.1 + np.abs(np.sin(0.2 * step + arm_of[indices]))[:, None]
        advantages = (rng.standard_normal((16, 8)) * scale).astype(dtype)
        curriculum.observe(indices, advantages=advantages)
        twin.observe(indices, advantages)
        # Sums of at most 128 values in another order.
        np.testing.assert_allclose(curriculum.values(), twin.q, rtol=1e-14)
        # The weights are integers with at least 2^39 in all: K 2^-39 / p of relative error.
        np.testing.assert_allclose(
            curriculum.probabilities(), twin.probabilities(), rtol=1e-11, atol=num_arms * 2.0**-39
        )


@pytest.mark.parametrize("rate", [0.125, 0.25, 0.5, 0.875])
def test_mean_absolute_advantage_of_binary_rewards(rate: float) -> None:
    # E|A| = 2 sqrt(p (1 - p)) with the (population) std, 2 p (1 - p) without.
    rewards = np.zeros((1, 8))
    rewards[0, : int(8 * rate)] = 1.0
    raw = rewards - rewards.mean()
    for advantages, expected in [
        (raw, 2 * rate * (1 - rate)),
        (raw / rewards.std(), 2 * np.sqrt(rate * (1 - rate))),
    ]:
        curriculum = Curriculum([0, 1], SEC(alpha=1.0))
        curriculum.observe([0], advantages=advantages, rewards=rewards)
        np.testing.assert_allclose(curriculum.values(), [expected, 0.0], rtol=1e-14)
        # Shown, and saved, in float32.
        assert curriculum.arm_table()["abs_advantage"][0] == np.float32(curriculum.values()[0])
        assert curriculum.arm_table()["reward"][0] == rate


def test_undrawn_arms() -> None:
    # 1.6 -> Q = 0.8; then the arm is not drawn: 0.8 in the paper, 0.4 in the authors' code.
    for undrawn, expected in [("keep", 0.8), ("decay", 0.4)]:
        curriculum = Curriculum(["easy", "hard"], SEC(undrawn=undrawn))
        curriculum.observe([0], advantages=[[1.6, -1.6]])
        assert curriculum.values().tolist() == [0.8, 0.0]
        curriculum.observe([1], advantages=[[0.0, 0.0]])
        assert curriculum.values().tolist() == [expected, 0.0]


def test_first_draws_are_uniform_over_arms_that_have_prompts() -> None:
    curriculum = Curriculum([1, 1, 1, 3], arms=[1, 2, 3])
    assert curriculum.probabilities().tolist() == [0.5, 0.0, 0.5]


@pytest.mark.parametrize("temperature", [1e-6, 1e-300])
def test_tiny_temperature_is_greedy(temperature: float) -> None:
    curriculum = Curriculum([0, 1, 2], SEC(alpha=1.0, temperature=temperature))
    curriculum.observe([0, 1], advantages=[[0.5, -0.5], [0.75, -0.75]])
    probabilities = curriculum.probabilities()
    assert probabilities[1] == 2**40 / (2**40 + 2)
    assert (probabilities > 0).all()


def test_huge_temperature_is_uniform() -> None:
    curriculum = Curriculum([0, 1, 2], SEC(alpha=1.0, temperature=1e300))
    curriculum.observe([0, 1], advantages=[[0.5, -0.5], [0.75, -0.75]])
    # The weights are integers of about 2^40, rounded once.
    np.testing.assert_allclose(curriculum.probabilities(), 1 / 3, rtol=1e-11)


def test_weights_keep_their_resolution_when_the_maximum_falls() -> None:
    curriculum = Curriculum([0, 1, 2], SEC(alpha=1.0, temperature=0.01))
    curriculum.observe([0], advantages=[[9.0, -9.0]])
    assert curriculum.probabilities()[0] > 0.999999
    curriculum.observe([0, 1], advantages=[[0.0, 0.0], [0.02, -0.02]])
    expected = np.exp([0.0, 2.0, 0.0])
    # The weights are integers, the smallest of about 2^37.
    np.testing.assert_allclose(curriculum.probabilities(), expected / expected.sum(), rtol=1e-11)


def test_needs_advantages_and_changes_nothing_without() -> None:
    curriculum = Curriculum([0, 1])
    before = curriculum.to_bytes()
    with pytest.raises(ValueError, match=r"advantages=\.\.\."):
        curriculum.observe([0], rewards=[[0.0, 1.0]])
    assert curriculum.to_bytes() == before
