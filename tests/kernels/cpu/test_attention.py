"""The CPU's attention kernels against fp64: at most twice the error of the torch reference in the same dtype."""

import os

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tdlm_fast.kernels import attention
from tdlm_fast.kernels.cpu import library as native
from tdlm_fast.kernels.ops.attention import attention_ref, tile_attention, tile_attention_backward

pytestmark = pytest.mark.slow

CASES = {  # B, H, T, K
    "tiny": (2, 4, 128, 16), "one token": (2, 2, 1, 8), "odd": (2, 3, 37, 5), "blocks": (1, 2, 200, 64),
    "wide": (1, 1, 70, 96),
}  # fmt: skip


@pytest.fixture(params=[n for n in native.available() if n != "avx512_bf16"])  # whose attention is avx512's
def isa(request):
    native.use(request.param)
    yield request.param
    native.use(os.environ.get("TDLM_CPU_ISA"))


def inputs(case, mask, dtype=torch.float32, scale=1.5):
    B, H, T, K = CASES[case]
    g = torch.Generator().manual_seed(T + K)
    # As the model has them: three views of one projection, heads beside each other.
    q, k, v = (torch.randn(B, T, 3, H, K, generator=g) * scale).to(dtype).permute(2, 0, 3, 1, 4)
    dout = torch.randn(B, H, T, K, generator=g).to(dtype)
    valid = torch.arange(T) < torch.randint(1, T + 1, (B, 1), generator=g) if "padding" in mask else None
    segments = (torch.arange(T) // 7).expand(B, T) if "documents" in mask else None
    return q, k, v, dout, valid, segments


def answers(of, q, k, v, dout):
    q, k, v = (a.detach().requires_grad_() for a in (q, k, v))
    out = of(q, k, v)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), dout)]


@pytest.mark.parametrize("dtype, dropout", [(torch.float32, 0.3), (torch.bfloat16, 0.0)])
@pytest.mark.parametrize("mask", ["", "padding", "causal padding", "documents", "causal documents padding"])
@pytest.mark.parametrize("case", CASES)
def test_error_is_at_most_twice_the_references(isa, case, mask, dropout, dtype):
    q, k, v, dout, valid, segments = inputs(case, mask, dtype)
    key = torch.tensor([2**32 - 7, 12345])
    more = (valid, segments, key, "causal" in mask, dropout, CASES[case][3] % 2 == 0 and "documents" not in mask)
    truth = answers(lambda *a: attention_ref(*a, *more), *(a.double() for a in (q, k, v, dout)))
    native.use(isa)
    ours = answers(lambda *a: tile_attention(*a, *more), q, k, v, dout)
    native.use("none")
    theirs = answers(lambda *a: tile_attention(*a, *more), q, k, v, dout)
    for a, b, true in zip(ours, theirs, truth, strict=True):
        assert a.dtype == dtype and a.shape == true.shape and a.stride() == b.stride()
        assert (a - true).abs().max() <= 2 * (b - true).abs().max() + 2e-6 * (1 + true.abs().max())


def test_it_is_what_pytorch_computes(isa):
    for mask in ("", "causal"):
        q, k, v, *_ = inputs("tiny", mask)
        theirs = F.scaled_dot_product_attention(q, k, v, is_causal=bool(mask))
        torch.testing.assert_close(attention(q, k, v, causal=bool(mask)), theirs, rtol=1e-4, atol=1e-5)


def test_extreme_scores_stay_finite_and_exact(isa):
    q, k, v, dout, *_ = inputs("tiny", "", scale=60.0)
    of = (None, None, None, False, 0.0)
    truth = answers(lambda *a: attention_ref(*a, *of), *(a.double() for a in (q, k, v, dout)))
    for mine, true in zip(answers(lambda *a: tile_attention(*a, *of), q, k, v, dout), truth, strict=True):
        assert mine.isfinite().all() and (mine - true).abs().max() <= 1e-3 * (1 + true.abs().max())


def test_dropout_is_the_references_bit_for_bit_and_drops_its_share(isa):
    B, H, T, K = 2, 4, 128, 128
    q = k = torch.zeros(B, H, T, K)
    v = torch.eye(T).expand(B, H, T, T)  # so that the output is P itself
    key = torch.tensor([5, 6])
    ours = tile_attention(q, k, v, None, None, key, False, 0.25)
    assert torch.equal(ours == 0, attention_ref(q, k, v, None, None, key, False, 0.25) == 0)
    share = (ours == 0).double().mean().item()
    assert abs(share - 0.25) < 5 * (0.25 * 0.75 / ours.numel()) ** 0.5
    other = tile_attention(q, k, v, None, None, torch.tensor([5, 7]), False, 0.25)
    assert abs(((ours == 0) & (other == 0)).double().mean() - 0.25**2) < 0.003  # another key, other bits


def test_no_bit_depends_on_the_number_of_threads(isa):
    q, k, v, dout, valid, _ = inputs("tiny", "padding", torch.bfloat16)
    threads, runs = torch.get_num_threads(), []
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            of = (valid, None, torch.tensor([1, 2]), True, 0.1)
            runs.append(answers(lambda *a: tile_attention(*a, *of), q, k, v, dout))  # noqa: B023
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(0, 3), st.integers(0, 3), st.integers(0, 70), st.integers(0, 40), st.booleans(), st.booleans(),
    st.sampled_from(native.available() or ["none"]), st.sampled_from((1.0, 1e30, float("inf"), float("nan"))),
)  # fmt: skip
def test_hostile_inputs_never_crash(B, H, T, K, causal, bf16, isa, scale):
    """Any shape and magnitude, and views of any stride: an answer of the right shape or ValueError."""
    native.use(isa)
    try:
        make = lambda: (torch.randn(T, B, 2 * K, H) * scale).to(torch.bfloat16 if bf16 else torch.float32)  # noqa: E731
        q, k, v = (make().permute(1, 3, 0, 2)[..., ::2] for _ in range(3))
        if K == 0 or q.numel() == 0:
            return
        out = tile_attention(q, k, v, None, None, torch.tensor([-1, 2**40]), causal, 0.5)
        grads = tile_attention_backward(out, q, k, v, None, None, torch.tensor([0, 0]), causal, 0.0)
        assert out.shape == (B, H, T, K) and all(g.shape == out.shape for g in grads)
        assert scale != 1 or out.isfinite().all()
    finally:
        native.use(os.environ.get("TDLM_CPU_ISA"))


def test_shapes_that_do_not_fit_are_an_error(isa):
    q = torch.randn(2, 2, 8, 16)
    with pytest.raises(ValueError, match="must be even"):
        tile_attention(*[torch.randn(2, 2, 8, 5)] * 3, None, None, None, False, 0.0, True)
    for change in ({1: q[:, :1]}, {2: q.double()}, {3: torch.ones(2, 7, dtype=torch.bool)}):
        good = [q, q, q, None, None, None, False, 0.0]
        with pytest.raises(ValueError):
            tile_attention(*(change.get(i, a) for i, a in enumerate(good)))
