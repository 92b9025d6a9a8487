"""policy_loss on torch: numbers worked out by hand, and the loop oracle."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from sec_grpo.ops import policy_loss

LOSS_TYPES = ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo"]

# Two sequences; ratios 1.5, 0.5 with A = 1 and 0.5, 1, 3 with A = -1. Per-token losses
#   -min(1.5, 1.2) = -1.2   -min(0.5, 0.8) = -0.5
#   max(0.5, 0.8) = 0.8     1      max(3, 1.2) = 3
LOGP = torch.tensor([-1.0, -2.0, -3.0, -1.0, -2.0])
RATIO = torch.tensor([1.5, 0.5, 0.5, 1.0, 3.0])
OLD = LOGP - RATIO.log()
ADVANTAGES = torch.tensor([1.0, -1.0])
CU_SEQLENS = torch.tensor([0, 2, 5])


def run(logp=LOGP, advantages=ADVANTAGES, cu_seqlens=CU_SEQLENS, **kwargs):
    logp = logp.clone().requires_grad_()
    result = policy_loss(logp, advantages, cu_seqlens=cu_seqlens, backend="torch", **kwargs)
    result.loss.backward()
    return result.loss.item(), logp.grad, result.metrics


@pytest.mark.parametrize(
    ("loss_type", "expected"),
    [
        ("dapo", (-1.7 + 4.8) / 5),
        ("bnpo", (-1.7 + 4.8) / 5),
        ("grpo", (-1.7 / 2 + 4.8 / 3) / 2),
        ("dr_grpo", (-1.7 + 4.8) / (2 * 10)),
    ],
)
def test_loss_types_by_hand(loss_type, expected):
    loss, _, _ = run(old_logprobs=OLD, loss_type=loss_type, max_completion_length=10)
    assert loss == pytest.approx(expected, rel=1e-6)


def test_gradient_and_metrics_by_hand():
    _, gradient, metrics = run(old_logprobs=OLD)
    # -A ratio / 5 where the clip is not active: tokens 0 (high) and 2 (low) are clipped.
    expected = torch.tensor([0.0, -0.5, 0.0, 1.0, 3.0]) / 5
    torch.testing.assert_close(gradient, expected)
    assert metrics["clip_ratio/low_mean"].item() == pytest.approx(1 / 5)
    assert metrics["clip_ratio/high_mean"].item() == pytest.approx(1 / 5)
    assert metrics["clip_ratio/region_mean"].item() == pytest.approx(2 / 5)
    assert metrics["ratio/mean"].item() == pytest.approx(6.5 / 5)
    assert metrics["ratio/max"].item() == pytest.approx(3.0)
    assert metrics["kl"].item() == 0
    assert metrics["num_tokens"].item() == 5
    assert not any(value.requires_grad for value in metrics.values())


@pytest.mark.parametrize("ratios", [[2.0, 3.0, 2.5], [0.5, 0.25, 0.5]])
def test_a_masked_token_is_in_no_statistic_of_the_ratio(ratios):
    # Inside the masked token's ratio is 1, outside the range of the others.
    ratio = torch.tensor([[ratios[0], torch.nan, *ratios[1:]]])
    _, _, metrics = run(
        ratio.log(),
        torch.tensor([1.0]),
        None,
        mask=torch.tensor([[1, 0, 1, 1]]),
        old_logprobs=torch.zeros(1, 4),
    )
    assert metrics["ratio/min"].item() == pytest.approx(min(ratios))
    assert metrics["ratio/max"].item() == pytest.approx(max(ratios))
    assert metrics["ratio/mean"].item() == pytest.approx(sum(ratios) / 3)


def test_two_sided_clip_bounds_a_bad_token():
    # The last token's 3 becomes delta = 2, without gradient.
    loss, gradient, _ = run(old_logprobs=OLD, delta=2.0)
    assert loss == pytest.approx((-1.7 + 3.8) / 5, rel=1e-6)
    torch.testing.assert_close(gradient, torch.tensor([0.0, -0.5, 0.0, 1.0, 0.0]) / 5)


def test_cispo_clamps_the_weight_at_the_raw_epsilon_high():
    # Weights min(ratio, 2): 1.5, 0.5, 0.5, 1, 2. -w A logp: 1.5, 1, -1.5, -1, -4.
    loss, gradient, metrics = run(old_logprobs=OLD, loss_type="cispo", epsilon_high=2.0)
    assert loss == pytest.approx(-4 / 5, rel=1e-6)
    torch.testing.assert_close(gradient, torch.tensor([-1.5, -0.5, 0.5, 1.0, 2.0]) / 5)
    # As TRL counts it: only where A > 0, and there no ratio is above 2.
    assert metrics["clip_ratio/high_mean"].item() == 0
    _, _, metrics = run(old_logprobs=OLD, loss_type="cispo", epsilon_high=1.0)
    assert metrics["clip_ratio/high_mean"].item() == pytest.approx(1 / 5)
    assert metrics["clip_ratio/low_mean"].item() == 0


def test_sapo_by_hand():
    # Temperature 2 where A > 0, 4 where not: x = 1, -1 | -2, 0, 8, gates 2 and 1 x sigmoid(x).
    temperatures = {"sapo_temperature_pos": 2.0, "sapo_temperature_neg": 4.0}
    loss, gradient, metrics = run(old_logprobs=OLD, loss_type="sapo", **temperatures)
    s = torch.tensor([1.0, -1, -2, 0, 8]).sigmoid()
    assert loss == pytest.approx((-(2 * 1) / 2 + (s[2] + s[3] + s[4]).item() / 3) / 2, rel=1e-6)
    weight = torch.tensor([-1 / 4, -1 / 4, 1 / 6, 1 / 6, 1 / 6])
    torch.testing.assert_close(gradient, weight * 4 * s * (1 - s) * RATIO)
    assert metrics["clip_ratio/region_mean"].item() == 0


def test_luspo_sums_over_a_sequence_and_averages_over_sequences():
    # Sequence ratios 1 and 1 with A = 1 and -1: -2 and 3 tokens, over 2 sequences.
    kwargs = {"loss_type": "luspo", "importance_sampling_level": "sequence"}
    loss, gradient, _ = run(old_logprobs=LOGP, **kwargs)
    assert loss == pytest.approx((-2 + 3) / 2)
    torch.testing.assert_close(gradient, torch.tensor([-1.0, -1, 1, 1, 1]) / 2)


def test_gspo_by_hand():
    # log-ratios ln 4 and 0: the sequence's ratio is sqrt(4 * 1) = 2 in both.
    old = torch.tensor([-1.0 - math.log(4), -2.0, -3.0 - math.log(4), -1.0])
    logp = torch.tensor([-1.0, -2.0, -3.0, -1.0])
    loss, gradient, metrics = run(
        logp,
        cu_seqlens=torch.tensor([0, 2, 4]),
        old_logprobs=old,
        importance_sampling_level="sequence",
    )
    # A = 1: -1.2 twice, clipped, no gradient. A = -1: 2 twice; each token moves the ratio by
    # 2 / 2 = 1, which two tokens of weight 1/4 feel: 1/2.
    assert loss == pytest.approx((-2.4 + 4) / 4, rel=1e-6)
    torch.testing.assert_close(gradient, torch.tensor([0.0, 0.0, 0.5, 0.5]))
    assert metrics["ratio/mean"].item() == pytest.approx(2.0)
    assert metrics["clip_ratio/high_mean"].item() == pytest.approx(0.5)


@pytest.mark.parametrize("weighted", [False, True])
def test_gspo_is_gspo_token_where_nothing_is_per_token(weighted, packed_case):
    case = packed_case
    logp = torch.from_numpy(case["logp"]).requires_grad_()
    old, adv = torch.from_numpy(case["old"]), torch.from_numpy(case["advantages"])
    weights = torch.linspace(0.5, 2.0, len(logp), dtype=torch.float64)
    lengths = [length for length in case["lengths"] if length > 0]
    loss, start = 0.0, 0
    for length, a in zip(lengths, adv[torch.tensor(case["lengths"]) > 0], strict=True):
        tokens = slice(start, start := start + length)
        # Every token moves its own copy of the sequence's ratio, as verl has it.
        ratio = (logp[tokens] - old[tokens]).mean().exp().detach()
        ratio = ratio * (logp[tokens] - logp[tokens].detach()).exp()
        objective = torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a)
        loss -= (objective * weights[tokens] if weighted else objective).mean() / len(lengths)
    loss.backward()
    found, gradient, _ = run(
        torch.from_numpy(case["logp"]),
        adv,
        case["cu_seqlens"],
        old_logprobs=old,
        is_weights=weights if weighted else None,
        loss_type="grpo",
        importance_sampling_level="sequence",
        num_sequences_in_batch=len(lengths),
    )
    assert gradient.count_nonzero() > 0
    assert found == pytest.approx(loss.item(), rel=1e-12)
    assert torch.allclose(gradient, logp.grad, rtol=1e-12) is not weighted
    # Weights of tokens only move the gradient from one token of a sequence to another.
    for total in (gradient, logp.grad):
        assert total[:3].sum().item() == pytest.approx(logp.grad[:3].sum().item(), rel=1e-12)
        assert total[4:].sum().item() == pytest.approx(logp.grad[4:].sum().item(), rel=1e-12)


@pytest.mark.parametrize(
    ("kl_type", "value", "slope"),
    [
        # logp - ref = ln 2
        ("k1", math.log(2), 1.0),
        ("k2", math.log(2) ** 2 / 2, math.log(2)),
        ("k3", 0.5 + math.log(2) - 1, 0.5),
    ],
)
def test_kl_by_hand(kl_type, value, slope):
    kwargs = {"ref_logprobs": LOGP - math.log(2), "kl_type": kl_type}
    loss, gradient, metrics = run(advantages=torch.zeros(2), beta=0.5, **kwargs)
    assert loss == pytest.approx(0.5 * value, rel=1e-5)
    torch.testing.assert_close(gradient, torch.full((5,), 0.5 * slope / 5))
    assert metrics["kl"].item() == pytest.approx(value, rel=1e-5)
    # Without beta the estimate is a metric only.
    loss, gradient, metrics = run(advantages=torch.zeros(2), **kwargs)
    assert loss == 0
    assert gradient.tolist() == [0.0] * 5
    assert metrics["kl"].item() == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("distance", [2.0**-12, -(2.0**-12), 2.0**-6, 0.375, -0.625])
def test_k3_keeps_its_digits_near_the_reference(distance):
    # Distances that float32 holds exactly. exp(x) - x - 1 there is off by as much as 6e-8, the
    # value of the first two is 3e-8; half a last digit of expm1(x) is 5e-4 of it.
    logp = torch.full((1, 1), -1.0, requires_grad=True)
    loss, metrics = policy_loss(
        logp, torch.zeros(1), ref_logprobs=torch.tensor([[-1.0 + distance]]), beta=1.0
    )
    loss.backward()
    assert metrics["kl"].item() == pytest.approx(math.expm1(distance) - distance, rel=1e-3)
    # The reference's gradient is autograd's: exact to float32 at 1.
    assert logp.grad.item() == pytest.approx(-math.expm1(distance), abs=1.2e-7)


def test_on_policy_ratio_is_exactly_one_and_its_gradient_flows():
    logp = torch.tensor([-1.0, -1e-7, -321.5, -0.3, -55.0])
    loss, gradient, metrics = run(logp)
    # (-1 - 1 + 1 + 1 + 1) / 5
    assert loss == pytest.approx(0.2, rel=1e-6)
    torch.testing.assert_close(gradient, torch.tensor([-1.0, -1, 1, 1, 1]) / 5)
    assert metrics["ratio/mean"].item() == 1.0
    assert metrics["ratio/max"].item() == 1.0
    assert metrics["clip_ratio/region_mean"].item() == 0.0


@pytest.mark.parametrize(
    ("loss_type", "level"),
    [
        *itertools.product(LOSS_TYPES, ["token", "sequence"]),
        ("luspo", "sequence"),
        ("vespo", "token"),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("per_token", [False, True])
def test_against_the_loop_oracle(loss_type, level, masked, per_token, packed_case, oracle):
    case, (loop_loss, loop_gradient) = packed_case, oracle
    advantages = case["token_advantages"] if per_token else case["advantages"]
    for off_policy, kl_type, delta in itertools.product(
        [False, True], [None, "k1", "k2", "k3"], [None, 1.4]
    ):
        if delta is not None and loss_type in ("cispo", "sapo", "vespo"):
            continue
        shared = {"loss_type": loss_type, "epsilon_high": 0.3, "delta": delta}
        shared.update(beta=0.2 if kl_type else 0.0, kl_type=kl_type or "k3")
        shared["max_completion_length"] = 8
        loop = {
            "mask": case["mask"] if masked else None,
            "old": case["old"] if off_policy else None,
            "ref": case["ref"],
            "level": level,
            **shared,
        }
        args = (case["logp"], advantages, case["lengths"])
        # On-policy, the behaviour policy is this one held constant.
        expected = loop_loss(*args, **loop)
        expected_gradient = loop_gradient(*args, **loop)
        logp = torch.from_numpy(case["logp"]).requires_grad_()
        result = policy_loss(
            logp,
            torch.from_numpy(advantages),
            mask=torch.from_numpy(case["mask"]) if masked else None,
            cu_seqlens=case["cu_seqlens"],
            old_logprobs=torch.from_numpy(case["old"]) if off_policy else None,
            ref_logprobs=torch.from_numpy(case["ref"]),
            importance_sampling_level=level,
            backend="torch",
            **shared,
        )
        result.loss.backward()
        np.testing.assert_allclose(result.loss.item(), expected, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(logp.grad, expected_gradient, rtol=1e-6, atol=1e-8)


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
@pytest.mark.parametrize("off_policy", [False, True])
@pytest.mark.parametrize("weights", [None, "token", "sequence"])
@pytest.mark.parametrize("kept", [None, "token", "sequence"])
def test_corrections_against_the_loop_oracle(
    loss_type, level, off_policy, weights, kept, packed_case, oracle
):
    case, (loop_loss, loop_gradient) = packed_case, oracle
    generator = np.random.default_rng(3)
    sizes = {"token": len(case["logp"]), "sequence": len(case["lengths"])}
    shared = {
        "loss_type": loss_type,
        "epsilon_high": 0.3,
        # Below 1 + epsilon_high, where it differs from delta.
        "dual_clip": 1.1 if loss_type in ("dapo", "grpo", "luspo") else None,
        "beta": 0.3,
        "kl_type": "k3",
        "kl_bias_correction": True,
        "is_weights": None if weights is None else generator.uniform(0.3, 1.5, sizes[weights]),
        "policy_mask": None if kept is None else generator.random(sizes[kept]) < 0.6,
    }
    loop = {
        "mask": case["mask"],
        "old": case["old"] if off_policy else None,
        "ref": case["ref"],
        "level": level,
        **shared,
    }
    args = (case["logp"], case["advantages"], case["lengths"])
    logp = torch.from_numpy(case["logp"]).requires_grad_()
    tensors = {
        name: value if not isinstance(value, np.ndarray) else torch.from_numpy(value)
        for name, value in shared.items()
    }
    result = policy_loss(
        logp,
        torch.from_numpy(case["advantages"]),
        mask=torch.from_numpy(case["mask"]),
        cu_seqlens=case["cu_seqlens"],
        old_logprobs=torch.from_numpy(case["old"]) if off_policy else None,
        ref_logprobs=torch.from_numpy(case["ref"]),
        importance_sampling_level=level,
        backend="torch",
        **tensors,
    )
    result.loss.backward()
    # Weights without float64 of their own are float32 in the mask's product.
    np.testing.assert_allclose(result.loss.item(), loop_loss(*args, **loop), rtol=1e-12)
    expected = loop_gradient(*args, **loop)
    np.testing.assert_allclose(logp.grad, expected, rtol=1e-6, atol=1e-8)


def test_dual_clip_by_hand():
    # Where A < 0 the ratios 0.5, 1, 3 count 0.8, 1 and now 1.1; only the second has a gradient.
    loss, gradient, metrics = run(old_logprobs=OLD, dual_clip=1.1)
    assert loss == pytest.approx((-1.7 + 2.9) / 5, rel=1e-6)
    torch.testing.assert_close(gradient, torch.tensor([0.0, -0.5, 0.0, 1.0, 0.0]) / 5)
    assert metrics["clip_ratio/cap_mean"].item() == pytest.approx(1 / 5)
    assert metrics["ratio/min"].item() == pytest.approx(0.5)


def test_vespo_by_hand():
    # w: 1.5 * 0.5 = 0.75 with k, lambda = 2, 3, and 0.5 * 1 * 3 = 1.5 with 3, 2.
    loss, gradient, metrics = run(old_logprobs=OLD, loss_type="vespo")
    phi = [math.exp(3 - 3 * 0.75) * 0.75**2, math.exp(2 - 2 * 1.5) * 1.5**3]
    assert loss == pytest.approx((phi[0] * 3 - phi[1] * 6) / 5, rel=1e-5)
    expected = torch.tensor([-phi[0], -phi[0], phi[1], phi[1], phi[1]]) / 5
    torch.testing.assert_close(gradient, expected)
    assert metrics["vespo/phi_mean"].item() == pytest.approx((2 * phi[0] + 3 * phi[1]) / 5)
    # On-policy phi is 1: plain policy gradient.
    _, gradient, _ = run(loss_type="vespo")
    torch.testing.assert_close(gradient, torch.tensor([-1.0, -1, 1, 1, 1]) / 5)
    # A weight of 2 for the first sequence: w = 1.5.
    _, gradient, _ = run(old_logprobs=OLD, loss_type="vespo", is_weights=torch.tensor([2.0, 1.0]))
    assert gradient[0].item() == pytest.approx(-math.exp(3 - 4.5) * 1.5**2 / 5)


def test_vespo_stays_finite_far_off_policy():
    for shift in (-1e4, 1e4):
        loss, gradient, _ = run(old_logprobs=LOGP + shift, loss_type="vespo")
        assert math.isfinite(loss)
        assert gradient.isfinite().all()


def test_a_dropped_token_may_have_an_infinite_weight():
    weights = torch.tensor([math.inf, 1.0, 1.0, 1.0, 1.0])
    keep = torch.tensor([False, True, True, True, True])
    loss, gradient, _ = run(old_logprobs=OLD, is_weights=weights, policy_mask=keep)
    assert loss == pytest.approx((-0.5 + 4.8) / 5, rel=1e-6)
    assert gradient[0] == 0


@pytest.mark.parametrize("edge", [0.75, 1.25])
def test_the_gradient_flows_at_the_clip_edge_itself(edge):
    # 0.75 and 1.25 are exact, and so is exp(log_ratio) there for the value asked of float64.
    logp = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    old = torch.full((2,), -math.log(edge), dtype=torch.float64)
    ratio = math.exp(math.log(edge))
    result = policy_loss(
        logp,
        torch.tensor([1.0, -1.0], dtype=torch.float64),
        cu_seqlens=torch.tensor([0, 1, 2]),
        old_logprobs=old,
        epsilon_low=1 - min(ratio, 1.0),
        epsilon_high=max(ratio, 1.0) - 1,
    )
    result.loss.backward()
    torch.testing.assert_close(logp.grad, torch.tensor([-edge, edge], dtype=torch.float64) / 2)
    assert result.metrics["clip_ratio/region_mean"].item() == 0


@pytest.mark.parametrize("kl_type", ["k1", "k3"])
def test_huge_log_ratios_stay_finite(kl_type):
    # exp(300) overflows; with A > 0 the clip must win without 0 * inf in the gradient.
    logp = torch.tensor([-1.0, -1.0, -301.0, -150.0])
    other = torch.tensor([-301.0, -301.0, -1.0, -1.0])
    _, gradient, metrics = run(
        logp,
        torch.tensor([1.0, 0.0, -1.0, 1.0]),
        cu_seqlens=torch.arange(5),
        old_logprobs=other,
        ref_logprobs=other,
        beta=0.1,
        kl_type=kl_type,
    )
    assert gradient.isfinite().all()
    assert metrics["kl"].isfinite()
    loss, gradient, _ = run(
        logp, torch.tensor([1.0, 0, 0, 0]), cu_seqlens=torch.arange(5), old_logprobs=other
    )
    assert loss == pytest.approx(-1.2 / 4)
    assert gradient.tolist() == [0.0] * 4


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("corrected", [False, True])
def test_padded_equals_packed_and_masked_entries_may_be_nan(
    loss_type, level, corrected, packed_case
):
    case = packed_case
    longest = max(case["lengths"])
    mask = torch.arange(longest) < torch.tensor(case["lengths"])[:, None]

    def pad(values):
        rows = torch.full(mask.shape, float("nan"), dtype=torch.float64)
        rows[mask] = torch.from_numpy(values)
        return rows

    kwargs = {
        "loss_type": loss_type,
        "importance_sampling_level": level,
        "beta": 0.1,
        "kl_bias_correction": corrected,
        "max_completion_length": 8,
    }
    advantages = torch.from_numpy(case["advantages"])
    padded = pad(case["logp"]).requires_grad_()
    first = policy_loss(
        padded,
        advantages,
        mask=mask.long(),
        old_logprobs=pad(case["old"]),
        ref_logprobs=pad(case["ref"]),
        **kwargs,
    )
    first.loss.backward()
    packed = torch.from_numpy(case["logp"]).requires_grad_()
    second = policy_loss(
        packed,
        advantages,
        cu_seqlens=case["cu_seqlens"].int(),
        old_logprobs=torch.from_numpy(case["old"]),
        ref_logprobs=torch.from_numpy(case["ref"]),
        **kwargs,
    )
    second.loss.backward()
    torch.testing.assert_close(first.loss, second.loss)
    torch.testing.assert_close(padded.grad[mask], packed.grad)
    assert (padded.grad[~mask] == 0).all()
    for name, value in first.metrics.items():
        torch.testing.assert_close(value, second.metrics[name], msg=name)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_micro_batches_add_up_to_the_batch(loss_type, as_tensor, packed_case):
    case = packed_case
    kwargs = {"loss_type": loss_type, "max_completion_length": 8}
    logp, old = torch.from_numpy(case["logp"]), torch.from_numpy(case["old"])
    advantages, cu_seqlens = torch.from_numpy(case["advantages"]), case["cu_seqlens"]
    whole = policy_loss(logp, advantages, cu_seqlens=cu_seqlens, old_logprobs=old, **kwargs).loss
    counts = (int(cu_seqlens[-1]), len(advantages))
    items, sequences = (torch.tensor(c) for c in counts) if as_tensor else counts
    total = 0.0
    for first, last in ((0, 1), (1, 3), (3, 4)):
        tokens = slice(int(cu_seqlens[first]), int(cu_seqlens[last]))
        total += policy_loss(
            logp[tokens],
            advantages[first:last],
            cu_seqlens=cu_seqlens[first : last + 1] - cu_seqlens[first],
            old_logprobs=old[tokens],
            num_items_in_batch=items,
            num_sequences_in_batch=sequences,
            **kwargs,
        ).loss
    torch.testing.assert_close(total, whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("case", ["all masked", "no tokens", "no sequences"])
def test_nothing_to_learn_from_is_zero(loss_type, level, case):
    sequences = 0 if case == "no sequences" else 2
    tokens = 4 if case == "all masked" else 0
    logp = torch.full((tokens,), float("nan"), requires_grad=True)
    result = policy_loss(
        logp,
        torch.ones(sequences),
        mask=torch.zeros(tokens, dtype=torch.bool),
        cu_seqlens=torch.linspace(0, tokens, sequences + 1).long(),
        loss_type=loss_type,
        importance_sampling_level=level,
        max_completion_length=8,
    )
    result.loss.backward()
    assert result.loss.item() == 0
    assert (logp.grad == 0).all()
    assert all(value.item() == 0 for value in result.metrics.values())


def test_low_precision_logprobs_are_summed_in_float32():
    logp = torch.full((4096,), -1.0, dtype=torch.bfloat16, requires_grad=True)
    result = policy_loss(logp, torch.ones(1), cu_seqlens=torch.tensor([0, 4096]))
    result.loss.backward()
    # bfloat16 sums stall at 256.
    assert result.loss.dtype == torch.float32
    assert result.loss.item() == -1.0
    assert logp.grad.dtype == torch.bfloat16
    assert logp.grad.unique().item() == -(2.0**-12)


def test_only_logprobs_get_a_gradient():
    tensors = {name: torch.zeros(2, requires_grad=True) for name in ("logp", "adv", "old", "ref")}
    policy_loss(
        tensors["logp"],
        tensors["adv"],
        cu_seqlens=torch.arange(3),
        old_logprobs=tensors["old"],
        ref_logprobs=tensors["ref"],
        beta=0.1,
    ).loss.backward()
    assert [name for name, tensor in tensors.items() if tensor.grad is not None] == ["logp"]


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"loss_type": "ppo"}, ValueError, "one of grpo, bnpo, .*, sapo, luspo, vespo, got 'ppo'"),
        ({"loss_type": "luspo"}, ValueError, "must be 'sequence' with loss_type='luspo'"),
        ({"loss_type": "sapo", "delta": 2.0}, ValueError, "it goes with grpo, bnpo, dr_grpo"),
        ({"sapo_temperature_neg": 0.0}, ValueError, "sapo_temperature_neg must be finite, gr"),
        ({"importance_sampling_level": "word"}, ValueError, "one of token, sequence, got 'word'"),
        ({"kl_type": "k4"}, ValueError, "kl_type must be one of k1, k2, k3, got 'k4'"),
        ({"epsilon_low": 1.5}, ValueError, "epsilon_low must be .* at most 1, got 1.5"),
        ({"epsilon_high": float("nan")}, ValueError, "epsilon_high must be finite"),
        ({"delta": 1.1}, ValueError, "delta must be finite, at least 1.2, got 1.1"),
        ({"delta": 2.0, "loss_type": "cispo"}, ValueError, "delta must be None with"),
        ({"beta": 0.1}, ValueError, "ref_logprobs must be given with beta=0.1, got None"),
        ({"loss_type": "dr_grpo"}, ValueError, "max_completion_length must be given"),
        ({"num_items_in_batch": -1}, ValueError, "num_items_in_batch must be finite, at least 0"),
        ({"cu_seqlens": None}, ValueError, r"cu_seqlens \(B \+ 1,\) must come with packed"),
        ({"cu_seqlens": torch.tensor([0, 2, 4])}, ValueError, "must rise from 0 to the 5 packed"),
        ({"cu_seqlens": torch.tensor([0, 6, 5])}, ValueError, r"got \[0, 6, 5\]"),
        ({"mask": torch.ones(5)}, TypeError, "mask must have dtype bool, .* got torch.float32"),
        ({"mask": torch.ones(4).bool()}, ValueError, r"mask must have shape \(5,\)"),
        ({"old_logprobs": torch.ones(4)}, ValueError, r"old_logprobs must have shape \(5,\)"),
        ({"advantages": torch.ones(3)}, ValueError, r"\(2,\) \(one per sequence\) or \(5,\)"),
        ({"backend": "cuda"}, ValueError, "backend must be 'auto', 'triton' or 'torch', got"),
    ],
)
def test_errors_name_the_argument(kwargs, error, message):
    call = {"logprobs": LOGP, "advantages": ADVANTAGES, "cu_seqlens": CU_SEQLENS, **kwargs}
    with pytest.raises(error, match=message):
        policy_loss(**call)


def test_cpu_tensors_need_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(
        ValueError, match=r"needs CUDA or ROCm tensors, got device cpu; .*INTERPRET"
    ):
        policy_loss(LOGP, ADVANTAGES, cu_seqlens=CU_SEQLENS, backend="triton")
