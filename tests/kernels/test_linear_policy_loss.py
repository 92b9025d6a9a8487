"""linear_policy_loss: that it is policy_loss of linear_logprob, in both layouts."""

from __future__ import annotations

import pytest
import torch

from sec_grpo.kernels import reference
from sec_grpo.kernels.reference import Denominators, PolicyInputs, PolicyLossSpec
from sec_grpo.ops import linear_logprob, linear_policy_loss, policy_loss

LOSS_TYPES = ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo"]
LENGTHS = torch.tensor([4, 0, 1, 6])
CU_SEQLENS = torch.tensor([0, 4, 4, 5, 11])
ADVANTAGES = torch.tensor([1.0, 3.0, -0.5, -1.0], dtype=torch.float64)


def make_case():
    generator = torch.Generator().manual_seed(11)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "hidden": normal(11, 5),
        "weight": normal(23, 5),
        "bias": normal(23),
        "targets": torch.randint(0, 23, (11,), generator=generator),
        "noise": normal(11) * 0.3,
        "mask": torch.rand(11, generator=generator) < 0.7,
    }


def leaves_of(case):
    return [case[name].clone().requires_grad_() for name in ("hidden", "weight", "bias")]


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("entropy_coef", [0.0, 0.1])
@pytest.mark.parametrize("memory_mode", ["fast", "low"])
def test_matches_the_full_logits_reference(loss_type, level, masked, entropy_coef, memory_mode):
    if level == "sequence" and memory_mode == "fast":
        memory_mode = "auto"
    case = make_case()
    mask = case["mask"] if masked else torch.ones(11, dtype=torch.bool)
    with torch.no_grad():
        old = linear_logprob(case["hidden"], case["weight"], case["targets"]) + case["noise"]
    head = {"temperature": 0.8, "softcap": 6.0}
    options = {"loss_type": loss_type, "importance_sampling_level": level, "beta": 0.2}
    first, second = leaves_of(case), leaves_of(case)
    result = linear_policy_loss(
        first[0],
        first[1],
        case["targets"],
        ADVANTAGES,
        bias=first[2],
        mask=mask if masked else None,
        cu_seqlens=CU_SEQLENS,
        old_logprobs=old,
        ref_logprobs=old,
        max_completion_length=9,
        entropy_coef=entropy_coef,
        chunk_size=4,
        memory_mode=memory_mode,
        **head,
        **options,
    )
    seq_index = torch.repeat_interleave(LENGTHS)
    loss, logp, entropy, metrics = reference.linear_policy_loss(
        second[0],
        second[1],
        case["targets"],
        PolicyInputs(ADVANTAGES[seq_index], mask, seq_index, 4, old, old),
        PolicyLossSpec(**options),
        Denominators(max_completion_length=9),
        bias=second[2],
        entropy_coef=entropy_coef,
        **head,
    )
    result.loss.backward()
    loss.backward()
    torch.testing.assert_close(result.loss, loss)
    torch.testing.assert_close(result.logprobs, torch.where(mask, logp, 0.0))
    torch.testing.assert_close(result.entropy, torch.where(mask, entropy, 0.0))
    assert result.metrics.keys() == metrics.keys()
    for name, value in metrics.items():
        torch.testing.assert_close(result.metrics[name], value, msg=name)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (0, 1), (0, 1, 2)])
def test_fast_gradients_are_those_of_low(dtype, needed):
    case = make_case()
    tensors = [case[name].to(dtype) for name in ("hidden", "weight", "bias")]
    bias = tensors[2]
    # A banned token, and rows without a gradient: advantage 0, and clipped.
    bias[22] = -torch.inf
    targets = case["targets"].clamp(max=21)
    advantages = torch.tensor([1.0, 3.0, 0.0, -1.0])
    old = linear_logprob(tensors[0], tensors[1], targets, bias=bias) - case["noise"].float()
    found = []
    for memory_mode in ("fast", "low"):
        leaves = [t.clone().requires_grad_(i in needed) for i, t in enumerate(tensors)]
        result = linear_policy_loss(
            leaves[0],
            leaves[1],
            targets,
            advantages,
            bias=leaves[2],
            cu_seqlens=CU_SEQLENS,
            old_logprobs=old,
            chunk_size=3,
            memory_mode=memory_mode,
        )
        # A loss scale as a float16 run has it, and a graph kept for a second backward.
        (result.loss * 1024).backward(retain_graph=True)
        first = [None if t.grad is None else t.grad.clone() for t in leaves]
        (result.loss * 1024).backward()
        for leaf, gradient in zip(leaves, first, strict=True):
            assert (leaf.grad is None) == (gradient is None)
            if gradient is not None:
                assert leaf.grad.dtype == dtype
                torch.testing.assert_close(leaf.grad, 2 * gradient)
        found.append((result, first))
    (fast, fast_gradients), (low, low_gradients) = found
    torch.testing.assert_close(fast.loss, low.loss)
    torch.testing.assert_close(fast.logprobs, low.logprobs)
    torch.testing.assert_close(fast.entropy, low.entropy)
    for i, (a, b) in enumerate(zip(fast_gradients, low_gradients, strict=True)):
        assert (a is not None) == (i in needed)
        if a is not None:
            torch.testing.assert_close(a, b)


