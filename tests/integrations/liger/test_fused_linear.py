"""LigerFusedLinearGRPOLoss against Liger's own class, on the CPU."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
import torch

from sec_grpo.integrations.liger import LigerFusedLinearGRPOLoss

theirs = pytest.importorskip(
    "liger_kernel.chunked_loss", reason="needs liger-kernel"
).LigerFusedLinearGRPOLoss


def call(kind, batch, settings, *, old="given", ref="given", ratio=None, **options):
    """Loss, metrics and the gradients of three times the loss."""
    own = {} if kind is LigerFusedLinearGRPOLoss else {"compiled": False}
    loss = kind(**{"chunk_size": 2, **settings, **own})
    leaves = [t.clone().requires_grad_() for t in (batch.hidden, batch.weight, batch.bias)]
    value, metrics = loss(
        leaves[0], leaves[1], batch.ids, batch.mask, batch.advantages, leaves[2],
        ref_per_token_logps=batch.ref if ref == "given" else None,
        old_per_token_logps=batch.old if old == "given" else None,
        vllm_is_ratio=None if ratio is None else batch.ratios[ratio],
        **options,
    )  # fmt: skip
    return value, metrics, torch.autograd.grad(3 * value, leaves)


def assert_same(ours, others, tolerance=2e-5) -> None:
    """Float32 accumulators on their side: relative to the largest entry."""
    assert len(ours[1]) == len(others[1])
    pairs = [(ours[0], others[0]), *zip(ours[1], others[1], strict=True)]
    for one, other in [*pairs, *zip(ours[2], others[2], strict=True)]:
        assert one.shape == other.shape
        error = (one.double() - other.double()).abs().max()
        assert error <= tolerance * other.double().abs().max().clamp(min=0.05)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_computes_what_liger_computes(batch, case, dtype) -> None:
    settings, options = case
    ours = call(LigerFusedLinearGRPOLoss, batch(dtype), settings, **options)
    others = call(theirs, batch(dtype), settings, **options)
    assert_same(ours, others)
    assert all(gradient.abs().max() > 1e-3 for gradient in ours[2])
    assert ours[1][-1] > 0 or settings["loss_type"] in ("sapo", "vespo") or "old" in options


def test_clips_and_caps_are_met(batch) -> None:
    """The cases would show nothing if every ratio were inside the bounds."""
    inside = call(LigerFusedLinearGRPOLoss, batch(), {"loss_type": "grpo"})
    for changed in ({"epsilon_low": 0.4}, {"epsilon_high": 0.4}, {"delta": 1.3}):
        other = call(LigerFusedLinearGRPOLoss, batch(), {"loss_type": "grpo", **changed})
        assert abs(other[0] - inside[0]) > 1e-4, changed


def test_a_reference_from_its_hidden_states(batch) -> None:
    data = batch()
    reference = {
        "ref_input": data.hidden.flip(0), "ref_weight": data.weight.flip(0), "ref_bias": data.bias
    }  # fmt: skip
    settings = {"loss_type": "grpo", "beta": 0.1, "temperature": 1.3}
    ours = call(LigerFusedLinearGRPOLoss, data, settings, ref=None, **reference)
    others = call(theirs, data, settings, ref=None, **reference)
    assert_same(ours, others)
    assert ours[1][0] > 0.1


def test_without_a_reference_model_the_kl_is_0(batch) -> None:
    settings = {"loss_type": "grpo", "beta": 0.1, "use_ref_model": False}
    ours = call(LigerFusedLinearGRPOLoss, batch(), settings)
    assert_same(ours, call(theirs, batch(), settings))
    assert ours[1][0] == 0


def test_bfloat16_under_a_frozen_float32_head(batch) -> None:
    """No further from float64 than Liger, whose logits are rounded to bfloat16 on the way."""

    def run(kind, dtype):
        data = batch(torch.bfloat16)
        own = {} if kind is LigerFusedLinearGRPOLoss else {"compiled": False}
        hidden = data.hidden.to(dtype).requires_grad_()
        loss, _ = kind(loss_type="grpo", **own)(
            hidden, data.weight.to(torch.promote_types(dtype, torch.float32)), data.ids, data.mask,
            data.advantages, ref_per_token_logps=data.ref, old_per_token_logps=data.old,
        )  # fmt: skip
        loss.backward()
        assert hidden.grad.dtype == dtype
        return loss.detach().double(), hidden.grad.double()

    truth = run(LigerFusedLinearGRPOLoss, torch.float64)
    ours = run(LigerFusedLinearGRPOLoss, torch.bfloat16)
    others = run(theirs, torch.bfloat16)
    for one, other, expected in zip(ours, others, truth, strict=True):
        error = torch.linalg.vector_norm(one - expected)
        assert error <= torch.linalg.vector_norm(other - expected) + 1e-6
        assert error < 0.02 * torch.linalg.vector_norm(expected)


def test_luspo_agrees_where_there_is_no_padding(batch) -> None:
    settings = {
        "loss_type": "luspo", "importance_sampling_level": "sequence", "beta": 0.3
    }  # fmt: skip
    full = batch(lengths=(9,) * 8)
    ours = call(LigerFusedLinearGRPOLoss, full, settings)
    assert_same(ours, call(theirs, full, settings))
    # With padding they agree without KL; Liger's mean of the KL is over padding as well.
    without = {**settings, "beta": 0.0}
    assert_same(call(LigerFusedLinearGRPOLoss, batch(), without), call(theirs, batch(), without))
    kl = [call(kind, batch(), settings)[0] for kind in (LigerFusedLinearGRPOLoss, theirs)]
    assert abs(kl[0] - kl[1]) > 1e-3
    with pytest.raises(ValueError, match="importance_sampling_level must be 'sequence'"):
        call(LigerFusedLinearGRPOLoss, full, {"loss_type": "luspo"})


@pytest.mark.parametrize("loss_type", ["cispo", "sapo"])
def test_at_the_sequence_level_they_take_the_sequence_s_ratio(batch, loss_type) -> None:
    """As in TRL; Liger refuses them."""
    data = batch()
    settings = {
        "loss_type": loss_type, "importance_sampling_level": "sequence", "beta": 0.0,
        "epsilon_high": 1.3,
    }  # fmt: skip
    found, _, gradients = call(LigerFusedLinearGRPOLoss, data, settings)
    leaves = [t.clone().requires_grad_() for t in (data.hidden, data.weight, data.bias)]
    logits = torch.nn.functional.linear(*leaves)
    logprobs = logits.log_softmax(-1).gather(-1, data.ids[..., None])[..., 0]
    lengths = data.mask.sum(1).clamp(min=1)
    ratio = (((logprobs - data.old) * data.mask).sum(1) / lengths).exp()[:, None]
    advantages = data.advantages[:, None]
    if loss_type == "cispo":
        tokens = -ratio.clamp(max=1.3).detach() * advantages * logprobs
        expected = (tokens * data.mask).sum() / data.mask.sum()
    else:
        scale = torch.where(advantages > 0, 1.0, 1.05)
        tokens = -torch.sigmoid(scale * (ratio - 1)) * 4 / scale * advantages * data.mask
        expected = (tokens.sum(1) / lengths).mean()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    for one, other in zip(gradients, torch.autograd.grad(3 * expected, leaves), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)
    with pytest.raises(ValueError, match="is not supported for loss_type"):
        call(theirs, data, settings)


def test_vespo_leaves_the_ratios_of_padding_out(batch) -> None:
    settings, data = {"loss_type": "vespo"}, batch()
    ours = call(LigerFusedLinearGRPOLoss, data, settings, ratio="token")
    with_padding = call(theirs, data, settings, ratio="token")
    assert abs(ours[0] - with_padding[0]) > 1e-4
    data.ratios["token"] = torch.where(data.mask != 0, data.ratios["token"], 1.0)
    assert_same(ours, call(theirs, data, settings, ratio="token"))


def test_what_padding_holds_does_not_matter(batch) -> None:
    """Liger multiplies padding by 0, so that a NaN there is a NaN in the loss."""
    data, settings = batch(), {"loss_type": "grpo"}
    expected = call(LigerFusedLinearGRPOLoss, data, settings)
    padding = data.mask == 0
    data.hidden[padding] = torch.nan
    data.old[padding], data.ref[padding], data.ids[padding] = torch.nan, torch.nan, -100
    assert_same(call(LigerFusedLinearGRPOLoss, data, settings), expected, 1e-12)
    data.ids[padding] = 0
    assert torch.isnan(call(theirs, data, settings)[0])


def test_a_ratio_past_exp_60_has_no_gradient(batch) -> None:
    data, settings = batch(torch.float32), {"loss_type": "grpo", "beta": 0.1}
    data.old[0, 0], data.ref[1, 1] = -1000.0, 200.0
    loss, _, gradients = call(LigerFusedLinearGRPOLoss, data, settings)
    assert torch.isfinite(loss)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert not torch.isfinite(call(theirs, data, settings)[0])


def test_what_is_refused(batch) -> None:
    data = batch()
    for match, settings, options in (
        ("ref_per_token_logps or ref_input", {}, {"ref": None}),
        ("max_completion_length must be given", {"loss_type": "dr_grpo"}, {}),
        ("delta must be None with loss_type='cispo'", {"loss_type": "cispo", "delta": 2.0}, {}),
        ("delta must be", {"delta": 1.1}, {}),
        ("loss_type must be one of", {"loss_type": "ppo"}, {}),
    ):
        with pytest.raises(ValueError, match=match):
            call(LigerFusedLinearGRPOLoss, data, settings, **options)
    data.ratios["token"] = data.ratios["token"][:, :2]
    with pytest.raises(ValueError, match=r"vllm_is_ratio must have shape \(8,\), .* got \(8, 2\)"):
        call(LigerFusedLinearGRPOLoss, data, {}, ratio="token")
    data.mask = data.mask[:, :2]
    with pytest.raises(ValueError, match=r"attention_mask must have shape \(8, 9\), got \(8, 2\)"):
        call(LigerFusedLinearGRPOLoss, data, {})


def test_the_signatures_are_liger_s() -> None:
    for method in ("__init__", "forward"):
        ours, others = (
            inspect.signature(getattr(kind, method)).parameters.values()
            for kind in (LigerFusedLinearGRPOLoss, theirs)
        )
        assert [(p.name, p.default) for p in ours] == [(p.name, p.default) for p in others]


def test_liger_is_not_imported() -> None:
    script = "import sec_grpo.integrations.liger, sys; print('liger_kernel' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
