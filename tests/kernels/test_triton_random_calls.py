"""linear_policy_loss with options drawn at random, against whole logits in float64.

The loss is written here a second time, over padded tensors and by autograd, so that combinations
that no other test lists are compared with something that shares no code.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from sec_grpo.ops import linear_policy_loss

pytestmark = [pytest.mark.gpu] if torch.cuda.is_available() else []

CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")


def logprob_and_entropy(hidden, weight, bias, targets, *, temperature, logit_scale, softcap):
    """(B, T) each, from logits (B, T, V)."""
    logits = hidden @ weight.T
    if bias is not None:
        logits = logits + bias
    logits = logits * logit_scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if isinstance(temperature, torch.Tensor):
        temperature = temperature[..., None]
    logp = torch.log_softmax(logits / temperature, -1)
    return logp.gather(-1, targets[..., None])[..., 0], -(logp.exp() * logp).sum(-1)


def per_token(values, like):
    values = values.double()
    return values[:, None].expand_as(like) if values.dim() == 1 else values


def policy_terms(logp, log_ratio, ratio, advantages, mask, is_weights, o):
    """(B, T) before the mask; every ratio and weight in float64."""
    if o["loss_type"] == "cispo":
        return -ratio.clamp(max=o["epsilon_high"]).detach() * advantages * logp
    if o["loss_type"] == "sapo":
        tau = 1.0 + 0.05 * (advantages <= 0).double()
        return -torch.sigmoid(tau * (ratio - 1)) * 4 / tau * advantages
    if o["loss_type"] == "vespo":
        log_w = log_ratio.sum(1, keepdim=True)
        if is_weights is not None:
            per_sequence = is_weights.dim() == 1
            logs = is_weights.double().log()
            log_w = log_w + (logs[:, None] if per_sequence else (logs * mask).sum(1, keepdim=True))
        w = log_w.exp()
        good = advantages >= 0
        phi = torch.where(good, (3 + 2 * log_w - 3 * w).exp(), (2 + 3 * log_w - 2 * w).exp())
        return -phi.detach() * advantages * logp
    first = ratio if o["delta"] is None else ratio.clamp(max=o["delta"])
    second = ratio.clamp(1 - o["epsilon_low"], 1 + o["epsilon_high"])
    terms = -torch.minimum(first * advantages, second * advantages)
    if o["dual_clip"] is None:
        return terms
    bounded = torch.minimum(terms, -o["dual_clip"] * advantages)
    return torch.where(advantages < 0, bounded, terms)


def token_weights(mask, o):
    kept, count = mask.double(), mask.sum(1, keepdim=True).clamp(min=1)
    if o["loss_type"] in ("grpo", "sapo"):
        return kept / count / len(mask)
    if o["loss_type"] == "luspo":
        return kept / len(mask)
    if o["loss_type"] == "dr_grpo":
        return kept / len(mask) / o["max_completion_length"]
    return kept / kept.sum().clamp(min=1)


def dense_loss(logp, entropy, case):
    """The scalar loss of padded (B, T) log-probabilities."""
    o, mask = case.options, case.mask
    old = case.per_call["old_logprobs"]
    log_ratio = logp - (logp.detach() if old is None else old.double())
    log_ratio = torch.where(mask, log_ratio, 0.0)
    ratio = log_ratio.exp()
    if o["importance_sampling_level"] == "sequence":
        mean = log_ratio.sum(1) / mask.sum(1).clamp(min=1)
        ratio = mean[:, None].expand_as(logp).exp()
    advantages = per_token(case.advantages, logp)
    is_weights, policy_mask = case.per_call["is_weights"], case.per_call["policy_mask"]
    terms = policy_terms(logp, log_ratio, ratio, advantages, mask, is_weights, o)
    if is_weights is not None and o["loss_type"] != "vespo":
        terms = terms * per_token(is_weights, logp)
    if policy_mask is not None:
        terms = torch.where(per_token(policy_mask, logp) != 0, terms, 0.0)
    if o["beta"]:
        d = case.per_call["ref_logprobs"].double() - logp
        kl = {"k1": -d, "k2": d * d / 2, "k3": d.exp() - d - 1}[o["kl_type"]]
        terms = terms + o["beta"] * (kl * ratio if o["kl_bias_correction"] else kl)
    terms = terms - o["entropy_coef"] * entropy
    return (token_weights(mask, o) * torch.where(mask, terms, 0.0)).sum()


@dataclass
class Case:
    """One call: padded tensors, and the options of the loss and of the head."""

    leaves: list[torch.Tensor | None]
    targets: torch.Tensor
    advantages: torch.Tensor
    mask: torch.Tensor
    options: dict[str, Any]
    head: dict[str, Any]
    per_call: dict[str, torch.Tensor | None] = field(default_factory=dict)

    def truth(self):
        """[loss, logprobs, entropy, gradients...] in float64."""
        leaves = [None if t is None else t.double().requires_grad_() for t in self.leaves]
        logp, entropy = logprob_and_entropy(*leaves, self.targets, **self.head)
        loss = dense_loss(logp, entropy, self)
        loss.backward()
        shown = [torch.where(self.mask, t, 0.0) for t in (logp, entropy)]
        return [loss, *shown, *(t.grad for t in leaves if t is not None)]

    def ours(self, *, packed, device, **how):
        """The same from the function under test, logprobs and entropy padded again."""
        leaves = [
            None if t is None else t.detach().clone().to(device).requires_grad_()
            for t in self.leaves
        ]
        flat = self.mask.reshape(-1)

        def tokens(value):
            """Those that are kept, where a tensor has a value per token."""
            if not isinstance(value, torch.Tensor):
                return value
            whole = value.dim() >= 2 and value.shape[:2] == self.mask.shape
            picked = value.flatten(0, 1)[flat.to(value.device)] if packed and whole else value
            return picked.to(device)

        offsets = torch.nn.functional.pad(self.mask.sum(1).cumsum(0), (1, 0))
        layout = {"cu_seqlens": offsets} if packed else {"mask": self.mask}
        result = linear_policy_loss(
            tokens(leaves[0]),
            leaves[1],
            tokens(self.targets),
            tokens(self.advantages),
            bias=leaves[2],
            **{name: value.to(device) for name, value in layout.items()},
            **{name: tokens(value) for name, value in {**self.per_call, **self.head}.items()},
            **self.options,
            **how,
        )
        result.loss.backward()
        shown = [t.cpu() for t in (result.logprobs, result.entropy)]
        if packed:
            spaces = torch.zeros(2, flat.numel(), dtype=shown[0].dtype)
            spaces[:, flat] = torch.stack(shown)
            shown = list(spaces.unflatten(1, self.mask.shape))
        return [result.loss, *shown, *(t.grad for t in leaves if t is not None)]


def draw_options(rng, longest):
    loss_type = rng.choice([*CLIPPED, "cispo", "sapo", "vespo"])
    level = {"luspo": "sequence", "vespo": "token"}.get(loss_type)
    options = {
        "loss_type": loss_type,
        "importance_sampling_level": level or rng.choice(["token", "sequence"]),
        "epsilon_low": 0.2,
        "epsilon_high": rng.choice([0.2, 0.28, 5.0]),
        "delta": None,
        "dual_clip": None,
        "beta": rng.choice([0.0, 0.0, 0.1]),
        "kl_type": rng.choice(["k1", "k2", "k3"]),
        "kl_bias_correction": rng.random() < 0.3,
        "entropy_coef": rng.choice([0.0, 0.0, 0.01]),
        "max_completion_length": float(longest + 3),
    }
    if loss_type in CLIPPED:
        bound = rng.choice(["delta", "dual_clip", None])
        if bound is not None:
            options[bound] = {"delta": options["epsilon_high"] + 2, "dual_clip": 1.5}[bound]
    return options


def draw_case(seed, dtype):
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    def either(make, num, longest):
        return make(num) if rng.random() < 0.5 else make(num, longest)

    num, longest = rng.choice([1, 2, 3, 5]), rng.choice([1, 2, 5, 9])
    hidden_size, num_vocab = rng.choice([8, 16, 24]), rng.choice([3, 17, 32, 123])
    bias = normal(num_vocab).to(dtype) if rng.random() < 0.4 else None
    advantages = either(normal, num, longest)
    if rng.random() < 0.4:
        advantages = advantages * (uniform(*advantages.shape) < 0.5)
    case = Case(
        [
            (normal(num, longest, hidden_size) * rng.choice([0.1, 1.0, 3.0])).to(dtype),
            (normal(num_vocab, hidden_size) * rng.choice([0.1, 1.0])).to(dtype),
            bias,
        ],
        torch.randint(0, num_vocab, (num, longest), generator=generator),
        advantages.to(dtype),
        uniform(num, longest) < rng.choice([0.3, 0.8, 1.1]),
        draw_options(rng, longest),
        {
            "logit_scale": rng.choice([1.0, 0.5]),
            "softcap": rng.choice([None, 5.0]),
            "temperature": rng.choice([1.0, 0.7, (uniform(num, longest) + 0.5).to(dtype)]),
        },
    )
    leaves = [None if t is None else t.double() for t in case.leaves]
    logp, _ = logprob_and_entropy(*leaves, case.targets, **case.head)
    behind = rng.choice([0.1, 0.5])
    case.per_call = {
        "old_logprobs": (logp + behind * normal(num, longest)).to(dtype),
        "ref_logprobs": (logp + 0.3 * normal(num, longest)).to(dtype),
        "is_weights": either(uniform, num, longest).to(dtype) + 0.2,
        "policy_mask": either(uniform, num, longest) < 0.6,
    }
    for name, share in (("old_logprobs", 0.6), ("is_weights", 0.3), ("policy_mask", 0.3)):
        if rng.random() >= share:
            case.per_call[name] = None
    how = {
        "memory_mode": rng.choice(["auto", "low"]),
        "skip_dead": rng.random() < 0.5,
        "chunk_size": rng.choice([None, 1, 4]),
        "packed": rng.random() < 0.5,
    }
    # As many tokens as sequences: packed values per token would read as values per sequence.
    if int(case.mask.sum()) == num:
        how["packed"] = False
    return case, how


@pytest.mark.parametrize("block", range(20))
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_any_call_is_the_dense_one(backend, block, triton_device):
    calls, dtype, tolerance = {
        "torch": (20, torch.float64, 1e-10),
        "triton": (2, torch.float32, 2e-4),
    }[backend]
    for seed in range(calls * block, calls * (block + 1)):
        case, how = draw_case(seed, dtype)
        truth = case.truth()
        found = case.ours(backend=backend, device=triton_device, **how)
        names = ["loss", "logprobs", "entropy", "hidden", "weight", "bias"]
        for name, exact, value in zip(names, truth, found, strict=False):
            if how["skip_dead"] and name in ("logprobs", "entropy"):
                continue
            scale = max(1.0, exact.abs().max().item())
            error = (value.detach().cpu().double() - exact.detach()).abs().max().item() / scale
            assert error <= tolerance, (seed, name, error, how, case.options)
