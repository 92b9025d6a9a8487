"""The head's Triton backend against float64, on a GPU or in the interpreter.

Blocks and slices are small here, so that the interpreter runs rows of many of them.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from sec_grpo.kernels import linear_triton, reference, row_exp
from sec_grpo.ops import linear_logprob, linear_policy_loss

pytestmark = [pytest.mark.gpu] if torch.cuda.is_available() else []

N, D = 21, 24
CU_SEQLENS = torch.tensor([0, 6, 6, 7, 16, 21])
ADVANTAGES = torch.tensor([1.0, 2.0, -1.0, 0.5, 0.0])
HEADS = {
    "plain": {},
    "scaled": {"temperature": 0.7, "logit_scale": 1.3},
    "capped": {"softcap": 3.0},
    "everything": {"softcap": 2.0, "logit_scale": 0.5, "temperature": torch.linspace(0.5, 2, N)},
}
# Times the error of plain torch. The interpreter truncates to bfloat16 where a GPU rounds.
ALLOWED = 2.0 if torch.cuda.is_available() else 4.0
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(row_exp, "BLOCK", 64)
    # One block of 64 columns in a slice of a chunk of 128 rows.
    monkeypatch.setattr(linear_triton, "SLICE_BYTES", 4 * 128 * 64)


def make(dtype, num_vocab=251, *, scale=1.0, with_bias=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, D, generator=generator).to(dtype)
    weight = (scale * torch.randn(num_vocab, D, generator=generator)).to(dtype)
    bias = torch.randn(num_vocab, generator=generator).to(dtype) if with_bias else None
    return hidden, weight, bias, torch.randint(0, num_vocab, (N,), generator=generator)


def run(call, tensors, cast, device="cpu", needed=(True, True, True)):
    """Results of call(hidden, weight, bias), and the gradients of those, on the CPU in float64."""
    leaves = [
        None if t is None else t.detach().clone().to(device, cast).requires_grad_(need)
        for t, need in zip(tensors, needed, strict=True)
    ]
    values, loss = call(*leaves)
    loss.backward()
    gradients = [None if t is None or t.grad is None else t.grad for t in leaves]
    for leaf, gradient in zip(leaves, gradients, strict=True):
        assert gradient is None or gradient.dtype == leaf.dtype
    return [None if t is None else t.detach().cpu().double() for t in (*values, *gradients)]


def assert_no_worse(names, truth, ours, plain, allowed=ALLOWED):
    """Error norms at most `allowed` times those of plain torch, or one rounding of float32."""
    for name, exact, a, b in zip(names, truth, ours, plain, strict=True):
        assert (exact is None) == (a is None), name
        if exact is None:
            continue
        errors = [torch.linalg.vector_norm(value - exact).item() for value in (a, b)]
        floor = 2e-6 * torch.linalg.vector_norm(exact).item()
        assert errors[0] <= allowed * errors[1] + floor, (name, errors)


def to_device(options, device):
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}


def plain_logprob(hidden, weight, bias, targets, head):
    """The logits whole, in the inputs' precision; log-softmax in float32."""
    z = torch.nn.functional.linear(hidden, weight, bias).float() * head.get("logit_scale", 1.0)
    if "softcap" in head:
        z = head["softcap"] * torch.tanh(z / head["softcap"])
    temperature = head.get("temperature", 1.0)
    z = z / (temperature[:, None] if isinstance(temperature, torch.Tensor) else temperature)
    logp = torch.log_softmax(z, -1)
    entropy = -(logp.exp() * logp).sum(-1)
    return logp.gather(1, targets[:, None])[:, 0], entropy


NAMES = ("logp", "entropy", "dX", "dW", "db")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("memory_mode", ["auto", "low"])
def test_logprob_and_gradients(dtype, head, memory_mode, triton_device, poisoned_memory):
    head = HEADS[head]
    *tensors, targets = make(dtype, with_bias="softcap" in head)
    upstream = torch.randn(2, N, generator=torch.Generator().manual_seed(1))

    def loss(logp, entropy):
        weights = upstream.to(logp.device, logp.dtype)
        return (logp, entropy), (weights[0] * logp + weights[1] * entropy).sum()

    def ours(h, w, b):
        return loss(
            *linear_logprob(
                h,
                w,
                targets.to(h.device),
                bias=b,
                return_entropy=True,
                chunk_size=8,
                memory_mode=memory_mode,
                backend="triton",
                **to_device(head, h.device),
            )
        )

    def exact(h, w, b):
        return loss(*reference.linear_logprob(h, w, targets, bias=b, **head))

    truth = run(exact, tensors, torch.float64)
    plain = run(lambda h, w, b: loss(*plain_logprob(h, w, b, targets, head)), tensors, dtype)
    assert_no_worse(NAMES, truth, run(ours, tensors, dtype, triton_device), plain)