def test_fast_without_gradients_is_the_same_call():
    case = make_case()
    args = (case["hidden"], case["weight"], case["targets"], ADVANTAGES)
    plain = linear_policy_loss(*args, cu_seqlens=CU_SEQLENS, memory_mode="fast")
    with torch.no_grad():
        leaf = case["hidden"].clone().requires_grad_()
        untracked = linear_policy_loss(leaf, *args[1:], cu_seqlens=CU_SEQLENS)
    assert plain.loss == untracked.loss
    assert not plain.loss.requires_grad
    assert not untracked.loss.requires_grad


@pytest.mark.parametrize("loss_type", [*LOSS_TYPES, "vespo"])
@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_skipping_dead_sequences_changes_no_gradient(loss_type, per_token, masked):
    case = make_case()
    advantages = torch.tensor([1.0, 3.0, -0.5, 0.0], dtype=torch.float64)
    if per_token:
        advantages = advantages[torch.repeat_interleave(LENGTHS)]
        advantages[1] = 0.0  # a token of a live sequence
    first, second = leaves_of(case), leaves_of(case)
    results = []
    for leaves, skip_dead in ((first, False), (second, True)):
        result = linear_policy_loss(
            leaves[0],
            leaves[1],
            case["targets"],
            advantages,
            bias=leaves[2],
            mask=case["mask"] if masked else None,
            cu_seqlens=CU_SEQLENS,
            loss_type=loss_type,
            max_completion_length=9,
            skip_dead=skip_dead,
        )
        result.loss.backward()
        results.append(result)
    kept, skipped = results
    torch.testing.assert_close(kept.loss, skipped.loss)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    assert (skipped.logprobs[5:] == 0).all()
    torch.testing.assert_close(skipped.logprobs[:5], kept.logprobs[:5])
    live = case["mask"][:5].sum() if masked else 5
    assert skipped.metrics["num_tokens"] == live


def test_dead_sequences_stay_where_they_have_a_gradient():
    case = make_case()
    args = (case["hidden"], case["weight"], case["targets"], torch.zeros(4))
    with_bonus = linear_policy_loss(*args, cu_seqlens=CU_SEQLENS, entropy_coef=0.1, skip_dead=True)
    assert with_bonus.metrics["num_tokens"] == 11
    all_dead = linear_policy_loss(*args, cu_seqlens=CU_SEQLENS, skip_dead=True)
    assert all_dead.loss == 0
    assert all_dead.metrics["num_tokens"] == 0


@pytest.mark.parametrize(
    "kwargs",
    [
        {"importance_sampling_level": "sequence"},
        {"loss_type": "vespo"},
        {"off_policy_threshold": 1.0},
        {"top_entropy_quantile": 0.5},
    ],
)
def test_fast_refuses_what_needs_other_tokens(kwargs):
    with pytest.raises(ValueError, match="memory_mode must be 'auto' or 'low'"):
        linear_policy_loss(
            torch.ones(2, 3),
            torch.ones(4, 3),
            torch.tensor([0, 1]),
            torch.ones(1),
            cu_seqlens=torch.tensor([0, 2]),
            memory_mode="fast",
            **kwargs,
        )


def test_entropy_bonus_by_hand():
    # A uniform head over 4 tokens: entropy ln 4, log-probability -ln 4; two tokens, mean weights.
    hidden, weight = torch.ones(2, 3), torch.zeros(4, 3)
    kwargs = {"cu_seqlens": torch.tensor([0, 2])}
    result = linear_policy_loss(
        hidden, weight, torch.tensor([0, 3]), torch.zeros(1), entropy_coef=0.5, **kwargs
    )
    ln4 = torch.tensor(4.0).log()
    torch.testing.assert_close(result.loss, -0.5 * ln4)
    torch.testing.assert_close(result.metrics["entropy"], ln4)
    torch.testing.assert_close(result.logprobs, -ln4.expand(2))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("per_token", [False, True])
