"""exp, log, power and tanh of the core, against the math module."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sec_grpo.curriculum import _elementary as elementary
from sec_grpo.curriculum.estimators import Gaussian


def test_close_to_the_math_module() -> None:
    generator = np.random.default_rng(3)
    x = generator.uniform(-700, 700, 2000)
    assert elementary.exp(x).tolist() == pytest.approx([math.exp(v) for v in x], rel=3e-16)
    y = np.exp(generator.uniform(-700, 700, 2000))
    assert elementary.log(y).tolist() == pytest.approx([math.log(v) for v in y], rel=3e-16)
    for value in (-30.0, -1.3, -1e-3, 0.0, 0.2, 4.0, 500.0):
        # The subtraction from 1 costs the digits of a small result.
        assert elementary.tanh(value) == pytest.approx(math.tanh(value), rel=1e-12, abs=2e-16)
    bases = np.array([0.0, 0.1, 1.0, 7.0])
    assert elementary.power(bases, 0.5).tolist() == pytest.approx(
        np.sqrt(bases).tolist(), rel=1e-15
    )
    assert elementary.power(bases[1:], -10.0).tolist() == pytest.approx(
        [v**-10 for v in bases[1:]], rel=1e-14
    )


def test_ends_and_shapes() -> None:
    with np.errstate(all="raise"):  # no warnings: they are errors in this package
        assert elementary.log([0.0, 1.0]).tolist() == [-math.inf, 0.0]
        assert elementary.exp([-math.inf, math.inf]).tolist() == [0.0, math.inf]
    assert elementary.log(np.ones((2, 3))[:, ::2]).shape == (2, 2)
    assert float(elementary.log(8)) == pytest.approx(math.log(8))
    assert math.isnan(float(elementary.log(-1.0)))


def test_bits() -> None:
    # As in csrc/tests/test_elementary.cpp: every processor gives these.
    assert float(elementary.exp(1.0)).hex() == "0x1.5bf0a8b145769p+1"
    assert float(elementary.log(10.0)).hex() == "0x1.26bb1bbb55516p+1"


def test_squares_are_products() -> None:
    # pow(x, 2) of glibc is not x * x for these, and for some of them only without FMA.
    for x in (0.0397, 0.0588, 0.1176, 0.8329):
        memory: dict[str, np.ndarray] = {}
        belief = Gaussian(drift=x, noise=x, spread=x)
        belief.start(memory, 2, 0.0)
        assert memory["variance"].tolist() == [x * x] * 2
        belief.update(memory, np.array([1]), np.array([1.0]), 1)
        variance = x * x + x * x
        gain = variance / (variance + x * x / 1)
        assert memory["estimate"].tolist() == [0.0, gain]
        assert memory["variance"].tolist() == [variance, variance * (1.0 - gain)]