@pytest.mark.parametrize("kind", ["peaked", "uniform", "far"])
@pytest.mark.parametrize(
    ("way", "dtype"),
    [
        *itertools.product(["fast", "low"], DTYPES),
        ("fused", torch.float16),
        # The interpreter's products of bfloat16 are wrong.
        *([("fused", torch.bfloat16)] if torch.cuda.is_available() else []),
    ],
)
def test_distributions(way, dtype, kind, triton_device, poisoned_memory, monkeypatch):
    """Targets with p near 1, equal logits, and targets with logp < -100 (several anchors a row)."""
    if way == "fused":
        monkeypatch.setattr(linear_triton, "PRODUCT", "fused")
    memory_mode = "low" if way == "low" else "fast"
    scale = {"peaked": 1.5, "uniform": 0.0, "far": 10.0}[kind]
    *tensors, targets = make(dtype, scale=scale, seed=2)
    if kind == "peaked":
        targets = (tensors[0].double() @ tensors[1].double().T).argmax(-1)
    advantages = torch.linspace(-1, 1, N)

    def ours(h, w, b):
        result = linear_policy_loss(
            h,
            w,
            targets.to(h.device),
            advantages.to(h.device),
            cu_seqlens=CU_SEQLENS.to(h.device),
            memory_mode=memory_mode,
            backend="triton",
        )
        return (result.logprobs, result.entropy), result.loss * 64

    def exact(h, w, b):
        logp, entropy = reference.linear_logprob(h, w, targets)
        return (logp, entropy), -(logp * advantages).sum() / N * 64

    def plain(h, w, b):
        logp, entropy = plain_logprob(h, w, b, targets, {})
        return (logp, entropy), -(logp * advantages).sum() / N * 64

    truth = run(exact, tensors, torch.float64)
    if kind == "far":
        assert (truth[0] < -100).any()
    assert_no_worse(
        NAMES, truth, run(ours, tensors, dtype, triton_device), run(plain, tensors, dtype)
    )
    if kind == "peaked" and dtype == torch.float32:
        # The rest of a probability near 1 keeps its digits, which 1 - p in float32 would not.
        logp = run(ours, tensors, dtype, triton_device)[0]
        torch.testing.assert_close(logp, truth[0], rtol=2e-5, atol=0)


