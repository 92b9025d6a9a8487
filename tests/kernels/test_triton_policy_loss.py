"""The Triton policy loss against the float64 reference, on a GPU or in the interpreter."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from sec_grpo.kernels import policy_loss as kernel
from sec_grpo.ops import policy_loss

pytestmark = [pytest.mark.gpu] if torch.cuda.is_available() else []

LOSS_TYPES = ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo"]
# Sequences: ordinary, empty, of one token, of more than a block, of exactly a block.
LENGTHS = [5, 0, 1, kernel.BLOCK + 276, kernel.BLOCK]


def make_case(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    num_tokens = sum(LENGTHS)

    def noise(scale: float) -> torch.Tensor:
        return scale * torch.randn(num_tokens, generator=generator)

    # Most probabilities near 1 as in a trained model, some far below.
    logp = -(torch.rand(num_tokens, generator=generator) ** 8) * 120
    return {
        "logp": logp,
        "old": logp + noise(0.3),
        "ref": logp + noise(0.3),
        "mask": torch.rand(num_tokens, generator=generator) > 0.3,
        "advantages": torch.randn(len(LENGTHS), generator=generator),
        "token_advantages": noise(1.0),
        "cu_seqlens": torch.tensor([0, *LENGTHS]).cumsum(0),
    }


def run(device, backend, logp, advantages, dtype=None, upstream=1.0, **kwargs):
    """(loss, gradient, metrics) on the CPU; floats cast to `dtype` if given."""

    def place(value):
        if not isinstance(value, torch.Tensor):
            return value
        value = value.to(device)
        return value.to(dtype) if dtype is not None and value.is_floating_point() else value

    leaf = place(logp).clone().requires_grad_()
    kwargs = {name: place(value) for name, value in kwargs.items()}
    result = policy_loss(leaf, place(advantages), backend=backend, **kwargs)
    (result.loss * upstream).backward()
    metrics = {name: value.cpu() for name, value in result.metrics.items()}
    return result.loss.detach().cpu(), leaf.grad.cpu(), metrics


def assert_matches_truth(device, call, rtol=1e-5):
    """Kernel in float32 against the reference in float64, ratios away from the clip's edges."""
    loss, gradient, metrics = run(device, "triton", **call)
    truth, true_gradient, true_metrics = run("cpu", "torch", dtype=torch.float64, **call)
    assert loss.dtype == torch.float32
    scale = true_gradient.abs().sum()
    assert (loss - truth).abs() <= rtol * torch.maximum(truth.abs(), scale), (loss, truth)
    assert gradient.isfinite().all()
    error = torch.linalg.vector_norm(gradient - true_gradient)
    assert error <= rtol * torch.linalg.vector_norm(true_gradient), error
    assert metrics.keys() == true_metrics.keys()
    for name, value in metrics.items():
        torch.testing.assert_close(
            value.double(), true_metrics[name].double(), rtol=rtol, atol=1e-7, msg=name
        )


