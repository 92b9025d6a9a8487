"""linear_logprob: numbers worked out by hand, the full-logits reference, memory and rounding."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from sec_grpo.kernels import linear_chunked, reference
from sec_grpo.kernels.head import Head
from sec_grpo.ops import linear_logprob

HEADS = [
    {},
    {"temperature": 0.7, "logit_scale": 1.3},
    {"softcap": 3.0, "logit_scale": 0.5},
    {"softcap": 2.0, "temperature": "per token"},
]


PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)


class Recorder(TorchDispatchMode):
    """The largest output of any operation, and the number of matrix products.

    It does not look into custom operators.
    """

    def __init__(self):
        super().__init__()
        self.largest = 0
        self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.products += func.overloadpacket in PRODUCTS
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out


def make(num_tokens, num_hidden, num_vocab, dtype=torch.float64, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    hidden = scale * torch.randn(num_tokens, num_hidden, generator=generator, dtype=torch.float64)
    weight = torch.randn(num_vocab, num_hidden, generator=generator, dtype=torch.float64)
    bias = torch.randn(num_vocab, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, num_vocab, (num_tokens,), generator=generator)
    return hidden.to(dtype), weight.to(dtype), bias.to(dtype), targets


def constants(head, num_tokens):
    head = dict(head)
    if head.get("temperature") == "per token":
        head["temperature"] = torch.linspace(0.5, 2.0, num_tokens, dtype=torch.float64)
    return head


def test_by_hand():
    # logits 0, ln 2, ln 5: probabilities 1/8, 2/8, 5/8.
    weight = torch.tensor([[0.0], [math.log(2)], [math.log(5)]])
    hidden = torch.ones(3, 1)
    logp, entropy = linear_logprob(hidden, weight, torch.arange(3), return_entropy=True)
    torch.testing.assert_close(logp.exp(), torch.tensor([1.0, 2.0, 5.0]) / 8)
    # ln 8 - (2 ln 2 + 5 ln 5) / 8
    expected = math.log(8) - (2 * math.log(2) + 5 * math.log(5)) / 8
    torch.testing.assert_close(entropy, torch.full((3,), expected))


def test_gradient_by_hand():
    # d logp/d z = onehot - p = (-1/4, 3/4 - 0...) for probabilities 1/4, 3/4 and target 1;
    # the weight's gradient is that times h = 2, the state's sum z' W = 1/4 (ln 3)/2 - 0.
    weight = torch.tensor([[0.0], [math.log(3) / 2]], requires_grad=True)
    hidden = torch.tensor([[2.0]], requires_grad=True)
    linear_logprob(hidden, weight, torch.tensor([1])).sum().backward()
    torch.testing.assert_close(weight.grad, torch.tensor([[-0.5], [0.5]]))
    torch.testing.assert_close(hidden.grad, torch.tensor([[math.log(3) / 8]]))


def test_temperature_scale_cap_and_bias_in_their_order():
    # (1 * 3 + 1) * 2 = 8, capped 4 tanh(2), over 0.5; the other logit is 0.
    weight = torch.tensor([[3.0], [0.0]])
    logp = linear_logprob(
        torch.ones(1, 1),
        weight,
        torch.tensor([1]),
        bias=torch.tensor([1.0, 0.0]),
        logit_scale=2.0,
        softcap=4.0,
        temperature=0.5,
    )
    z = 4 * math.tanh(2) / 0.5
    torch.testing.assert_close(logp.item(), -math.log1p(math.exp(z)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("head", HEADS)
def test_gradcheck(head):
    hidden, weight, bias, targets = make(5, 3, 7)
    head = constants(head, 5)

    def call(*tensors):
        h, w, b = tensors
        return tuple(
            linear_logprob(h, w, targets, bias=b, return_entropy=True, chunk_size=2, **head)
        )

    leaves = [t.requires_grad_() for t in (hidden, weight, bias)]
    assert torch.autograd.gradcheck(call, leaves)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("num_vocab", [252, 507, 123])
@pytest.mark.parametrize("chunk", [1, 7, 13, 100, None])
def test_chunks_match_the_full_logits(head, num_vocab, chunk):
    hidden, weight, bias, targets = make(13, 5, num_vocab)
    head = constants(head, 13)
    grads = torch.linspace(-1, 1, 13, dtype=torch.float64)
    found = []
    for run in (reference.linear_logprob, linear_logprob):
        leaves = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
        extra = (
            {} if run is reference.linear_logprob else {"return_entropy": True, "chunk_size": chunk}
        )
        logp, entropy = run(*leaves[:2], targets, bias=leaves[2], **head, **extra)
        (logp @ grads + entropy @ grads.flip(0)).backward()
        found.append((logp, entropy, *(leaf.grad for leaf in leaves)))
    for expected, result in zip(*found, strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-12)


@given(
    num_tokens=st.integers(0, 20),
    num_vocab=st.integers(1, 40),
    chunk=st.integers(1, 25),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_any_chunk_size_gives_the_same(num_tokens, num_vocab, chunk, seed):
    hidden, weight, _, targets = make(num_tokens, 4, num_vocab, seed=seed)
    logp = linear_logprob(hidden, weight, targets, chunk_size=chunk)
    expected, _ = reference.linear_logprob(hidden, weight, targets)
    torch.testing.assert_close(logp, expected, rtol=1e-10, atol=1e-12)
    assert (logp <= 0).all()


@pytest.mark.parametrize("needs", list(itertools.product([False, True], repeat=3))[1:])
def test_every_subset_of_gradients(needs):
    names = ("hidden", "weight", "bias")
    hidden, weight, bias, targets = make(9, 4, 11)
    every = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
    some = [t.clone().requires_grad_(n) for t, n in zip((hidden, weight, bias), needs, strict=True)]
    for leaves in (every, some):
        logp = linear_logprob(leaves[0], leaves[1], targets, bias=leaves[2], chunk_size=4)
        logp.square().sum().backward()
    for name, need, full, part in zip(names, needs, every, some, strict=True):
        if need:
            torch.testing.assert_close(part.grad, full.grad, rtol=0, atol=0, msg=name)
        else:
            assert part.grad is None


@pytest.mark.parametrize(
    ("needs", "products"),
    # Of 4 chunks: logits; recomputed; the state's; the weight's.
    [((True, True), 16), ((True, False), 12), ((False, True), 12), ((False, False), 4)],
)
def test_only_needed_products_run_and_no_buffer_has_all_logits(needs, products):
    num_tokens, num_hidden, num_vocab, chunk = 128, 8, 1000, 32
    hidden, weight, _, targets = make(num_tokens, num_hidden, num_vocab, torch.float32)
    head = Head(None, 1.0, 1.0, None)
    with Recorder() as record, torch.no_grad():
        found = linear_chunked.logprob_forward(
            hidden, weight, targets, head, None, need_entropy=True, chunk_rows=chunk
        )
        if any(needs):
            ones = torch.ones(num_tokens)
            linear_chunked.logprob_backward(
                hidden,
                weight,
                targets,
                head,
                None,
                found,
                ones,
                ones,
                (*needs, False),
                chunk_rows=chunk,
                memory_mode="auto",
            )
    assert record.products == products
    assert record.largest == chunk * num_vocab
    with Recorder() as record:
        reference.linear_logprob(hidden, weight, targets)
    assert record.largest == num_tokens * num_vocab


def test_without_gradients_nothing_is_saved():
    hidden, weight, _, targets = make(6, 4, 9)
    with torch.no_grad():
        logp = linear_logprob(hidden.requires_grad_(), weight, targets)
    assert logp.grad_fn is None
    assert not logp.requires_grad


def test_default_chunks_are_sized_by_bytes():
    cpu = torch.device("cpu")
    # 128 MiB / (151936 * 4) = 220 rows; float64 half of it; never under 16.
    assert linear_chunked.default_chunk_rows(cpu, 151936, 4) == 220
    assert linear_chunked.default_chunk_rows(cpu, 151936, 8) == 110
    assert linear_chunked.default_chunk_rows(cpu, 10**9, 4) == 16


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_banned_tokens_leave_everything_finite(softcap):
    hidden, weight, bias, targets = make(20, 4, 12)
    bias[[2, 5, 11]] = -torch.inf
    allowed = [v for v in range(12) if v not in (2, 5, 11)]
    targets = torch.tensor(allowed)[targets % len(allowed)]
    leaves = [t.requires_grad_() for t in (hidden, weight, bias)]
    logp, entropy = linear_logprob(
        hidden, weight, targets, bias=bias, softcap=softcap, return_entropy=True, chunk_size=6
    )
    (logp.sum() + 0.3 * entropy.sum()).backward()
    # As if the vocabulary had only the others.
    position = torch.tensor([allowed.index(int(t)) for t in targets])
    kept = [t.detach().clone() for t in (hidden, weight[allowed], bias[allowed])]
    kept = [t.requires_grad_() for t in kept]
    expected, expected_entropy = reference.linear_logprob(
        kept[0], kept[1], position, bias=kept[2], softcap=softcap
    )
    (expected.sum() + 0.3 * expected_entropy.sum()).backward()
    torch.testing.assert_close(logp, expected)
    torch.testing.assert_close(entropy, expected_entropy)
    torch.testing.assert_close(hidden.grad, kept[0].grad)
    torch.testing.assert_close(weight.grad[allowed], kept[1].grad)
    assert all(leaf.grad.isfinite().all() for leaf in leaves)
    assert (weight.grad[[2, 5, 11]] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["random", "peaked", "uniform", "far"])
def test_error_is_at_most_twice_that_of_plain_torch(dtype, kind):
    """Against float64 of the same rounded inputs; random targets under "far" reach logp < -100."""
    scale = {"random": 0.3, "peaked": 2.0, "uniform": 0.0, "far": 12.0}[kind]
    hidden, weight, _, targets = make(96, 16, 507, dtype, seed=3, scale=scale)
    if kind == "peaked":
        targets = (hidden.double() @ weight.double().T).argmax(-1)
    upstream = torch.linspace(-1, 1, 96).double()

    def run(call, cast):
        leaves = [t.to(cast).requires_grad_() for t in (hidden, weight)]
        logp = call(*leaves)
        (logp * upstream.to(logp.dtype)).sum().backward()
        return [t.detach().double() for t in (logp, leaves[0].grad, leaves[1].grad)]

    def plain(h, w):
        logits = torch.nn.functional.linear(h, w).float()
        return torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0]

    truth = run(lambda h, w: reference.linear_logprob(h, w, targets)[0], torch.float64)
    if kind == "far":
        assert (truth[0] < -100).any()
    ours = run(lambda h, w: linear_logprob(h, w, targets, chunk_size=17), dtype)
    theirs = run(plain, dtype)
    for name, exact, a, b in zip(("logp", "dX", "dW"), truth, ours, theirs, strict=True):
        errors = [torch.linalg.vector_norm(value - exact).item() for value in (a, b)]
        # 1e-7: where plain torch happens to be exact, one float32 rounding of the norm is allowed.
        floor = 1e-7 * torch.linalg.vector_norm(exact).item()
        assert errors[0] <= 2 * errors[1] + floor, (name, errors)


def test_autocast_casts_like_a_linear_layer():
    hidden, weight, bias, targets = make(10, 6, 30, torch.float32)
    leaves = [t.requires_grad_() for t in (hidden, weight, bias)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logp = linear_logprob(hidden, weight, targets, bias=bias, chunk_size=3)
        logp.sum().backward()
    low = [t.detach().bfloat16() for t in leaves]
    expected = linear_logprob(low[0], low[1], targets, bias=low[2])
    assert logp.dtype == torch.float32
    torch.testing.assert_close(logp, expected, rtol=1e-6, atol=1e-6)
    assert all(leaf.grad.dtype == torch.float32 for leaf in leaves)


def test_three_dimensions_and_no_tokens():
    hidden, weight, _, targets = make(6, 4, 9)
    flat = linear_logprob(hidden, weight, targets)
    assert torch.equal(
        linear_logprob(hidden.view(2, 3, 4), weight, targets.view(2, 3)).view(6), flat
    )
    empty = hidden[:0].clone().requires_grad_()
    logp, entropy = linear_logprob(empty, weight, targets[:0], return_entropy=True)
    (logp.sum() + entropy.sum()).backward()
    assert logp.shape == entropy.shape == (0,)
    assert empty.grad.shape == (0, 4)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"backend": "triton"}, TypeError, "hidden must not be float64 with backend='triton'"),
        (
            {"backend": "fast"},
            ValueError,
            "backend must be 'auto', 'triton' or 'torch'",
        ),
        ({"memory_mode": "fast"}, ValueError, "memory_mode must be one of auto, low, got 'fast'"),
        ({"temperature": 0.0}, ValueError, "temperature must be finite, greater than 0, got 0.0"),
        ({"temperature": torch.ones(3)}, ValueError, r"temperature must have shape \(6,\)"),
        ({"temperature": torch.zeros(6)}, ValueError, "temperature must be above 0"),
        ({"softcap": -1.0}, ValueError, "softcap must be finite, greater than 0"),
        ({"logit_scale": 0}, ValueError, "logit_scale must be finite, greater than 0, got 0"),
        ({"chunk_size": 0}, ValueError, r"chunk_size must be an integer above 0 \(rows\), got 0"),
        ({"bias": torch.ones(8)}, ValueError, r"bias must have shape \(9,\) \(V of weight\)"),
        ({"weight": torch.ones(9, 4)}, TypeError, "weight must have the dtype of hidden"),
        ({"weight": torch.ones(9, 3).double()}, ValueError, "with D = 4 of hidden"),
        ({"targets": torch.zeros(6).int()}, TypeError, "targets must have dtype int64, got"),
        ({"targets": torch.zeros(5).long()}, ValueError, r"targets must have shape \(6,\)"),
        ({"targets": torch.full((6,), 9)}, ValueError, r"targets must be in \[0, 9\)"),
    ],
)
def test_errors_name_the_argument(kwargs, error, message):
    hidden, weight, _, targets = make(6, 4, 9)
    call = {"hidden": hidden, "weight": weight, "targets": targets, **kwargs}
    with pytest.raises(error, match=message):
        linear_logprob(**call)
