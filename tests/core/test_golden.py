"""The stream that every build must give, as in csrc/tests/test_golden.cpp."""

import zlib

import numpy as np

from sec_grpo import _core


def test_golden_stream() -> None:
    numbers = np.arange(1000)
    codes = (numbers * numbers % 7).astype(np.int32)
    engine = _core.Engine(codes, 7, 2026, 0)
    drawn = b""
    for step in range(50):
        prompts = engine.draw(64)
        if step == 0:
            assert prompts[:8].tolist() == [697, 993, 963, 936, 119, 924, 75, 114]
        drawn += prompts.astype("<u2").tobytes()
        levels = (prompts[:, None] * 31 + step * 17 + np.arange(8)) % 64 - 32
        reduction = engine.reduce(prompts, (levels / 32).astype(np.float32))
        engine.td_update(reduction, alpha=0.5, temperature=0.2, decay_undrawn=step % 10 == 9)
    assert zlib.crc32(drawn) == 0x5B2B5C26
    assert zlib.crc32(engine.weights().astype("<u8").tobytes()) == 0x6B32C390
    # Without its own checksum, with which the CRC of every state is the same.
    assert zlib.crc32(engine.serialize("golden", b"")[:-4]) == 0x438C0F16
