"""pass@k and intervals: by hand, and by how often they hold the truth."""

import numpy as np
import pytest

from sec_grpo.evaluation import mean_interval, pass_at_k
from sec_grpo.evaluation.statistics import _student, mean_interval_of_levels
from sec_grpo.report.series import wilson_interval


def test_pass_at_k_by_hand() -> None:
    assert pass_at_k(4, 2, 1) == 0.5
    # Of the 6 pairs of 4 samples only one holds no right one.
    assert pass_at_k(4, 2, 2) == pytest.approx(5 / 6)
    assert pass_at_k(4, 2, 3) == 1.0
    assert pass_at_k(4, 0, 4) == 0.0
    for arguments in ((4, 2, 5), (4, 2, 0), (4, 5, 1)):
        with pytest.raises(ValueError, match="must be between"):
            pass_at_k(*arguments)


def test_pass_at_k_is_unbiased() -> None:
    """Over all outcomes of n draws it averages to 1 - (1 - p)^k."""
    from math import comb

    for n, p in ((5, 0.3), (8, 0.05)):
        for k in range(1, n + 1):
            mean = sum(
                comb(n, c) * p**c * (1 - p) ** (n - c) * pass_at_k(n, c, k) for c in range(n + 1)
            )
            assert mean == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


def test_with_one_sample_it_is_wilsons() -> None:
    assert mean_interval([1, 0, 0, 1, 1], 1) == wilson_interval(0.6, 5)
    # By hand: (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).
    low, high = mean_interval([1, 1, 1, 0, 0, 0, 0, 0, 0, 0], 1)
    assert (low, high) == pytest.approx((0.10779, 0.60322), abs=1e-5)


@pytest.mark.parametrize("values", [[0.0] * 6, [1.0] * 6])
def test_at_the_ends_the_prompts_count(values) -> None:
    assert mean_interval(values, 16) == wilson_interval(values[0], 6)


def test_more_samples_narrow_it_as_far_as_the_prompts_differ() -> None:
    alike, apart = [0.5] * 20, [1.0] * 10 + [0.0] * 10
    assert mean_interval(alike, 8) == wilson_interval(0.5, 160)
    assert mean_interval(apart, 8) == wilson_interval(0.5, 20)
    low, high = mean_interval([0.25, 0.75] * 10, 8)
    assert mean_interval(apart, 8)[0] < low < mean_interval(alike, 8)[0]
    assert high - 0.5 == pytest.approx(0.5 - low)


def test_students_quantile() -> None:
    # Tables: 2.2281 with 10 degrees of freedom, 1.9840 with 100.
    assert _student(10) == pytest.approx(2.2281, abs=2e-3)
    assert _student(100) == pytest.approx(1.9840, abs=1e-4)


@pytest.mark.parametrize(("a", "b"), [(0.3, 0.7), (2, 2), (1, 9)])
@pytest.mark.parametrize(("prompts", "samples"), [(20, 8), (50, 4), (100, 1)])
def test_coverage(a: float, b: float, prompts: int, samples: int) -> None:
    """95% of intervals hold the truth. Of 1000, fewer than 910 happen to a true 93% once in 130."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        shares = rng.binomial(samples, rng.beta(a, b, prompts)) / samples
        low, high = mean_interval(shares, samples)
        held += low <= a / (a + b) <= high
    assert 910 <= held <= 990


def test_coverage_of_the_mean_of_levels() -> None:
    rng = np.random.default_rng(1)
    truth = np.mean([0.9, 0.5, 0.1])
    held = 0
    for _ in range(1000):
        levels = [rng.binomial(4, rng.beta(10 * p, 10 * (1 - p), 20)) / 4 for p in (0.9, 0.5, 0.1)]
        low, high = mean_interval_of_levels(levels, 4)
        held += low <= truth <= high
    assert 925 <= held <= 990
    assert mean_interval_of_levels([[0.0], [0.0]], 4) == wilson_interval(0.0, 2)
