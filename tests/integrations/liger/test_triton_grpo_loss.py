"""triton_grpo_loss against Liger's own, in Triton's interpreter, and against plain torch.

Liger's kernels run here only with TRITON_INTERPRET=1, which test_interpreter.py sets for a process
of its own.
"""

from __future__ import annotations

import inspect
import os

import pytest
import torch

from sec_grpo.integrations.liger import from_logits, triton_grpo_loss

RENAMED = {"epsilon_low": "eps_low", "epsilon_high": "eps_high"}
interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton's interpreter"
)


def call(function, data, settings, *, old="given", ratio=None, **options):
    """What the function returns, and the gradient of three times its loss in the logits."""
    settings = {RENAMED.get(name, name): value for name, value in settings.items()}
    settings.setdefault("eps_high", 0.2)
    logits = data.logits.clone().requires_grad_()
    outputs = function(
        logits, data.old.contiguous() if old == "given" else None, data.ref, data.ids,
        data.advantages, data.mask, inplace=False,
        vllm_is_ratio=None if ratio is None else data.ratios[ratio], **settings, **options,
    )  # fmt: skip
    upstream = 3.0 if outputs[0].dim() == 0 else torch.arange(outputs[0].numel()).float()
    total = outputs[0] * (upstream if outputs[0].dim() == 0 else upstream.view_as(outputs[0]))
    total.sum().backward()
    rest = outputs[1] if isinstance(outputs[1], list) else outputs[1:]
    return [outputs[0], *rest, logits.grad]


def assert_same(ours, others, tolerance=2e-5) -> None:
    assert len(ours) == len(others)
    for one, other in zip(ours, others, strict=True):
        if other is None:
            assert one is None
            continue
        assert one.shape == other.shape
        error = (one.double() - other.double()).abs().max()
        assert error <= tolerance * other.double().abs().max().clamp(min=0.05)


@interpreted
@pytest.mark.parametrize("reduce", [True, False])
def test_it_computes_what_liger_computes(batch, case, reduce) -> None:
    from liger_kernel.transformers.grpo_loss import triton_grpo_loss as theirs

    settings, options = case
    if not reduce:
        options = {name: v for name, v in options.items() if name != "num_items_in_batch"}
    data = batch(torch.float32)
    ours = call(triton_grpo_loss, data, settings, reduce=reduce, **options)
    assert_same(ours, call(theirs, data, settings, reduce=reduce, **options))
    assert ours[-1].abs().max() > 1e-3


@interpreted
def test_the_length_of_the_batch_stands_for_a_missing_max_completion_length(batch) -> None:
    from liger_kernel.transformers.grpo_loss import triton_grpo_loss as theirs

    settings, data = {"loss_type": "dr_grpo"}, batch(torch.float32)
    ours = call(triton_grpo_loss, data, settings, reduce=True)
    assert_same(ours, call(theirs, data, settings, reduce=True))


@interpreted
def test_luspo_weighs_a_sequence_by_its_length(batch) -> None:
    """Liger's Triton function multiplies by the length twice and divides by L instead."""
    from liger_kernel.transformers.grpo_loss import triton_grpo_loss as theirs

    settings = {"loss_type": "luspo", "importance_sampling_level": "sequence", "beta": 0.0}
    full = batch(torch.float32, (9,) * 8)
    ours = call(triton_grpo_loss, full, settings, reduce=True)
    assert_same(ours, call(theirs, full, settings, reduce=True))
    padded = batch(torch.float32)
    values = [call(f, padded, settings, reduce=True)[0] for f in (triton_grpo_loss, theirs)]
    assert abs(values[0] - values[1]) > 1e-2


@interpreted
def test_the_signature_is_liger_s() -> None:
    from liger_kernel.transformers.grpo_loss import triton_grpo_loss as theirs

    ours, others = (
        [(p.name, p.default) for p in inspect.signature(f).parameters.values()]
        for f in (triton_grpo_loss, theirs)
    )
    assert ours == others


def in_plain_torch(data, temperature):
    """Token losses of the clipped objective with KL, from the whole log-softmax."""
    logits = data.logits.clone().requires_grad_()
    logprobs = (logits[:, :-1] / temperature).log_softmax(-1)
    logprobs = logprobs.gather(-1, data.ids[..., None])[..., 0]
    ratio = (logprobs - data.old).exp()
    advantages = data.advantages[:, None]
    loss = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    kl = (data.ref - logprobs).exp() - (data.ref - logprobs) - 1
    return logits, loss + 0.04 * kl, kl


@pytest.mark.parametrize("chunk_bytes", [64 * 2**20, 4 * 31 * 20, 4 * 31 * 4, 1])
@pytest.mark.parametrize("inplace", [True, False])
def test_values_and_gradients_of_plain_torch(batch, monkeypatch, chunk_bytes, inplace) -> None:
    monkeypatch.setattr(from_logits, "_CHUNK_BYTES", chunk_bytes)
    data = batch(torch.float64)
    logits, expected, expected_kl = in_plain_torch(data, 0.7)
    upstream = torch.linspace(-1, 1, data.mask.numel(), dtype=torch.float64).view(data.mask.shape)
    (expected * upstream * data.mask).sum().backward()

    own = data.logits.clone().requires_grad_()
    loss, kl, clipped = triton_grpo_loss(
        own, data.old, data.ref, data.ids, data.advantages, data.mask, temperature=0.7,
        eps_high=0.2, inplace=inplace,
    )  # fmt: skip
    (loss * upstream).sum().backward()
    torch.testing.assert_close(loss, expected * data.mask)
    torch.testing.assert_close(kl, expected_kl * data.mask)
    torch.testing.assert_close(own.grad, logits.grad)
    assert set(clipped.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(own.grad, own.data) == inplace
    assert not own.grad[:, -1].any()


def test_what_padding_holds_does_not_matter(batch) -> None:
    data = batch(torch.float64)
    expected = call(triton_grpo_loss, data, {"loss_type": "grpo"}, reduce=True)
    padding = data.mask == 0
    data.logits[:, :-1][padding] = torch.nan
    data.logits[:, -1] = torch.nan
    data.old[padding], data.ref[padding], data.ids[padding] = torch.nan, torch.nan, -100
    assert_same(call(triton_grpo_loss, data, {"loss_type": "grpo"}, reduce=True), expected, 0.0)


def test_without_a_mask_every_token_counts(batch) -> None:
    data = batch(torch.float64)
    data.mask = torch.ones_like(data.mask)
    expected = call(triton_grpo_loss, data, {"loss_type": "bnpo"}, reduce=True)
    data.mask = None
    assert_same(call(triton_grpo_loss, data, {"loss_type": "bnpo"}, reduce=True), expected, 0.0)


def test_what_is_refused(batch) -> None:
    data = batch(torch.float64)
    with pytest.raises(ValueError, match=r"logits must have shape \(B, L \+ 1, V\).*\(8, 9\)"):
        triton_grpo_loss(data.logits[:, 1:], None, None, data.ids, data.advantages, beta=0.0)
    with pytest.raises(ValueError, match="ref_logprobs must be given with beta=0.04"):
        triton_grpo_loss(data.logits, None, None, data.ids, data.advantages)
    for reduce in (True, False):
        with pytest.raises(ValueError, match="delta must be None with loss_type='sapo'"):
            call(triton_grpo_loss, data, {"loss_type": "sapo", "delta": 2.0}, reduce=reduce)
