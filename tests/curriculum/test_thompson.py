"""Thompson sampling by integration, and the strategies on it: BetaThompson, PAC, PLR."""

from __future__ import annotations

import numpy as np
import pytest

from sec_grpo.curriculum import PAC, PLR, BetaThompson, Curriculum
from sec_grpo.curriculum.thompson import gaussian_wins, nearest_beta_wins

CATEGORIES = np.arange(400) % 4
# Of 200,000 samples a share strays by more than 5 standard errors (at most 0.0056) with
# probability 6e-7; below 1e-5 over all shares compared here.
SAMPLES, TOLERANCE = 200_000, 0.0056


@pytest.mark.parametrize(
    ("mean", "deviation"),
    [
        ([0.0, 0.0], [1.0, 1.0]),
        ([0.1, 0.5, 0.45, 0.3], [0.3, 0.05, 0.1, 0.2]),
        ([0.0, 3.0], [1.0, 1.0]),
        (np.linspace(0, 1, 40), np.full(40, 0.2)),
    ],
)
def test_gaussian_wins_beside_monte_carlo(mean: list[float], deviation: list[float]) -> None:
    mean, deviation = np.asarray(mean), np.asarray(deviation)
    samples = np.random.default_rng(1).normal(mean, deviation, (SAMPLES, len(mean)))
    shares = np.bincount(samples.argmax(1), minlength=len(mean)) / SAMPLES
    assert gaussian_wins(mean, deviation) == pytest.approx(shares, abs=TOLERANCE)


def test_gaussian_wins_at_the_edges() -> None:
    assert gaussian_wins(np.array([0.3]), np.array([0.1])).tolist() == [1.0]
    assert gaussian_wins(np.zeros(3), np.zeros(3)) == pytest.approx([1 / 3] * 3)
    # One arm far narrower than the grid: it keeps the middle.
    wins = gaussian_wins(np.array([0.0, 0.0]), np.array([1e-9, 1.0]))
    assert wins == pytest.approx([0.5, 0.5], abs=0.01)
    assert gaussian_wins(np.array([0.0, 50.0]), np.array([1.0, 1.0])) == pytest.approx([0, 1])


@pytest.mark.parametrize("target", [0.5, 0.2, 1.0])
def test_nearest_beta_wins_beside_monte_carlo(target: float) -> None:
    a, b = np.array([1.0, 8.0, 3.5, 40.0]), np.array([1.0, 2.0, 3.0, 1.0])
    samples = np.random.default_rng(2).beta(a, b, (SAMPLES, 4))
    shares = np.bincount(np.abs(samples - target).argmin(1), minlength=4) / SAMPLES
    assert nearest_beta_wins(a, b, target) == pytest.approx(shares, abs=TOLERANCE)


def test_beta_thompson_beside_a_loop(play) -> None:
    curriculum = Curriculum(CATEGORIES, BetaThompson(decay=0.8, a0=2.0, b0=1.5), seed=1)
    a, b = [2.0] * 4, [1.5] * 4
    for batch in play(curriculum, 30):
        for arm in set(batch["arms"].tolist()):
            wins = batch["rewards"][batch["arms"] == arm]
            a[arm] = 0.8 * a[arm] + 0.2 * 2.0 + wins.sum()
            b[arm] = 0.8 * b[arm] + 0.2 * 1.5 + (1 - wins).sum()
        mean = [x / (x + y) for x, y in zip(a, b, strict=True)]
        assert curriculum.values() == pytest.approx(mean)
        expected = nearest_beta_wins(np.array(a), np.array(b), 0.5)
        assert curriculum.probabilities() == pytest.approx(expected, abs=1e-6)
    # It settles on the arm that is solved half the time.
    assert curriculum.probabilities()[1] > 0.9


def test_pac_beside_a_loop(play) -> None:
    strategy = PAC(window=4, drift=0.05, noise=0.2, spread=0.7, warmup=3)
    curriculum = Curriculum(CATEGORIES, strategy, seed=1)
    history: list[list[tuple[int, float, float]]] = [[] for _ in range(4)]
    mean, variance = np.zeros(4), np.full(4, 0.49)
    assert curriculum.probabilities() == pytest.approx([0.25] * 4)
    for t, batch in enumerate(play(curriculum, 25)):
        drawn = sorted(set(batch["arms"].tolist()))
        for arm in drawn:
            chosen = batch["arms"] == arm
            point = (t, np.abs(batch["advantages"][chosen]).mean(), batch["rewards"][chosen].mean())
            history[arm] = [*history[arm], point][-4:]
        slope = np.array(
            [np.polyfit([x for x, _, _ in h], [r for *_, r in h], 1)[0] if len(h) > 1 else 0.0
             for h in history]
        )  # fmt: skip
        size = np.array([np.mean([m for _, m, _ in h]) if h else 0.0 for h in history])
        total = np.abs(slope).sum()
        value = size * (1 + slope / total) if total else size
        variance += 0.05**2
        for arm in drawn:
            gain = variance[arm] / (variance[arm] + 0.2**2)
            mean[arm] += gain * (value[arm] - mean[arm])
            variance[arm] *= 1 - gain
        assert curriculum.values() == pytest.approx(mean, abs=1e-9)
        expected = gaussian_wins(mean, np.sqrt(variance)) if t >= 2 else np.full(4, 0.25)
        assert curriculum.probabilities() == pytest.approx(expected, abs=1e-6)


def test_plr_beside_a_loop(play) -> None:
    curriculum = Curriculum(CATEGORIES, PLR(beta=0.5, rho=0.2), seed=1)
    score: list[float] = [np.inf] * 4
    last = [0] * 4
    assert curriculum.probabilities() == pytest.approx([0.25] * 4)
    for t, batch in enumerate(play(curriculum, 25)):
        for arm in set(batch["arms"].tolist()):
            score[arm] = np.abs(batch["advantages"][batch["arms"] == arm]).mean()
            last[arm] = t + 1
        by_rank = np.zeros(4)
        order = sorted(range(4), key=lambda arm: -score[arm])
        for rank, arm in enumerate(order, 1):
            by_rank[arm] = rank ** (-1 / 0.5)
        for arm in range(4):  # equal scores share
            same = [i for i in range(4) if score[i] == score[arm]]
            total = sum(r ** (-1 / 0.5) for r, i in enumerate(order, 1) if i in same)
            by_rank[arm] = total / len(same)
        stale = np.array([t + 1 - x for x in last], float)
        expected = by_rank / by_rank.sum()
        if stale.sum():
            expected = 0.8 * expected + 0.2 * stale / stale.sum()
        assert curriculum.probabilities() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BetaThompson(target=1.5), r"target must be a success rate in \[0, 1\]"),
        (lambda: BetaThompson(decay=-0.1), r"decay must be a number in \[0, 1\]"),
        (lambda: BetaThompson(a0=0.5), "a0 must be a finite number of at least 1, got 0.5"),
        (lambda: PAC(window=1), "window must be at least 2"),
        (lambda: PAC(noise=0), "noise must be a finite number above 0"),
        (lambda: PAC(drift=-1), "drift must be a finite number at least 0"),
        (lambda: PAC(warmup=0), "warmup must be an integer of at least 1"),
        (lambda: PLR(beta=0), "beta must be a finite number above 0"),
        (lambda: PLR(rho=1.1), r"rho must be a number in \[0, 1\]"),
    ],
)
def test_bad_parameters(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
