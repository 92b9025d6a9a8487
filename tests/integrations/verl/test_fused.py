"""Our log-probabilities under verl's names, beside verl's own on the CPU."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("verl", reason="needs verl (make test-verl-newest)")

from verl.utils.experimental import torch_functional

Theirs = torch_functional.FusedLinearForPPO

try:
    import verl.utils.kernel.linear_cross_entropy as triton_module
except ModuleNotFoundError as error:
    pytest.skip(f"this verl needs {error.name} for its kernels", allow_module_level=True)

from sec_grpo.integrations.verl import fused  # noqa: E402
from sec_grpo.integrations.verl.installed import installed_version  # noqa: E402


def make(shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn((*shape, 12), generator=generator, dtype=torch.float64)
    weight = torch.randn((31, 12), generator=generator, dtype=torch.float64) / 2
    ids = torch.randint(31, shape, generator=generator)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), ids


def outputs(function, shape, dtype, temperature=0.7):
    """Log-probabilities, entropies, and the gradients of a weighted sum of both."""
    hidden, weight, ids = make(shape, dtype)
    logprobs, entropy = function(hidden, weight, ids, temperature)
    weights = torch.linspace(-1, 1, logprobs.numel()).view(logprobs.shape)
    total = (weights * logprobs).sum() + 0.1 * entropy.sum()
    return logprobs, entropy, *torch.autograd.grad(total, (hidden, weight))


@pytest.mark.parametrize("shape", [(9,), (2, 9)])
def test_the_module_computes_what_verl_s_does(shape) -> None:
    ours = outputs(fused.FusedLinearForPPO().forward, shape, torch.float32)
    theirs = outputs(Theirs().forward, shape, torch.float32)
    assert ours[0].shape == ours[1].shape == shape
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-6)


def test_bfloat16_keeps_logits_in_float32() -> None:
    """No further from float64 than verl's, which rounds logits and entropies to bfloat16."""

    def in_plain_torch(hidden, weight, ids, temperature):
        logprobs = (hidden @ weight.T / temperature).log_softmax(-1)
        return (
            logprobs.gather(-1, ids[..., None])[..., 0],
            -(logprobs.exp() * logprobs).sum(-1),
        )

    def rounded(hidden, weight, ids, temperature):
        exact = [hidden.bfloat16().double(), weight.bfloat16().double()]
        return in_plain_torch(*exact, ids, temperature)

    truth = outputs(rounded, (64,), torch.float64)
    ours = outputs(fused.FusedLinearForPPO().forward, (64,), torch.bfloat16)
    theirs = outputs(Theirs().forward, (64,), torch.bfloat16)
    for one, other, expected in zip(ours[:2], theirs[:2], truth[:2], strict=True):
        error = torch.linalg.vector_norm(one.double() - expected)
        assert error < 1e-4 * torch.linalg.vector_norm(expected)
        assert error <= torch.linalg.vector_norm(other.double() - expected)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_the_function_reduces_as_verl_s_kernel_does(reduction) -> None:
    hidden, weight, ids = make((2, 9))
    logprobs, entropy = fused.linear_cross_entropy(hidden, weight, ids, 0.7, reduction)
    expected = ((hidden @ weight.T) / 0.7).log_softmax(-1)
    chosen = expected.gather(-1, ids[..., None]).flatten()
    chosen = chosen if reduction == "none" else getattr(chosen, reduction)()
    torch.testing.assert_close(logprobs, chosen)
    torch.testing.assert_close(entropy, -(expected.exp() * expected).sum(-1).flatten())


def test_what_is_refused(monkeypatch) -> None:
    hidden, weight, ids = make((9,))
    with pytest.raises(ValueError, match="reduction must be one of none, sum, mean, got 'max'"):
        fused.linear_cross_entropy(hidden, weight, ids, reduction="max")
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 2)
    with pytest.raises(NotImplementedError, match="set tensor_model_parallel_size=1"):
        fused.linear_cross_entropy(hidden, weight, ids, dist_process_group=SimpleNamespace())


def test_importing_it_puts_ours_under_verl_s_forward(common, inputs) -> None:
    """verl's own forward of a model, by either backend, calls ours."""
    from transformers import AutoModelForCausalLM
    from verl.models.transformers import dense_common

    assert torch_functional.FusedLinearForPPO is fused.FusedLinearForPPO
    assert triton_module.linear_cross_entropy is fused.linear_cross_entropy
    model = AutoModelForCausalLM.from_pretrained(inputs / "model", dtype=torch.float32)
    ids = torch.randint(3, 20, (1, 11))
    logits = model(input_ids=ids).logits / 0.7
    expected = logits.log_softmax(-1)
    chosen = expected.gather(-1, ids.roll(-1, dims=-1)[..., None])[..., 0]
    for forward in (
        dense_common.forward_with_torch_backend,
        dense_common.forward_with_triton_backend,
    ):
        found = forward(model, input_ids=ids, temperature=0.7, return_dict=True)
        torch.testing.assert_close(found.log_probs.view(1, 11), chosen, rtol=1e-5, atol=1e-5)
        entropy = -(expected.exp() * expected).sum(-1)
        torch.testing.assert_close(found.entropy.view(1, 11), entropy, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["FusedLinearForPPO.forward", "linear_cross_entropy"])
def test_another_signature_is_an_import_error(monkeypatch, name) -> None:
    def forward(first, hidden, head):
        pass

    kind = type("Newer", (), {"forward": forward})
    if name == "linear_cross_entropy":
        monkeypatch.setattr(triton_module, "LinearCrossEntropy", kind)
    else:
        monkeypatch.setattr(torch_functional, "FusedLinearForPPO", kind)
    version = installed_version()
    with pytest.raises(
        ImportError, match=rf"does not fit verl {version}: {name} takes \(hidden, h"
    ):
        fused.install()


def test_verl_imports_it_by_its_configuration(common, inputs) -> None:
    """`external_lib` is imported where verl makes a worker's model configuration."""
    script = (
        "import sys\n"
        "from verl.utils.import_utils import import_external_libs\n"
        "import_external_libs('sec_grpo.integrations.verl.fused')\n"
        "from verl.utils.experimental.torch_functional import FusedLinearForPPO\n"
        "print(FusedLinearForPPO.__module__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True
    )
    assert done.stdout.strip() == "sec_grpo.integrations.verl.fused", done.stderr
