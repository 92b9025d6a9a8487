"""Curriculum loaders in plain Python, to measure ours beside. K arms, B prompts a batch."""

from __future__ import annotations

import math
import random


class ListLoader:
    """SEC in lists, made with care: an index per category and `pop` from its end."""

    def __init__(self, categories: list[int], seed: int, alpha: float, temperature: float) -> None:
        self._random = random.Random(seed)
        self._alpha, self._temperature = alpha, temperature
        self._prompts: dict[int, list[int]] = {}
        for i, category in enumerate(categories):
            self._prompts.setdefault(category, []).append(i)
        self._left: dict[int, list[int]] = {category: [] for category in self._prompts}
        self.values = dict.fromkeys(self._prompts, 0.0)
        self._category_of: dict[int, int] = {}

    def choose(self, batch_size: int) -> list[int]:
        """B arms by softmax."""
        arms = list(self.values)
        top = max(self.values.values())
        weights = [math.exp((self.values[arm] - top) / self._temperature) for arm in arms]
        return self._random.choices(arms, weights, k=batch_size)

    def draw(self, batch_size: int) -> list[int]:
        """B prompts."""
        out = []
        for arm in self.choose(batch_size):
            if not self._left[arm]:
                self._left[arm] = self._random.sample(self._prompts[arm], len(self._prompts[arm]))
            out.append(self._left[arm].pop())
            self._category_of[out[-1]] = arm
        return out

    def observe(self, indices: list[int], advantages: list[list[float]]) -> None:
        """Move the values of the categories drawn."""
        sums: dict[int, list[float]] = {}
        for index, group in zip(indices, advantages, strict=True):
            sums.setdefault(self._category_of[index], []).extend(abs(a) for a in group)
        for arm, numbers in sums.items():
            mean = sum(numbers) / len(numbers)
            self.values[arm] += self._alpha * (mean - self.values[arm])


class BufferLoader(ListLoader):
    """SEC as its authors' loader works: a buffer per category, taken from the front.

    As soon as one buffer holds fewer than B prompts, all of them are extended by a shuffled epoch
    (described in the paper's repository; written anew here). What is taken is cut off the list,
    which copies the rest.
    """

    def __init__(self, categories: list[int], seed: int, alpha: float, temperature: float) -> None:
        super().__init__(categories, seed, alpha, temperature)
        for category, prompts in self._prompts.items():
            for prompt in prompts:
                self._category_of[prompt] = category

    def draw(self, batch_size: int) -> list[int]:
        """B prompts."""
        if any(len(buffer) < batch_size for buffer in self._left.values()):
            for category, prompts in self._prompts.items():
                epoch = self._random.sample(prompts, len(prompts))
                self._left[category] = self._left[category] + epoch
        counts: dict[int, int] = {}
        for arm in self.choose(batch_size):
            counts[arm] = counts.get(arm, 0) + 1
        out = []
        for arm, count in counts.items():
            out += self._left[arm][:count]
            self._left[arm] = self._left[arm][count:]
        return out
