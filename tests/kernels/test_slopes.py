"""token_loss_slopes against autograd of the reference's token losses, in float64."""

from __future__ import annotations

import itertools

import pytest
import torch

from sec_grpo.kernels import reference
from sec_grpo.kernels.reference import PolicyInputs, PolicyLossSpec
from sec_grpo.kernels.slopes import token_loss_slopes

LOSS_TYPES = ["grpo", "dapo", "cispo", "sapo"]


def make_inputs(off_policy: bool, weighted: bool) -> tuple[torch.Tensor, PolicyInputs]:
    generator = torch.Generator().manual_seed(3)

    def normal(scale: float) -> torch.Tensor:
        return scale * torch.randn(400, generator=generator, dtype=torch.float64)

    logp = -normal(1.0).abs()
    old = logp + normal(0.4)
    # On the clip's edges exactly, past the cap of the log-ratio, and a tie of ratio and cap.
    old[:5] = logp[:5] - torch.log(torch.tensor([0.8, 1.2, 1.0, 1.5, 1.0], dtype=torch.float64))
    old[5:7] = logp[5:7] - 80
    ref = logp + normal(0.4)
    ref[7] = logp[7] + 80
    advantages = normal(1.0)
    advantages[8:12] = 0.0
    mask = torch.rand(400, generator=generator) < 0.8
    old[~mask] = advantages[~mask] = torch.nan
    weights = torch.rand(400, generator=generator, dtype=torch.float64) if weighted else None
    index = torch.zeros(400, dtype=torch.long)
    return logp, PolicyInputs(advantages, mask, index, 1, old if off_policy else None, ref, weights)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("off_policy", [False, True])
@pytest.mark.parametrize("cap", [{}, {"delta": 1.5}, {"dual_clip": 1.1}])
def test_slopes_are_those_of_autograd(loss_type, off_policy, cap):
    logp, inputs = make_inputs(off_policy, weighted=off_policy)
    for beta, kl_type, correction in itertools.product(
        [0.0, 0.3], ["k1", "k2", "k3"], [False, True]
    ):
        spec = PolicyLossSpec(
            loss_type, beta=beta, kl_type=kl_type, kl_bias_correction=correction, **cap
        )
        leaf = logp.clone().requires_grad_()
        loss = reference.token_losses(leaf, inputs, spec).loss
        (expected,) = torch.autograd.grad(torch.where(inputs.mask, loss, 0.0).sum(), leaf)
        found = token_loss_slopes(logp, inputs, spec)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        assert found.abs().max() > 0
