"""row_chunks: every row once, those with a gradient first, skipped ones never."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sec_grpo.kernels.rows import FORWARD, GRADIENT, SKIP, even_rows, row_chunks


@given(st.integers(0, 10_000), st.integers(1, 40), st.sampled_from([1, 128]))
def test_even_chunks_are_as_few_as_possible(num_rows, most, multiple):
    most *= multiple
    rows = even_rows(num_rows, most, multiple)
    assert multiple <= rows <= most
    assert rows % multiple == 0
    assert -(-num_rows // rows) <= max(1, -(-num_rows // most))
    if multiple == 1 and num_rows:
        chunks = -(-num_rows // rows)
        assert rows * chunks - num_rows < chunks


def test_without_classes_chunks_are_slices():
    chunks = list(row_chunks(None, 10, 4))
    assert [chunk.rows for chunk in chunks] == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert all(chunk.has_gradient and chunk.kept is None for chunk in chunks)
    assert list(row_chunks(None, 0, 4)) == []


@given(st.lists(st.sampled_from([GRADIENT, FORWARD, SKIP]), max_size=30), st.integers(1, 8))
def test_rows_come_by_class(classes, chunk_rows):
    row_class = torch.tensor(classes, dtype=torch.uint8)
    chunks = list(row_chunks(row_class, len(classes), chunk_rows))
    found = {True: [], False: []}
    for chunk in chunks:
        assert 0 < len(chunk.rows) <= chunk_rows
        found[chunk.has_gradient] += chunk.rows.tolist()
    for has_gradient, cls in ((True, GRADIENT), (False, FORWARD)):
        assert found[has_gradient] == [i for i, value in enumerate(classes) if value == cls]
    assert [c.has_gradient for c in chunks] == sorted(
        (c.has_gradient for c in chunks), reverse=True
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device")
@pytest.mark.parametrize("chunk_rows", [1, 5, 50])
def test_on_a_gpu_the_first_chunk_comes_before_the_counts(chunk_rows):
    row_class = torch.tensor([2, 0, 1, 0, 2, 1, 0, 0], dtype=torch.uint8, device="cuda")
    values = torch.arange(8.0, device="cuda").masked_fill(row_class == SKIP, torch.nan)
    first, *others = row_chunks(row_class, 8, chunk_rows)
    rows = first.rows[first.kept].tolist() + [i for c in others for i in c.rows.tolist()]
    assert sorted(rows) == [1, 2, 3, 5, 6, 7]
    assert torch.equal(first.take(values).isnan(), torch.zeros_like(first.kept))
    assert (first.take(values)[~first.kept] == 0).all()
