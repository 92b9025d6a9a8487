"""An lm_head under LoRA: the merged weight that docs/kernels.md says to pass."""

from __future__ import annotations

import pytest
import torch

from sec_grpo.ops import linear_logprob

peft = pytest.importorskip("peft", reason="LoRA comes with the extra 'peft'")


def test_the_merged_weight_gives_the_adapter_its_gradients():
    torch.manual_seed(0)
    model = torch.nn.Sequential()
    model.add_module("lm_head", torch.nn.Linear(16, 40, bias=False))
    config = peft.LoraConfig(target_modules=["lm_head"], r=3, lora_alpha=5, init_lora_weights=False)
    head = peft.get_peft_model(model, config).base_model.model.lm_head
    hidden, targets = torch.randn(7, 16), torch.randint(40, (7,))
    adapter = [head.lora_A.default.weight, head.lora_B.default.weight]

    merged = head.weight + head.get_delta_weight("default")
    ours = linear_logprob(hidden, merged, targets)
    logits = head(hidden)
    plain = torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(ours, plain)
    # peft's layer shows the weight without its adapter, which is another model.
    assert (linear_logprob(hidden, head.weight, targets) - plain).abs().max() > 0.1

    for a, b in zip(
        torch.autograd.grad(ours.sum(), adapter),
        torch.autograd.grad(plain.sum(), adapter),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
