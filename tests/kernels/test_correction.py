"""Rollout correction: weights and masks, by hand and beside numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sec_grpo.ops import (
    linear_logprob,
    linear_policy_loss,
    off_policy_mask,
    policy_loss,
    rollout_weights,
    top_entropy_mask,
)

# Two sequences of 2 and 3 tokens; the weights are 2, 1/4 | 1, 8, 1 (not scored).
CU_SEQLENS = torch.tensor([0, 2, 5])
OLD = torch.tensor([-1.0, -2.0, -0.5, -1.0, -3.0])
RATIO = torch.tensor([2.0, 0.25, 1.0, 8.0, math.nan])
SAMPLING = OLD - RATIO.log()


@pytest.mark.parametrize(
    ("mode", "bounds", "expected"),
    [
        ("token_truncate", {}, [2, 0.25, 1, 3, 1]),
        ("token_truncate", {"clip_min": 0.5}, [2, 0.5, 1, 3, 1]),
        ("token_truncate", {"clip_max": None, "clip_min": 0.5}, [2, 0.5, 1, 8, 1]),
        ("token_truncate", {"clip_max": None}, [2, 0.25, 1, 8, 1]),
        ("token_mask", {}, [2, 0.25, 1, 0, 1]),
        ("token_mask", {"clip_min": 0.5, "clip_max": 10.0}, [2, 0, 1, 8, 1]),
        ("sequence_truncate", {}, [0.5, 3]),
        ("sequence_mask", {}, [0.5, 0]),
        ("sequence_mask", {"clip_max": None, "clip_min": 0.6}, [0, 8]),
    ],
)
def test_rollout_weights_by_hand(mode, bounds, expected):
    weights = rollout_weights(OLD, SAMPLING, cu_seqlens=CU_SEQLENS, mode=mode, **bounds)
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float32))


def test_rollout_weights_of_padded_rows_ignore_masked_tokens():
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    old = torch.full((2, 3), -1.0)
    old[0, 2] = math.nan
    sampling = old - torch.tensor([[2.0, 0.25, 9.0], [1.0, 8.0, 1.0]]).log()
    weights = rollout_weights(old, sampling, mask=mask)
    torch.testing.assert_close(weights, torch.tensor([[2.0, 0.25, 1.0], [1.0, 3.0, 1.0]]))
    weights = rollout_weights(old, sampling, mask=mask, mode="sequence_truncate")
    torch.testing.assert_close(weights, torch.tensor([0.5, 3.0]))


def test_rollout_weights_never_overflow():
    weights = rollout_weights(
        torch.zeros(2), torch.tensor([-1e4, 1e4]), cu_seqlens=torch.tensor([0, 2]), clip_max=None
    )
    assert weights.isfinite().all()
    assert weights[1] == 0


def test_off_policy_mask_by_hand():
    # Means of sampling - old: -ln(2 * 0.25) / 2 = 0.347 and -ln(8) / 3 = -0.69.
    kwargs = {"cu_seqlens": CU_SEQLENS}
    both_bad = torch.tensor([-1.0, -1.0])
    keep = off_policy_mask(OLD, SAMPLING, both_bad, threshold=0.3, **kwargs)
    assert keep.tolist() == [False, True]
    keep = off_policy_mask(OLD, SAMPLING, both_bad, threshold=0.35, **kwargs)
    assert keep.tolist() == [True, True]
    good = torch.tensor([0.0, -1.0])
    assert off_policy_mask(OLD, SAMPLING, good, threshold=0.3, **kwargs).tolist() == [True, True]
    per_token = torch.tensor([-1.0, 1.0, -1.0, -1.0, 1.0])
    keep = off_policy_mask(OLD, SAMPLING, per_token, threshold=0.3, **kwargs)
    assert keep.tolist() == [False, True, True, True, True]


@pytest.mark.parametrize("quantile", [0.1, 0.2, 0.5, 0.99, 1.0])
def test_top_entropy_mask_beside_numpy(quantile):
    entropy = torch.rand(4, 25, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.rand(4, 25, generator=torch.Generator().manual_seed(1)) < 0.7
    kept = top_entropy_mask(entropy.masked_fill(~mask, math.nan), quantile=quantile, mask=mask)
    threshold = np.quantile(entropy[mask].numpy(), 1 - quantile)
    expected = mask.numpy() & (entropy.numpy() >= threshold)
    assert (kept.numpy() == expected).all()


def test_top_entropy_mask_of_nothing():
    assert not top_entropy_mask(torch.rand(3), quantile=0.5, mask=torch.zeros(3)).any()
    assert top_entropy_mask(torch.empty(0), quantile=0.5).shape == (0,)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("per_token", [False, True])
def test_the_fused_filters_are_the_masks_composed(masked, per_token):
    generator = torch.Generator().manual_seed(4)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    lengths = [4, 0, 1, 6]
    cu_seqlens = torch.tensor([0, 4, 4, 5, 11])
    hidden, weight, noise = normal(11, 5), normal(23, 5), 0.5 * normal(11)
    targets = torch.randint(0, 23, (11,), generator=generator)
    # As many kept tokens as sequences: per token must not pass for per sequence.
    mask = torch.arange(11) % 3 == 0 if masked else None
    advantages = normal(11) if per_token else normal(4)
    advantages[0] = -1.0
    first, second = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    old = linear_logprob(hidden, weight, targets) - noise
    sampling = old + 0.2 * normal(11) + (torch.arange(11) < 4)
    is_weights = rollout_weights(old, sampling, cu_seqlens=cu_seqlens, mask=mask)
    policy_mask = torch.arange(11) % 2 == 0
    shared = {
        "cu_seqlens": cu_seqlens,
        "mask": mask,
        "old_logprobs": old,
        "is_weights": is_weights,
    }
    result = linear_policy_loss(
        first,
        weight,
        targets,
        advantages,
        policy_mask=policy_mask,
        sampling_logprobs=sampling,
        off_policy_threshold=0.1,
        top_entropy_quantile=0.6,
        entropy_coef=0.05,
        **shared,
    )
    logp, entropy = linear_logprob(second, weight, targets, return_entropy=True)
    keep = off_policy_mask(
        logp, sampling, advantages, threshold=0.1, cu_seqlens=cu_seqlens, mask=mask
    )
    if not per_token:
        keep = keep[torch.repeat_interleave(torch.tensor(lengths))]
    varied = top_entropy_mask(entropy, quantile=0.6, mask=mask)
    assert 0 < keep.sum() < 11
    loss = policy_loss(logp, advantages, policy_mask=policy_mask & keep & varied, **shared).loss
    loss = loss - 0.05 * entropy[varied].sum() / (11 if mask is None else mask.sum())
    torch.testing.assert_close(result.loss, loss)
    result.loss.backward()
    loss.backward()
    torch.testing.assert_close(first.grad, second.grad)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"mode": "token"}, "mode must be one of token_truncate"),
        ({"clip_min": 4.0}, "clip_min must be at most clip_max=3.0, got 4.0"),
        ({"clip_max": -1.0}, "clip_max must be finite, at least 0"),
        ({"sampling_logprobs": SAMPLING[:4]}, r"sampling_logprobs must have shape \(5,\)"),
    ],
)
def test_errors_of_rollout_weights(kwargs, message):
    arguments = {"sampling_logprobs": SAMPLING, "cu_seqlens": CU_SEQLENS, **kwargs}
    with pytest.raises(ValueError, match=message):
        rollout_weights(OLD, **arguments)


def test_errors_of_the_masks():
    with pytest.raises(ValueError, match="threshold must be finite, greater than 0"):
        off_policy_mask(OLD, SAMPLING, torch.ones(2), threshold=0, cu_seqlens=CU_SEQLENS)
    with pytest.raises(ValueError, match=r"advantages must have shape \(2,\)"):
        off_policy_mask(OLD, SAMPLING, torch.ones(3), threshold=1, cu_seqlens=CU_SEQLENS)
    with pytest.raises(ValueError, match="quantile must be finite, greater than 0 and at most 1"):
        top_entropy_mask(torch.rand(3), quantile=1.5)
    with pytest.raises(ValueError, match="mask must have shape"):
        top_entropy_mask(torch.rand(3), quantile=0.5, mask=torch.ones(2))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"sampling_logprobs": torch.zeros(2)}, "off_policy_threshold must be given"),
        ({"off_policy_threshold": 0.0}, "off_policy_threshold must be finite, greater than 0"),
        ({"top_entropy_quantile": 0.0}, "top_entropy_quantile must be finite, greater than 0"),
        ({"is_weights": torch.ones(3)}, r"is_weights must have shape \(1,\)"),
        ({"policy_mask": torch.ones(1)}, "policy_mask must have dtype bool"),
        ({"delta": 2.0, "dual_clip": 2.0}, "give one, got 2.0 and 2.0"),
        ({"dual_clip": 1.0}, "dual_clip must be finite, greater than 1"),
        ({"dual_clip": 3.0, "loss_type": "vespo"}, "dual_clip must be None with loss_type='vespo'"),
        ({"vespo_k_pos": 0.0}, "vespo_k_pos must be finite, greater than 0"),
        (
            {"loss_type": "vespo", "importance_sampling_level": "sequence"},
            "importance_sampling_level must be 'token' with loss_type='vespo'",
        ),
    ],
)
def test_errors_of_the_fused_loss(kwargs, message):
    with pytest.raises((TypeError, ValueError), match=message):
        linear_policy_loss(
            torch.ones(2, 3),
            torch.ones(4, 3),
            torch.tensor([0, 1]),
            torch.ones(1),
            cu_seqlens=torch.tensor([0, 2]),
            **kwargs,
        )