def test_padded_equals_packed_and_masked_rows_may_be_nan(loss_type, per_token):
    case = make_case()
    mask = torch.arange(6) < LENGTHS[:, None]

    def pad(values, fill):
        rows = torch.full((*mask.shape, *values.shape[1:]), fill, dtype=values.dtype)
        rows[mask] = values
        return rows

    token_advantages = case["noise"].flip(0)
    options = {"loss_type": loss_type, "max_completion_length": 9, "entropy_coef": 0.05}
    old = case["noise"] - 3
    packed, padded = leaves_of(case), leaves_of(case)
    first = linear_policy_loss(
        packed[0],
        packed[1],
        case["targets"],
        token_advantages if per_token else ADVANTAGES,
        cu_seqlens=CU_SEQLENS,
        bias=packed[2],
        temperature=torch.linspace(0.5, 2, 11),
        old_logprobs=old,
        **options,
    )
    wide = pad(case["hidden"], float("nan")).requires_grad_()
    second = linear_policy_loss(
        wide,
        padded[1],
        pad(case["targets"], 0),
        pad(token_advantages, 7.0) if per_token else ADVANTAGES,
        mask=mask.int(),
        bias=padded[2],
        temperature=pad(torch.linspace(0.5, 2, 11), 1.0),
        old_logprobs=pad(old, float("nan")),
        **options,
    )
    first.loss.backward()
    second.loss.backward()
    torch.testing.assert_close(first.loss, second.loss)
    torch.testing.assert_close(first.logprobs, second.logprobs[mask])
    assert second.logprobs.shape == (4, 6)
    assert (second.logprobs[~mask] == 0).all()
    assert (second.entropy[~mask] == 0).all()
    torch.testing.assert_close(packed[0].grad, wide.grad[mask])
    assert (wide.grad[~mask] == 0).all()
    for a, b in zip(packed[1:], padded[1:], strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("loss_type", [*LOSS_TYPES, "luspo"])
def test_micro_batches_add_up_with_a_dead_sequence_left_out(loss_type):
    case = make_case()
    advantages = ADVANTAGES.clone()
    advantages[2] = 0.0
    options = {"loss_type": loss_type, "max_completion_length": 9}
    if loss_type == "luspo":
        options["importance_sampling_level"] = "sequence"
    whole, parts = leaves_of(case), leaves_of(case)
    expected = linear_policy_loss(
        *whole[:2], case["targets"], advantages, bias=whole[2], cu_seqlens=CU_SEQLENS, **options
    ).loss
    expected.backward()
    total = 0.0
    # Sequence 2, token 4, is dead: it counts in the denominators alone.
    for tokens, rows in ((slice(0, 4), [0, 1]), (slice(5, 11), [3])):
        lengths = LENGTHS[rows]
        loss = linear_policy_loss(
            parts[0][tokens],
            parts[1],
            case["targets"][tokens],
            advantages[rows],
            bias=parts[2],
            cu_seqlens=torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]),
            num_items_in_batch=11,
            num_sequences_in_batch=4,
            **options,
        ).loss
        loss.backward()
        total += loss.detach()
    torch.testing.assert_close(total, expected.detach())
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_is_the_composition_of_the_other_two():
    case = make_case()
    logp = linear_logprob(case["hidden"], case["weight"], case["targets"])
    expected = policy_loss(logp, ADVANTAGES, cu_seqlens=CU_SEQLENS)
    result = linear_policy_loss(
        case["hidden"], case["weight"], case["targets"], ADVANTAGES, cu_seqlens=CU_SEQLENS
    )
    torch.testing.assert_close(result.loss, expected.loss)
    assert not result.logprobs.requires_grad
    assert not result.entropy.requires_grad


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("entropy_coef", [0.0, 0.1])
def test_all_masked_is_zero_with_zero_gradients(loss_type, entropy_coef):
    hidden = torch.full((2, 3, 5), float("nan"), requires_grad=True)
    weight = torch.ones(7, 5, requires_grad=True)
    result = linear_policy_loss(
        hidden,
        weight,
        torch.zeros(2, 3, dtype=torch.long),
        torch.ones(2),
        mask=torch.zeros(2, 3, dtype=torch.bool),
        loss_type=loss_type,
        max_completion_length=9,
        entropy_coef=entropy_coef,
    )
    result.loss.backward()
    assert result.loss.item() == 0
    assert (hidden.grad == 0).all()
    assert (weight.grad == 0).all()
    assert all(value.item() == 0 for value in result.metrics.values())


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"backend": "triton"}, TypeError, "hidden must not be float64 with backend='triton'"),
        ({"cu_seqlens": None}, ValueError, r"must come with packed targets of shape \(11,\)"),
        ({"hidden": torch.zeros(10, 5)}, ValueError, r"hidden must have shape \(11, 5\)"),
        ({"entropy_coef": -0.1}, ValueError, "entropy_coef must be finite, at least 0, got -0.1"),
        ({"temperature": torch.ones(4)}, ValueError, r"temperature must have shape \(11,\)"),
        ({"loss_type": "ppo"}, ValueError, "loss_type must be one of grpo, bnpo"),
    ],
)
def test_errors_name_the_argument(kwargs, error, message):
    case = make_case()
    call = {name: case[name] for name in ("hidden", "weight", "targets")}
    call.update(advantages=ADVANTAGES, cu_seqlens=CU_SEQLENS)
    with pytest.raises(error, match=message):
        linear_policy_loss(**{**call, **kwargs})


@pytest.mark.parametrize("loss_type", ["dapo", "cispo", "sapo"])
@pytest.mark.parametrize("memory_mode", ["fast", "low"])
def test_nan_of_the_loss_shows_in_its_gradient(loss_type, memory_mode, rows_of_nan_gradient):
    for name, rows in {
        "advantages": [6, 7, 8, 9, 10, 11],
        "old_logprobs": [8],
        "ref_logprobs": [8],
    }.items():
        found = rows_of_nan_gradient(name, loss_type, memory_mode, "torch", "cpu")
        assert found == rows, name
