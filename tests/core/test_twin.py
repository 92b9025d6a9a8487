"""The draws beside a twin in plain Python, written from what the headers say."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from sec_grpo import _core

WINDOW = 64
MASK = 2**32 - 1


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011)."""
    for _ in range(10):
        first, second = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [
            (second >> 32) ^ counter[1] ^ key[0],
            second & MASK,
            (first >> 32) ^ counter[3] ^ key[1],
            first & MASK,
        ]
        key = [(key[0] + 0x9E3779B9) & MASK, (key[1] + 0xBB67AE85) & MASK]
    return counter


def words(counter: list[int], seed: int) -> Iterator[int]:
    """The 64-bit words of one draw."""
    for attempt in range(256):
        block = philox([*counter[:3], counter[3] + attempt], [seed & MASK, seed >> 32])
        yield block[0] | block[1] << 32
        yield block[2] | block[3] << 32


def bounded(limit: int, source: Iterator[int]) -> int:
    """Lemire (2019): the high half of word x limit, words of the uneven rest thrown away."""
    while True:
        high, low = divmod(next(source) * limit, 2**64)
        if low >= 2**64 % limit:
            return high


class Twin:
    def __init__(self, codes: np.ndarray, num_arms: int, seed: int) -> None:
        self.prompts = [np.flatnonzero(codes == arm).tolist() for arm in range(num_arms)]
        self.order = [list(prompts) for prompts in self.prompts]
        self.drawn = [0] * num_arms
        self.seed, self.total_drawn = seed, 0

    def draw(self, batch_size: int, weights: np.ndarray) -> list[int]:
        ends = np.cumsum(weights, dtype=np.uint64)
        return [self.one(ends) for _ in range(batch_size)]

    def one(self, ends: np.ndarray) -> int:
        index, self.total_drawn = self.total_drawn, self.total_drawn + 1
        target = bounded(int(ends[-1]), words([index & MASK, index >> 32, 0, 0], self.seed))
        arm = int(np.searchsorted(ends, np.uint64(target), side="right"))
        order = self.order[arm]
        epoch, cursor = divmod(self.drawn[arm], len(order))
        self.drawn[arm] += 1
        if cursor == 0 and epoch % WINDOW == 0:
            order[:] = self.prompts[arm]
        counter = [cursor, arm, epoch & MASK, 0x80000000 | (epoch >> 32) << 8]
        other = cursor + bounded(len(order) - cursor, words(counter, self.seed))
        order[cursor], order[other] = order[other], order[cursor]
        return order[cursor]


@pytest.mark.parametrize("seed", [0, 2**64 - 1, 20260101])
@pytest.mark.parametrize("num_arms", [1, 5, 40, 300])
def test_draws_are_those_of_the_twin(num_arms: int, seed: int) -> None:
    generator = np.random.default_rng(num_arms)
    # Some arms have no prompt, some one, which runs through several windows of epochs.
    codes = generator.integers(0, num_arms, 2 * num_arms).astype(np.int32)
    engine, twin = _core.Engine(codes, num_arms, seed, 0), Twin(codes, num_arms, seed)
    for _ in range(30):
        engine.assign(generator.standard_normal(num_arms) * 3, 1.0)
        batch_size = int(generator.integers(1, 90))
        assert engine.draw(batch_size).tolist() == twin.draw(batch_size, engine.weights())
    assert engine.arm_table()["draws"].tolist() == twin.drawn
    assert num_arms > 5 or max(twin.drawn) > WINDOW * len(twin.order[int(np.argmax(twin.drawn))])
