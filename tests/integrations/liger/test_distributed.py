"""The denominator over several processes, which Liger counts by itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("liger_kernel", reason="needs liger-kernel")

from sec_grpo.integrations.liger import LigerFusedLinearGRPOLoss


@pytest.mark.slow
def test_processes_divide_by_the_tokens_of_all(batch, tmp_path) -> None:
    worker = Path(__file__).with_name("distributed_worker.py")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(worker)]
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    one, two = json.loads(done.stdout.strip().splitlines()[-1])
    for seen in (one, two):
        for items in (None, 70):
            for kind in ("ours", "logits"):
                assert seen[f"{kind} {items}"] == pytest.approx(seen[f"theirs {items}"], rel=1e-5)
    data = batch()
    whole, _ = LigerFusedLinearGRPOLoss()(
        data.hidden, data.weight, data.ids, data.mask, data.advantages, data.bias, data.ref,
        data.old,
    )  # fmt: skip
    # The mean over the processes, as DDP takes it, is the loss of the whole batch.
    assert (one["ours None"] + two["ours None"]) / 2 == pytest.approx(whole.item(), rel=1e-6)
    assert one["ours None"] != pytest.approx(two["ours None"], rel=0.1)
