"""Fixtures of the kernel tests: where Triton runs, and an oracle in numpy loops.

Triton kernels run on a GPU, or in Triton's interpreter. The interpreter has to be chosen before
Triton is imported, and another folder's tests may import it first, so test_triton_*.py are
collected only in a process started with TRITON_INTERPRET=1 (or with a GPU): without one,
test_interpreter.py starts that process and fails when any of them does.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from sec_grpo.ops import linear_policy_loss

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETED or torch.cuda.is_available() else ["test_triton_*.py"]


@pytest.fixture
def triton_device() -> str:
    """The device whose tensors backend="triton" takes in this process."""
    return "cpu" if INTERPRETED else "cuda"


@pytest.fixture
def poisoned_memory():
    """torch.empty comes filled with NaN (integers: the largest), so an unwritten output shows."""
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fill


def vespo_log_weight(tokens, frozen, old, is_weights, i, num_sequences):
    """log w of sequence i, with TRL's bounds."""
    lowest, highest = np.log(1e-8), 20.0
    total = 0.0
    for t in tokens:
        if old is not None:
            total += min(max(frozen[t] - old[t], -highest), highest)
        if is_weights is not None and len(is_weights) != num_sequences:
            total += min(max(np.log(is_weights[t]), lowest), highest)
    if is_weights is not None and len(is_weights) == num_sequences:
        total += min(max(np.log(is_weights[i]), lowest), highest)
    return min(max(total, lowest), highest)


def live_ratio(tokens, t, logp, behaviour, level):
    if level == "sequence":
        return np.exp(sum(logp[u] - behaviour[u] for u in tokens) / len(tokens))
    return np.exp(logp[t] - behaviour[t])


def loop_policy_loss(
    logp,
    advantages,
    lengths,
    *,
    mask=None,
    old=None,
    ref=None,
    loss_type="dapo",
    level="token",
    epsilon_low=0.2,
    epsilon_high=0.2,
    delta=None,
    dual_clip=None,
    beta=0.0,
    kl_type="k3",
    kl_bias_correction=False,
    is_weights=None,
    policy_mask=None,
    max_completion_length=None,
    frozen=None,
    sapo_temperatures=(1.0, 1.05),
):
    """The loss of packed float64 tokens by explicit loops; `frozen` is logp where held constant.

    is_weights and policy_mask are per token or per sequence.
    """
    total, start = 0.0, 0
    frozen = logp if frozen is None else frozen
    mask = np.ones(len(logp), bool) if mask is None else mask

    def per_token(values, i, t):
        return values[i] if len(values) == len(lengths) else values[t]

    for i, length in enumerate(lengths):
        tokens = [t for t in range(start, start + length) if mask[t]]
        start += length
        in_sequence = 0.0
        log_w = vespo_log_weight(tokens, frozen, old, is_weights, i, len(lengths))
        for t in tokens:
            source = frozen if loss_type == "cispo" else logp
            behaviour = frozen if old is None else old
            if level == "sequence":
                log_ratio = sum(source[u] - behaviour[u] for u in tokens) / len(tokens)
            else:
                log_ratio = source[t] - behaviour[t]
            ratio = np.exp(log_ratio)
            a = per_token(advantages, i, t)
            weight = 1.0 if is_weights is None else per_token(is_weights, i, t)
            if loss_type == "cispo":
                value = -min(ratio, epsilon_high) * a * logp[t]
            elif loss_type == "sapo":
                tau = sapo_temperatures[0 if a > 0 else 1]
                value = -4 / (tau * (1 + np.exp(-tau * (ratio - 1)))) * a
            elif loss_type == "vespo":
                k, rate = (2.0, 3.0) if a >= 0 else (3.0, 2.0)
                value = -np.exp(rate + k * log_w - rate * np.exp(log_w)) * a * logp[t]
                weight = 1.0
            else:
                first = ratio if delta is None else min(ratio, delta)
                second = min(max(ratio, 1 - epsilon_low), 1 + epsilon_high)
                objective = min(first * a, second * a)
                if dual_clip is not None and a < 0:
                    objective = max(objective, dual_clip * a)
                value = -objective
            value *= weight
            if policy_mask is not None and not per_token(policy_mask, i, t):
                value = 0.0
            if beta:
                d = logp[t] - ref[t]
                kl = {"k1": d, "k2": d * d / 2, "k3": np.exp(-d) + d - 1}[kl_type]
                if kl_bias_correction:
                    kl *= live_ratio(tokens, t, logp, behaviour, level)
                value += beta * kl
            in_sequence += value
        if loss_type in ("grpo", "sapo"):
            in_sequence /= max(len(tokens), 1)
        total += in_sequence
    if loss_type in ("grpo", "sapo", "luspo"):
        return total / len(lengths)
    if loss_type == "dr_grpo":
        return total / (len(lengths) * max_completion_length)
    return total / max(int(mask.sum()), 1)


