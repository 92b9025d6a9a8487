"""Windows of each arm's last values, against plain lists."""

from __future__ import annotations

import numpy as np
import pytest

from sec_grpo.curriculum import _codec
from sec_grpo.curriculum.windows import MeanWindows, Windows


@pytest.mark.parametrize("size", [1, 3, 8, 11, 40])
def test_mean_windows_beside_lists(size: int) -> None:
    generator = np.random.default_rng(size)
    memory: dict = {}
    history: list[list[float]] = [[] for _ in range(6)]
    for _ in range(60):
        # Batches in which an arm occurs not at all, once, or more often than the window is long.
        arms = generator.integers(0, 5, generator.integers(1, 30))
        values = generator.integers(0, 256, len(arms)) / 16.0
        MeanWindows(memory, 6, size).add(arms, values)
        for arm, value in zip(arms.tolist(), values.tolist(), strict=True):
            history[arm].append(value)
        windows = MeanWindows(memory, 6, size)
        assert windows.seen.tolist() == [len(past) for past in history]
        means = [np.mean(past[-size:]) if past else 0.0 for past in history]
        assert windows.mean.tolist() == pytest.approx(means, abs=1e-12)
    # Arm 5 was never seen and has no row.
    assert memory["row"][5] == -1
    assert len(np.unique(memory["row"][:5])) == 5


def test_rows_hold_the_last_values_and_widen_as_needed() -> None:
    memory: dict = {}
    windows = Windows(memory, 1000, 100, columns=2, dtype=np.float64)
    history: dict[int, list[list[float]]] = {7: [], 3: []}
    assert memory["recent"].nbytes == 0
    for number in range(250):
        arm = 7 if number % 5 else 3
        pair = [float(number), 0.5 * number]
        assert windows.add(np.array([arm]), np.array([pair])).tolist() == [arm]
        history[arm].append(pair)
        width = memory["recent"].shape[1]
        longest = len(history[7])
        assert min(longest, 100) <= width <= max(8, min(2 * longest, 100))
        values, filled = windows.of(np.array([3]))
        assert sorted(values[0][filled[0]].tolist()) == history[3][-100:]
    values, filled = windows.of(np.array([7, 3]))
    assert filled.sum(axis=1).tolist() == [100, 50]
    assert sorted(values[0].tolist()) == history[7][-100:]


def test_codec_keeps_bits_and_kinds() -> None:
    value = {
        "b": [1, None, "x", 0.1, -0.0, True],
        "a": {"deep": np.array([[1.5, np.nan], [-np.inf, 5e-324]])},
        "ints": np.array([-(2**62), 7]),
        "bytes": np.arange(5, dtype=np.uint8),
        "none": np.zeros((0, 3), np.float32),
        "flags": np.array([True, False]),
        "number": np.float32(0.1),
        "big-endian": np.array([1, 2], ">i4"),
    }
    found = _codec.decode(_codec.encode(value))
    assert found["b"] == value["b"]
    assert str(found["b"][4]) == "-0.0"
    assert found["a"]["deep"].tobytes() == value["a"]["deep"].tobytes()
    assert found["number"] == np.float32(0.1)
    for name in ("ints", "bytes", "none", "flags"):
        assert found[name].dtype == value[name].dtype
        assert found[name].shape == value[name].shape
        assert found[name].tolist() == value[name].tolist()
    assert found["big-endian"].tolist() == [1, 2]
    found["ints"][0] = 3  # a copy, not a view of the state
    # No more than the numbers and a description of them.
    many = np.random.default_rng(0).random(10_000)
    assert len(_codec.encode({"x": many})) < many.nbytes + 100


def test_codec_refuses_what_is_cut() -> None:
    data = _codec.encode({"x": np.arange(4.0), "y": [1, 2]})
    for size in range(len(data)):
        with pytest.raises(ValueError):
            _codec.decode(data[:size])


def test_equal_parameters_have_equal_texts() -> None:
    assert _codec.text({"b": (1, 2), "a": np.float64(0.5)}) == '{"a":0.5,"b":[1,2]}'
    assert _codec.text({"x": np.array([1, 2])}) == '{"x":[1,2]}'
