"""Every Triton kernel compiles for the GPUs we support, without spills and inside shared memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton
from packaging.version import Version

WORKER = Path(__file__).with_name("aot_worker.py")
# Bytes of shared memory a block may use: sm_80 163 KiB, sm_90 and sm_100 227 KiB, gfx942 64 KiB.
# Most kernels only reduce across warps: a tile kept in shared memory would be a mistake.
SHARED_LIMIT = 4096
PRODUCT_SHARED_LIMIT = 227 << 10
# Bytes of spilled registers: none with Triton 3.9, two registers in one kernel with 3.4 and 3.6.
SPILL_LIMIT = 0 if Version(triton.__version__) >= Version("3.9") else 8
# These touch every logit: by 16 bytes at a time, or they are several times as slow.
OVER_ALL_LOGITS = ("_exp_kernel", "_gradient_kernel")
TARGETS = [("cuda", "80"), ("cuda", "90"), ("cuda", "100"), ("hip", "gfx942")]


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target[1])
def test_kernels_compile_without_spills(target, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, WORKER, *target], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    resources = json.loads(done.stdout)
    products = {name for name in resources if name.startswith("_linear_exp_kernel")}
    assert len(products) == (3 if target in (("cuda", "90"), ("cuda", "100")) else 0)
    assert len(resources) - len(products) == 21
    for name, used in resources.items():
        assert used["spills"] <= SPILL_LIMIT, (name, used)
        assert used["registers"] > 0, (name, used)
        if name in products:
            assert used["shared"] <= PRODUCT_SHARED_LIMIT, (name, used)
            assert used["tensor_core"] > 0, (name, used)
        else:
            assert used["shared"] <= SHARED_LIMIT, (name, used)
        if target[0] == "cuda" and name.startswith(OVER_ALL_LOGITS):
            assert used["wide_loads"] > 0, (name, used)
            assert used["wide_stores"] > 0, (name, used)
            # A row's target, its numbers for the gradient, and the three statistics of a block.
            assert used["narrow_loads"] < 10, (name, used)
            assert used["narrow_stores"] <= 3, (name, used)