def loop_policy_gradient(logp, *args, **kwargs):
    """Central differences of `loop_policy_loss`, masked tokens 0."""
    logp = np.asarray(logp, np.float64)
    gradient = np.zeros_like(logp)
    # old=None is on-policy: the behaviour policy is this one, held constant.
    kwargs = {**kwargs, "frozen": logp.copy()}
    for t in range(len(logp)):
        up, down = logp.copy(), logp.copy()
        up[t] += 1e-6
        down[t] -= 1e-6
        upper = loop_policy_loss(up, *args, **kwargs)
        lower = loop_policy_loss(down, *args, **kwargs)
        gradient[t] = (upper - lower) / 2e-6
    return gradient


@pytest.fixture
def oracle():
    """(loss, gradient) by loops over float64 numpy arrays."""
    return loop_policy_loss, loop_policy_gradient


@pytest.fixture
def packed_case():
    """Sequences of 3, 0, 1 and 6 tokens, away from every kink by more than a float32 rounding."""
    generator = np.random.default_rng(7)
    lengths = [3, 0, 1, 6]
    num_tokens = sum(lengths)
    logp = -generator.uniform(0.05, 4.0, num_tokens)
    return {
        "lengths": lengths,
        "cu_seqlens": torch.tensor([0, *np.cumsum(lengths)]),
        "logp": logp,
        "old": logp - generator.normal(0, 0.4, num_tokens),
        "ref": logp - generator.normal(0, 0.4, num_tokens),
        "mask": generator.random(num_tokens) < 0.7,
        "advantages": np.array([0.9, 2.0, -1.1, -0.7]),
        "token_advantages": generator.normal(0, 1, num_tokens),
    }


@pytest.fixture
def rows_of_nan_gradient():
    """Rows of hidden with a NaN in their gradient after a NaN in one of the loss's inputs."""

    def find(name, loss_type, memory_mode, backend, device):
        generator = torch.Generator().manual_seed(0)
        values = {
            "advantages": torch.tensor([1.0, -0.5]),
            # Far apart, so that most ratios are clipped.
            "old_logprobs": -4 * torch.rand(12, generator=generator),
            "ref_logprobs": -torch.rand(12, generator=generator),
        }
        values[name][1 if name == "advantages" else 8] = torch.nan
        hidden = torch.randn(12, 5, generator=generator).to(device).requires_grad_()
        loss = linear_policy_loss(
            hidden,
            torch.randn(11, 5, generator=generator).to(device),
            torch.randint(11, (12,), generator=generator).to(device),
            cu_seqlens=torch.tensor([0, 6, 12], device=device),
            loss_type=loss_type,
            beta=0.1,
            memory_mode=memory_mode,
            backend=backend,
            **{key: value.to(device) for key, value in values.items()},
        ).loss
        loss.backward()
        assert loss.isnan()
        return hidden.grad.isnan().any(1).nonzero()[:, 0].tolist()

    return find
