"""Prints what ours and Liger's class compute on this process's half of a batch."""

import importlib.util
import json
from pathlib import Path

import torch
from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss as Theirs

from sec_grpo.integrations.liger import LigerFusedLinearGRPOLoss, triton_grpo_loss

spec = importlib.util.spec_from_file_location("data", Path(__file__).with_name("conftest.py"))
common = importlib.util.module_from_spec(spec)
spec.loader.exec_module(common)

torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
data = common.make_batch()
half = slice(4 * rank, 4 * rank + 4)
found = {}
for items in (None, 70):
    for name, loss in (
        ("ours", LigerFusedLinearGRPOLoss()),
        ("theirs", Theirs(compiled=False)),
    ):
        found[f"{name} {items}"] = loss(
            data.hidden[half], data.weight, data.ids[half], data.mask[half], data.advantages[half],
            data.bias, data.ref[half], data.old[half], num_items_in_batch=items,
        )[0].item()  # fmt: skip
    found[f"logits {items}"] = triton_grpo_loss(
        data.logits[half].clone(), data.old[half], data.ref[half], data.ids[half],
        data.advantages[half], data.mask[half], temperature=1.0, eps_high=0.2, reduce=True,
        num_items_in_batch=items,
    )[0].item()  # fmt: skip
everything = [None, None]
torch.distributed.all_gather_object(everything, found)
if rank == 0:
    print(json.dumps(everything))
torch.distributed.barrier()
torch.distributed.destroy_process_group()
