"""A batch for Liger's losses, and the settings under which ours are compared with it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

# Threads cost more than they bring for matrices of this size.
torch.set_num_threads(1)

BATCH, LENGTH, HIDDEN, VOCABULARY = 8, 9, 12, 31
LENGTHS = (9, 6, 1, 5, 0, 9, 8, 2)

# Settings of the loss, by our name of the case: keywords of Liger's, and what the call gets.
CASES = {
    "dapo": ({"loss_type": "dapo"}, {}),
    "dapo, tokens of the whole batch": ({"loss_type": "dapo"}, {"num_items_in_batch": 40}),
    "dapo, on-policy": ({"loss_type": "dapo"}, {"old": None}),
    "dapo, no KL": ({"loss_type": "dapo", "beta": 0.0}, {}),
    "grpo": ({"loss_type": "grpo", "temperature": 0.7}, {}),
    "grpo, two-sided": ({"loss_type": "grpo", "delta": 1.5}, {}),
    "bnpo": ({"loss_type": "bnpo", "beta": 0.2}, {"ratio": "token"}),
    "dr_grpo": ({"loss_type": "dr_grpo", "max_completion_length": 9}, {"ratio": "sequence"}),
    "unbiased KL": ({"loss_type": "dapo", "use_bias_correction_kl": True, "beta": 0.3}, {}),
    "cispo": ({"loss_type": "cispo", "epsilon_high": 1.3}, {"ratio": "column"}),
    "sapo": ({"loss_type": "sapo", "sapo_temperature_neg": 2.0}, {"num_items_in_batch": 40}),
    "vespo": ({"loss_type": "vespo", "vespo_k_pos": 1.5}, {"ratio": "column"}),
    "sequence level": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 0.05},
        {"ratio": "token"},
    ),
    "sequence level, unbiased KL": (
        {
            "loss_type": "dapo",
            "importance_sampling_level": "sequence",
            "use_bias_correction_kl": True,
            "epsilon_low": 0.05,
            "epsilon_high": 0.05,
            "delta": 1.06,
        },
        {},
    ),
}


def make_batch(dtype: torch.dtype = torch.float64, lengths: tuple[int, ...] = LENGTHS):
    """Random inputs; ratios between 0.3 and 3, so that each bound is met."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)

    ids = torch.randint(VOCABULARY, (BATCH, LENGTH), generator=generator)
    hidden, weight = randn(BATCH, LENGTH, HIDDEN), randn(VOCABULARY, HIDDEN, scale=0.5)
    bias = randn(VOCABULARY)
    exact = torch.nn.functional.linear(hidden, weight, bias).log_softmax(-1)
    logprobs = exact.gather(-1, ids[..., None])[..., 0]
    mask = (torch.arange(LENGTH) < torch.tensor(lengths)[:, None]).long()
    return SimpleNamespace(
        hidden=hidden, weight=weight, bias=bias, ids=ids, mask=mask,
        logits=torch.nn.functional.pad(hidden @ weight.T + bias, (0, 0, 0, 1)).contiguous(),
        advantages=torch.tensor([1.0, -0.7, 0.4, -1.5, 0.9, 0.5, 1.2, -0.8], dtype=dtype),
        old=logprobs + randn(BATCH, LENGTH, scale=0.6),
        ref=logprobs + randn(BATCH, LENGTH, scale=0.5),
        ratios={
            "token": 1 + 0.5 * torch.rand((BATCH, LENGTH), generator=generator).to(dtype),
            "sequence": 1 + 0.5 * torch.rand((BATCH,), generator=generator).to(dtype),
            "column": 1 + 0.5 * torch.rand((BATCH, 1), generator=generator).to(dtype),
        },
    )  # fmt: skip


@pytest.fixture
def batch():
    return make_batch


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", CASES.values(), ids=CASES)
