"""Implementations of "head -> log-probabilities -> GRPO loss", ours and others', for one case each.

Axes: N tokens, D hidden, V vocabulary, B sequences of N / B tokens.

Every implementation computes an on-policy loss with the gradient of -sum_t A_t logp_t / N, in full,
from hidden states and the head's weight, but for those in `OTHER_LOSS`, which have no advantages. A
peer that is not installed, or does not run on the device, raises ImportError.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from sec_grpo.ops import linear_logprob, linear_policy_loss

Loss = Callable[[Tensor, Tensor], Tensor]
"""(hidden, weight) -> loss"""


@dataclass(frozen=True)
class Case:
    """The inputs besides hidden (N, D) and weight (V, D)."""

    targets: Tensor
    """(N,)"""
    advantages: Tensor
    """(B,)"""

    @property
    def cu_seqlens(self) -> Tensor:
        sequences, tokens = len(self.advantages), len(self.targets)
        device = self.targets.device
        return torch.arange(sequences + 1, device=device) * (tokens // sequences)

    @property
    def token_advantages(self) -> Tensor:
        """(N,)"""
        return self.advantages.repeat_interleave(len(self.targets) // len(self.advantages))

    def padded(self, tensor: Tensor) -> Tensor:
        """(B, N / B, ...)"""
        return tensor.view(len(self.advantages), -1, *tensor.shape[1:])


def make_case(
    num_tokens: int,
    num_hidden: int,
    num_vocab: int,
    *,
    device: str,
    dtype: torch.dtype,
    sequences: int = 16,
    dead: float = 0.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Case]:
    """hidden, weight and the rest; targets sampled by the head itself, as in training.

    `dead` is the share of sequences whose advantage is 0.
    """
    generator = torch.Generator(device).manual_seed(seed)
    options = {"generator": generator, "device": device}
    hidden = torch.randn(num_tokens, num_hidden, **options)
    # Logits of standard deviation 3: peaked, but not a single token.
    weight = torch.randn(num_vocab, num_hidden, **options) * (3 / num_hidden**0.5)
    hidden, weight = hidden.to(dtype), weight.to(dtype)
    targets = torch.cat(
        [
            torch.multinomial((part @ weight.T).float().softmax(-1), 1, generator=generator)[:, 0]
            for part in hidden.split(2048)
        ]
    )
    advantages = torch.randn(sequences, **options)
    advantages[: int(dead * sequences)] = 0.0
    return hidden, weight, Case(targets, advantages)


def _plain(case: Case, logp: Tensor) -> Tensor:
    return -(logp * case.token_advantages).sum() / len(case.targets)


def _ours(case: Case, **options) -> Loss:
    options = {"cu_seqlens": case.cu_seqlens, **options}

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        return linear_policy_loss(hidden, weight, case.targets, case.advantages, **options).loss

    return loss


def _fused_product(case: Case) -> Loss:
    from sec_grpo.kernels import linear_triton

    inner = _ours(case)

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        before = linear_triton.PRODUCT
        linear_triton.PRODUCT = "fused"
        try:
            return inner(hidden, weight)
        finally:
            linear_triton.PRODUCT = before

    return loss


def _eager(case: Case) -> Loss:
    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        logits = torch.nn.functional.linear(hidden, weight).float()
        logp = torch.log_softmax(logits, -1).gather(1, case.targets[:, None])[:, 0]
        return _plain(case, logp)

    return loss


def _compiled(case: Case) -> Loss:
    return torch.compile(_eager(case))


def _trl(case: Case) -> Loss:
    from trl.trainer import utils

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        logp = utils._ChunkedLogProbFunction.apply(
            hidden, weight, None, case.targets, 1.0, 8192, None, 1.0, ("entropy",)
        )[0]
        return _plain(case, logp)

    return loss


def _liger_chunked(case: Case) -> Loss:
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    module = LigerFusedLinearGRPOLoss(
        beta=0.0, use_ref_model=False, compiled=case.targets.is_cuda, loss_type="bnpo"
    )
    mask = torch.ones_like(case.padded(case.targets))

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        targets = case.padded(case.targets)
        return module(case.padded(hidden), weight, targets, mask, case.advantages)[0]

    return loss


def _liger_triton(case: Case) -> Loss:
    if not case.targets.is_cuda:
        raise ImportError("needs a GPU")
    from liger_kernel.transformers.grpo_loss import triton_grpo_loss

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        logits = case.padded(torch.nn.functional.linear(hidden, weight))
        # It wants the logits of one more position, which it drops.
        logits = torch.nn.functional.pad(logits, (0, 0, 0, 1))
        targets = case.padded(case.targets)
        return triton_grpo_loss(
            logits, None, None, targets, case.advantages, temperature=1.0, beta=0.0,
            loss_type="bnpo", reduce=True,
        )[0]  # fmt: skip

    return loss


def _cce(case: Case) -> Loss:
    if not case.targets.is_cuda:
        raise ImportError("needs a GPU")
    from cut_cross_entropy import linear_cross_entropy

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        negative = linear_cross_entropy(
            hidden, weight, case.targets, reduction="none", impl="cce", filter_eps="auto"
        )
        return _plain(case, -negative.float())

    return loss


def _quack(case: Case) -> Loss:
    if not case.targets.is_cuda:
        raise ImportError("needs a GPU")
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        return chunked_linear_cross_entropy(hidden, weight, case.targets)

    return loss


IMPLEMENTATIONS: dict[str, Callable[[Case], Loss]] = {
    "sec-grpo": _ours,
    "sec-grpo, fused product": _fused_product,
    "sec-grpo, low memory": lambda case: _ours(case, memory_mode="low"),
    "sec-grpo, torch": lambda case: _ours(case, backend="torch"),
    "torch eager": _eager,
    "torch.compile": _compiled,
    "trl": _trl,
    "liger chunked": _liger_chunked,
    "liger triton": _liger_triton,
    "cce": _cce,
    "quack": _quack,
}
"""by name; each raises ImportError where it cannot run"""

OTHER_LOSS = frozenset({"quack"})
"""cross entropy without advantages: the same products, another number"""

PACKAGES = {
    "trl": "trl",
    "liger chunked": "liger-kernel",
    "liger triton": "liger-kernel",
    "cce": "cut-cross-entropy",
    "quack": "quack-kernels",
}


def skip_dead(case: Case) -> Loss:
    """Ours, with sequences of advantage 0 left out."""
    return _ours(case, skip_dead=True)


def logprobs_of(name: str, case: Case) -> Callable[[Tensor, Tensor], Tensor] | None:
    """(hidden, weight) -> log-probabilities (N,) without gradients, where the library has them."""
    if name.startswith("sec-grpo"):
        backend = "torch" if name == "sec-grpo, torch" else "auto"
        if name in ("sec-grpo, low memory", "sec-grpo, fused product"):
            return None
        return lambda hidden, weight: linear_logprob(hidden, weight, case.targets, backend=backend)
    if name == "torch eager":

        def eager(hidden: Tensor, weight: Tensor) -> Tensor:
            logits = torch.nn.functional.linear(hidden, weight).float()
            return torch.log_softmax(logits, -1).gather(1, case.targets[:, None])[:, 0]

        return eager
    if name == "trl":
        from trl.trainer import utils

        return lambda hidden, weight: utils._ChunkedLogProbFunction.apply(
            hidden, weight, None, case.targets, 1.0, 8192, None, 1.0, ()
        )[0]
    return None


def bare_products(count: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The first `count` of the products logits, hidden's gradient, weight's gradient, alone.

    In the inputs' precision, by the library, without anything between them.
    """

    def run(hidden: Tensor, weight: Tensor) -> Tensor:
        logits = hidden @ weight.T
        result = logits
        if count > 1:
            result = logits @ weight
        if count > 2:
            result = logits.T @ hidden
        return result

    return run


@cache
def package_version(name: str) -> str | None:
    """The version of the library behind an implementation, for the record."""
    try:
        return version(PACKAGES[name]) if name in PACKAGES else None
    except PackageNotFoundError:
        return None