LOSSES = {
    "grpo, off-policy": {"loss_type": "grpo", "with_old": True},
    "dapo, entropy": {"loss_type": "dapo", "entropy_coef": 0.1, "with_old": True},
    "cispo, masked": {"loss_type": "cispo", "masked": True, "with_old": True},
    "sapo, dead": {"loss_type": "sapo", "masked": True, "skip_dead": True},
    "dr_grpo, kl": {"loss_type": "dr_grpo", "beta": 0.1, "max_completion_length": 9},
    "sequence": {"loss_type": "luspo", "importance_sampling_level": "sequence", "masked": True},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("memory_mode", ["fast", "low"])
def test_policy_loss(dtype, loss, memory_mode, triton_device, poisoned_memory):
    options = dict(LOSSES[loss])
    head = HEADS["everything" if "entropy" in loss else "scaled"]
    if loss == "sequence" and memory_mode == "fast":
        memory_mode = "auto"
    *tensors, targets = make(dtype, with_bias=True)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        logp, _ = reference.linear_logprob(
            *(t.double() for t in tensors[:2]), targets, bias=tensors[2].double(), **head
        )
        old = logp.float() + 0.3 * torch.randn(N, generator=generator)
    mask = torch.rand(N, generator=generator) < 0.7 if options.pop("masked", False) else None
    tensors[0][~mask if mask is not None else []] = torch.nan
    options["old_logprobs"] = old if options.pop("with_old", False) else None
    options["ref_logprobs"] = old.clone() if "beta" in options else None

    def call(backend):
        def compute(h, w, b):
            result = linear_policy_loss(
                h,
                w,
                targets.to(h.device),
                ADVANTAGES.to(h.device),
                cu_seqlens=CU_SEQLENS.to(h.device),
                mask=None if mask is None else mask.to(h.device),
                bias=b,
                chunk_size=8,
                memory_mode=memory_mode,
                backend=backend,
                **to_device({**head, **options}, h.device),
            )
            values = (result.loss, result.logprobs, result.entropy, result.metrics["kl"])
            return values, result.loss * 128

        return compute

    truth = run(call("torch"), tensors, torch.float64)
    plain = run(call("torch"), tensors, dtype)
    ours = run(call("triton"), tensors, dtype, triton_device)
    names = ("loss", "logp", "entropy", "kl", "dX", "dW", "db")
    # The torch backend, with float32 gradients of the logits, is the plain one here.
    allowed = 2 * ALLOWED if dtype == torch.float32 else 3 * ALLOWED
    assert_no_worse(names, truth, ours, plain, allowed)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("memory_mode", ["fast", "low"])
def test_banned_tokens(softcap, memory_mode, triton_device, poisoned_memory):
    """-inf in the bias: whole blocks of them, and a banned target whose logp is -inf."""
    *tensors, targets = make(torch.float32, with_bias=True)
    tensors[2][40:200] = -torch.inf
    targets = targets.clamp(max=39)

    def call(backend):
        def compute(h, w, b):
            result = linear_policy_loss(
                h,
                w,
                targets.to(h.device),
                ADVANTAGES.to(h.device),
                cu_seqlens=CU_SEQLENS.to(h.device),
                bias=b,
                softcap=softcap,
                entropy_coef=0.1,
                memory_mode=memory_mode,
                backend=backend,
            )
            return (result.logprobs, result.entropy), result.loss

        return compute

    truth = run(call("torch"), tensors, torch.float64)
    ours = run(call("triton"), tensors, torch.float32, triton_device)
    for exact, found in zip(truth, ours, strict=True):
        torch.testing.assert_close(found, exact, rtol=2e-5, atol=1e-7)
    banned = linear_logprob(
        *(t.to(triton_device) for t in tensors[:2]),
        torch.full((N,), 100, device=triton_device),
        bias=tensors[2].to(triton_device),
        return_entropy=True,
        backend="triton",
    )
    assert (banned.logprobs == -torch.inf).all()
    if softcap is None:
        torch.testing.assert_close(banned.entropy.cpu().double(), truth[1], rtol=1e-5, atol=0)


@pytest.mark.parametrize("needed", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1)])
@pytest.mark.parametrize("memory_mode", ["fast", "low"])
def test_every_subset_of_gradients(needed, memory_mode, triton_device):
    *tensors, targets = make(torch.float32, with_bias=True)

    def compute(h, w, b):
        result = linear_policy_loss(
            h,
            w,
            targets.to(h.device),
            ADVANTAGES.to(h.device),
            cu_seqlens=CU_SEQLENS.to(h.device),
            bias=b,
            memory_mode=memory_mode,
            backend="triton",
        )
        return (), result.loss

    whole = run(compute, tensors, torch.float32, triton_device)
    found = run(compute, tensors, torch.float32, triton_device, [bool(n) for n in needed])
    for need, full, part in zip(needed, whole, found, strict=True):
        assert (part is not None) == bool(need)
        if need:
            torch.testing.assert_close(part, full, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("per_row", [False, True])
def test_the_fused_product_is_the_library_s(per_row, triton_device, poisoned_memory, monkeypatch):
    """Rows and columns of several tiles, with ends inside one."""
    generator = torch.Generator().manual_seed(8)
    hidden = torch.randn(140, 40, generator=generator).half().to(triton_device)
    weight = torch.randn(507, 40, generator=generator).half().to(triton_device)
    targets = torch.randint(0, 507, (140,), generator=generator).to(triton_device)
    temperature = torch.linspace(0.5, 2, 140).to(triton_device) if per_row else 0.7
    found = []
    for product in ("library", "fused"):
        monkeypatch.setattr(linear_triton, "PRODUCT", product)
        leaves = [t.clone().requires_grad_() for t in (hidden, weight)]
        result = linear_policy_loss(
            *leaves,
            targets,
            torch.tensor([1.0, -1.0], device=triton_device),
            cu_seqlens=torch.tensor([0, 60, 140], device=triton_device),
            temperature=temperature,
            backend="triton",
        )
        result.loss.backward()
        found.append((result.loss, result.logprobs, result.entropy, *(t.grad for t in leaves)))
    library, fused = found
    for a, b in zip(fused[:3], library[:3], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    for a, b in zip(fused[3:], library[3:], strict=True):
        error = torch.linalg.vector_norm((a - b).float())
        assert error <= 1e-3 * torch.linalg.vector_norm(b.float())


def test_nan_shows_in_its_row_alone(triton_device):
    hidden, weight, _, targets = (
        t if t is None else t.to(triton_device) for t in make(torch.float32)
    )
    hidden[3] = torch.nan
    logp, entropy = linear_logprob(hidden, weight, targets, return_entropy=True, backend="triton")
    for values in (logp, entropy):
        assert values.isnan().nonzero().flatten().tolist() == [3]


def test_the_same_call_gives_the_same_bits_and_chunks_only_rounding(triton_device):
    *tensors, targets = make(torch.float32)

    def call(chunk_size):
        def compute(h, w, b):
            logp = linear_logprob(
                h, w, targets.to(h.device), chunk_size=chunk_size, backend="triton"
            )
            return (logp,), logp.sum()

        return run(compute, tensors, torch.float32, triton_device)

    for first, second, other in zip(call(8), call(8), call(None), strict=True):
        if first is not None:
            assert torch.equal(first, second)
            torch.testing.assert_close(first, other, rtol=1e-5, atol=1e-7)


def test_no_rows(triton_device):
    hidden = torch.empty(0, D, device=triton_device, requires_grad=True)
    weight = torch.ones(9, D, device=triton_device, requires_grad=True)
    targets = torch.empty(0, dtype=torch.long, device=triton_device)
    logp, entropy = linear_logprob(hidden, weight, targets, return_entropy=True, backend="triton")
    (logp.sum() + entropy.sum()).backward()
    assert logp.shape == entropy.shape == (0,)
    assert (weight.grad == 0).all()


def test_least_memory_without_hidden_along(triton_device, monkeypatch):
    """Hidden's gradient by rows, where its float32 would be large, is that made with the slices."""
    *tensors, targets = make(torch.float32, with_bias=True)

    def compute(h, w, b):
        logp, entropy = linear_logprob(
            h,
            w,
            targets.to(h.device),
            bias=b,
            return_entropy=True,
            memory_mode="low",
            backend="triton",
        )
        return (), (logp * torch.linspace(-1, 1, N).to(logp) + entropy).sum()

    along = run(compute, tensors, torch.float32, triton_device)
    monkeypatch.setattr(linear_triton, "LOW_HIDDEN_BYTES", 0)
    apart = run(compute, tensors, torch.float32, triton_device)
    for a, b in zip(along, apart, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_slices_fit_the_cache_and_fill_the_processors(monkeypatch):
    monkeypatch.setattr(row_exp, "BLOCK", 1024)
    monkeypatch.setattr(linear_triton, "SLICE_BYTES", 40 << 20)
    # 22 x 12 tiles are two rounds of 132 processors, 16 x 16 nearly so.
    assert linear_triton.slice_columns(2816, 151936, 132) == 3072
    assert linear_triton.slice_columns(2048, 151936, 132) == 4096
    # Never less than a block, nor much more than the vocabulary.
    assert linear_triton.slice_columns(10**6, 151936, 132) == 1024
    assert linear_triton.slice_columns(128, 507, 132) == 512


@pytest.mark.parametrize("loss_type", ["dapo", "cispo", "sapo"])
@pytest.mark.parametrize("memory_mode", ["fast", "low"])
def test_nan_of_the_loss_shows_in_its_gradient(
    loss_type, memory_mode, rows_of_nan_gradient, triton_device
):
    for name, rows in {
        "advantages": [6, 7, 8, 9, 10, 11],
        "old_logprobs": [8],
        "ref_logprobs": [8],
    }.items():
        found = rows_of_nan_gradient(name, loss_type, memory_mode, "triton", triton_device)
        assert found == rows, name