@pytest.mark.parametrize(
    ("loss_type", "level"),
    [
        *itertools.product(LOSS_TYPES, ["token", "sequence"]),
        ("luspo", "sequence"),
        ("vespo", "token"),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_every_combination(loss_type, level, masked, triton_device, poisoned_memory):
    case = make_case(0)
    if masked:
        case["logp"][~case["mask"]] = float("nan")
    for i, (off_policy, kl_type) in enumerate(
        itertools.product([False, True], [None, "k1", "k2", "k3"])
    ):
        # Half of the product with per-token advantages: the interpreter takes 0.1 s a call.
        per_token = i in (0, 2, 5, 7)
        call = {
            "logp": case["logp"],
            "advantages": case["token_advantages" if per_token else "advantages"],
            "mask": case["mask"] if masked else None,
            "cu_seqlens": case["cu_seqlens"],
            "old_logprobs": case["old"] if off_policy else None,
            "ref_logprobs": case["ref"] if kl_type else None,
            "loss_type": loss_type,
            "importance_sampling_level": level,
            "epsilon_high": 0.3,
            "delta": 1.5 if off_policy and loss_type not in ("cispo", "sapo", "vespo") else None,
            "beta": 0.1 if kl_type else 0.0,
            "kl_type": kl_type or "k3",
            "max_completion_length": 4000,
            "upstream": -2.5,
        }
        assert_matches_truth(triton_device, call)


@pytest.mark.parametrize("distance", [2.0**-12, -(2.0**-12), 15 / 256, -15 / 256, 0.625])
def test_k3_keeps_its_digits_near_the_reference(distance, triton_device):
    # Distances that float32 holds exactly, on both sides of where the series ends. The first term
    # it leaves out is 4e-6 of the value there.
    logp = torch.full((1, 1), -1.0, device=triton_device, requires_grad=True)
    loss, metrics = policy_loss(
        logp,
        torch.zeros(1, device=triton_device),
        ref_logprobs=torch.full((1, 1), -1.0 + distance, device=triton_device),
        beta=1.0,
        backend="triton",
    )
    loss.backward()
    assert metrics["kl"].item() == pytest.approx(math.expm1(distance) - distance, rel=5e-6)
    assert logp.grad.item() == pytest.approx(-math.expm1(distance), rel=1e-6)


@pytest.mark.parametrize(
    ("loss_type", "level"),
    [
        ("dapo", "token"),
        ("grpo", "sequence"),
        ("cispo", "sequence"),
        ("sapo", "token"),
        ("luspo", "sequence"),
        ("vespo", "token"),
    ],
)
@pytest.mark.parametrize("weights", [None, "token", "sequence"])
def test_corrections(loss_type, level, weights, triton_device, poisoned_memory):
    case = make_case(5)
    generator = torch.Generator().manual_seed(6)
    size = {"token": len(case["logp"]), "sequence": len(LENGTHS), None: 0}[weights]
    # VESPO's weight is a product over the sequence: near 1, so that it is not 0.
    spread = 0.01 if loss_type == "vespo" else 0.5
    case["logp"][~case["mask"]] = float("nan")
    off_policy = case["logp"] - (case["logp"] - case["old"]) * spread
    for with_old, kl_type in ((False, "k3"), (True, "k3"), (True, "k1"), (True, "k2")):
        call = {
            "logp": case["logp"],
            "advantages": case["advantages"],
            "mask": case["mask"],
            "cu_seqlens": case["cu_seqlens"],
            "old_logprobs": off_policy if with_old else None,
            "ref_logprobs": case["ref"],
            "loss_type": loss_type,
            "importance_sampling_level": level,
            "dual_clip": 1.15 if loss_type in ("dapo", "grpo", "luspo") else None,
            "beta": 0.1,
            "kl_type": kl_type,
            "kl_bias_correction": True,
            "is_weights": (
                1 + spread * (torch.rand(size, generator=generator) - 0.5) if weights else None
            ),
            "policy_mask": torch.rand(len(case["logp"]), generator=generator) > 0.2,
            "upstream": -2.5,
        }
        assert_matches_truth(triton_device, call, rtol=3e-5)


@pytest.mark.parametrize("length", [1, 7, 1024, 1100])
def test_padded_rows(length, triton_device, poisoned_memory):
    generator = torch.Generator().manual_seed(length)
    logp = -torch.rand(3, length, generator=generator)
    mask = torch.rand(3, length, generator=generator) > 0.4
    mask[1] = False
    call = {
        "logp": logp.masked_fill(~mask, float("nan")),
        "advantages": torch.tensor([1.0, -1.0, 0.5]),
        "old_logprobs": logp - 0.3 * torch.randn(3, length, generator=generator),
        "loss_type": "grpo",
    }
    for dtype in (torch.bool, torch.int64, torch.uint8):
        assert_matches_truth(triton_device, {**call, "mask": mask.to(dtype)})
    loss, gradient, _ = run(triton_device, "triton", **call, mask=torch.zeros_like(mask))
    assert loss == 0
    assert (gradient == 0).all()


def test_ratio_exactly_one_and_at_the_edges(triton_device):
    logp = torch.tensor([-2.0, -1.0, -0.5, -3.0])
    one = {"cu_seqlens": torch.arange(5), "old_logprobs": logp}
    for epsilon in (0.2, 0.0):
        loss, gradient, metrics = run(
            triton_device,
            "triton",
            logp,
            torch.tensor([1.0, -1.0, 2.0, 0.0]),
            epsilon_low=epsilon,
            epsilon_high=epsilon,
            **one,
        )
        # With epsilon 0 a ratio of 1 is the edge itself, where the gradient still flows.
        assert loss == -0.5
        assert gradient.tolist() == [-0.25, 0.25, -0.5, 0.0]
        assert metrics["clip_ratio/region_mean"] == 0
        assert metrics["ratio/max"] == 1


def test_huge_log_ratios_agree_with_the_reference(triton_device):
    logp = torch.tensor([-1.0, -1.0, -301.0, -150.0, -61.5])
    other = torch.tensor([-301.0, -301.0, -1.0, -1.0, -1.0])
    for kl_type in ("k1", "k2", "k3"):
        call = {
            "logp": logp,
            "advantages": torch.tensor([1.0, 0.0, -1.0, 1.0, -1.0]),
            "cu_seqlens": torch.arange(6),
            "old_logprobs": other,
            "ref_logprobs": other,
            "beta": 0.1,
            "kl_type": kl_type,
        }
        assert_matches_truth(triton_device, call)


def test_a_diverged_policy_shows(triton_device):
    for loss_type, level in itertools.product(["dapo", "cispo"], ["token", "sequence"]):
        logp = torch.tensor([-1.0, float("nan"), -2.0])
        loss, _, _ = run(
            triton_device,
            "triton",
            logp,
            torch.ones(1),
            cu_seqlens=torch.tensor([0, 3]),
            old_logprobs=torch.full((3,), -1.0),
            loss_type=loss_type,
            importance_sampling_level=level,
        )
        assert loss.isnan()


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_micro_batches_add_up_to_the_batch(loss_type, as_tensor, triton_device):
    case = make_case(1)
    kwargs = {"loss_type": loss_type, "max_completion_length": 4000}
    whole, whole_gradient, _ = run(
        triton_device,
        "triton",
        case["logp"],
        case["advantages"],
        cu_seqlens=case["cu_seqlens"],
        old_logprobs=case["old"],
        **kwargs,
    )
    counts = (int(case["cu_seqlens"][-1]), len(LENGTHS))
    items, sequences = (torch.tensor(c) for c in counts) if as_tensor else counts
    total, gradients = 0.0, []
    for first, last in ((0, 2), (2, 3), (3, 5)):
        tokens = slice(int(case["cu_seqlens"][first]), int(case["cu_seqlens"][last]))
        loss, gradient, _ = run(
            triton_device,
            "triton",
            case["logp"][tokens],
            case["advantages"][first:last],
            cu_seqlens=case["cu_seqlens"][first : last + 1] - case["cu_seqlens"][first],
            old_logprobs=case["old"][tokens],
            num_items_in_batch=items,
            num_sequences_in_batch=sequences,
            **kwargs,
        )
        total += loss
        gradients.append(gradient)
    torch.testing.assert_close(total, whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.cat(gradients), whole_gradient, rtol=1e-6, atol=0)


def test_half_precision_logprobs(triton_device):
    case = make_case(2)
    logp, old = case["logp"].half(), case["old"].half()
    call = {"cu_seqlens": case["cu_seqlens"], "old_logprobs": old, "upstream": 1000.0}
    loss, gradient, _ = run(triton_device, "triton", logp, case["advantages"], **call)
    truth, true_gradient, _ = run(
        "cpu", "torch", logp, case["advantages"], dtype=torch.float64, **call
    )
    assert gradient.dtype == torch.float16
    torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=1e-5)
    # One rounding to float16, 2^-11.
    torch.testing.assert_close(gradient.double(), true_gradient, rtol=5e-4, atol=1e-7)


def test_no_gradient_is_written_when_none_is_needed(triton_device):
    case = make_case(3)
    logp, adv = case["logp"].to(triton_device), case["advantages"].to(triton_device)
    cu_seqlens = case["cu_seqlens"].to(triton_device)
    result = policy_loss(logp, adv, cu_seqlens=cu_seqlens, backend="triton")
    assert not result.loss.requires_grad
    expected = policy_loss(case["logp"], case["advantages"], cu_seqlens=case["cu_seqlens"])
    torch.testing.assert_close(result.loss.cpu(), expected.loss, rtol=1e-5, atol=1e-6)


def test_no_sequences(triton_device):
    logp = torch.zeros(0, device=triton_device, requires_grad=True)
    cu_seqlens = torch.zeros(1, dtype=torch.int64, device=triton_device)
    result = policy_loss(logp, logp.detach(), cu_seqlens=cu_seqlens, backend="triton")
    result.loss.backward()
    assert result.loss.item() == 0
    assert logp.grad.shape == (0,)
    assert all(value.item() == 0 for value in result.metrics.values())


def test_float64_is_refused(triton_device):
    logp = torch.zeros(2, dtype=torch.float64, device=triton_device)
    cu_seqlens = torch.tensor([0, 2], device=triton_device)
    with pytest.raises(TypeError, match="must not be float64 with backend='triton'"):
        policy_loss(logp, logp[:1], cu_seqlens=cu_seqlens, backend="triton")
