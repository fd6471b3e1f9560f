"""The single-tile attention in Triton against fp64: at most twice the error of the reference in the same dtype."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tdlm_fast.kernels.ops import attention as A
from tests.kernels.triton.machine import DEVICE, HALVES


def problem(T, K, dtype, padding=False, documents=False, dropout=False):
    B, H = 2, 3 if T < 50 else 1
    g = torch.Generator().manual_seed(T + K)
    qkv = torch.randn(B, T, 3, H, K, generator=g).to(DEVICE, dtype).permute(2, 0, 3, 1, 4)  # the model's strides
    dout = torch.randn(B, H, T, K, generator=g).to(DEVICE, dtype)
    valid = torch.arange(T) < torch.tensor([[T], [T // 2]]) if padding else None  # T = 1: a row of padding alone
    segments = torch.randint(0, 3, (B, T), generator=g).sort(1)[0] if documents else None
    key = torch.tensor([3_000_000_000, 5], device=DEVICE) if dropout else None  # words past 2^31 too
    move = [None if a is None else a.to(DEVICE) for a in (valid, segments)]
    return qkv, dout, (*move, key)


def answers(of, qkv, dout, dtype):
    inputs = [a.detach().to(dtype).requires_grad_() for a in qkv]
    out = of(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, dout.to(dtype))]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("T, K", [(1, 16), (7, 12), (60, 40), (100, 16), (128, 32)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", ["plain", "padding", "documents", "both, dropout", "turned", "turned, both, dropout"])
def test_forward_and_every_gradient(T, K, causal, mask, dtype):
    dropout, rope = 0.1 if "dropout" in mask else 0.0, "turned" in mask
    both = "both" in mask
    qkv, dout, rest = problem(T, K, dtype, both or mask == "padding", both or mask == "documents", bool(dropout))
    compare(qkv, dout, dtype, *rest, causal, dropout, rope)


def compare(qkv, dout, dtype, *rest):
    of = lambda *a: A.attention_ref(*a, *rest)  # noqa: E731
    truth, theirs = answers(of, qkv, dout, torch.float64), answers(of, qkv, dout, dtype)
    mine = answers(lambda *a: A.tile_attention(*a, *rest), qkv, dout, dtype)
    for name, m, t, exact in zip(("out", "dq", "dk", "dv"), mine, theirs, truth, strict=True):
        # The kernel rounds the turned q and k, the probabilities and their gradient to dtype, each by up to eps / 2.
        # The reference computes them in fp32. An eps of fp16 is an eighth of one of bf16.
        rounding = 1.5 * torch.finfo(dtype).eps * exact.abs().max()
        error, allowed = (m - exact).abs().max(), 2 * (t - exact).abs().max() + rounding + 1e-4
        assert m.dtype == dtype and error <= allowed, (name, error, allowed)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.integers(1, 40), st.integers(1, 20), st.booleans(), st.booleans(), st.booleans(), st.booleans(),
    st.sampled_from((0.0, 0.3)), st.sampled_from(HALVES),
)  # fmt: skip
def test_any_shape_and_mask(T, half, causal, padding, documents, rope, dropout, dtype):
    qkv, dout, rest = problem(T, 2 * half, dtype, padding, documents, bool(dropout))
    compare(qkv, dout, dtype, *rest, causal, dropout, rope)


def test_dropout_drops_its_share_and_both_passes_the_same_entries():
    """v = identity makes out the dropped probabilities; dv of a unit gradient must be their transpose."""
    T, p = 32, 0.25
    q = torch.zeros(1, 2, T, T, device=DEVICE, dtype=torch.float16)  # every probability is 1 / T
    v = torch.eye(T, device=DEVICE, dtype=torch.float16).expand(1, 2, T, T).clone().requires_grad_()
    key = torch.tensor([9, 2**32 - 1], device=DEVICE)
    out = A.tile_attention(q, q, v, None, None, key, False, p)
    dropped = out == 0
    share = dropped.double().mean().item()
    assert abs(share - p) < 5 * (p * (1 - p) / dropped.numel()) ** 0.5
    torch.testing.assert_close(out[~dropped], torch.full_like(out[~dropped], 1 / T / (1 - p)))
    (dv,) = torch.autograd.grad(out, v, torch.eye(T, device=DEVICE, dtype=torch.float16).expand_as(out))
    torch.testing.assert_close(dv, out.mT)
    words = A.dropped_words(1, 2, T, key)
    assert torch.equal(dropped, (words >> 1) < round(p * 2**31))
    assert not torch.equal(dropped, A.tile_attention(q, q, v, None, None, key + 1, False, p) == 0)


@pytest.mark.parametrize("causal", [False, True])
def test_a_token_never_sees_what_is_masked(causal):
    """Keys of padding and of other documents may hold anything, and the rest stays as it was."""
    (q, k, v), dout, (valid, segments, _) = problem(48, 16, torch.float16, True, True)
    poisoned = [torch.where(valid[:, None, :, None], a, 999.0) for a in (k, v)]
    of = lambda k, v: A.tile_attention(q, k, v, valid, segments, None, causal, 0.0)  # noqa: E731
    rows = valid[:, None, :, None].expand_as(q)
    assert torch.equal(of(k, v)[rows], of(*poisoned)[rows])
    first = (segments == segments[:, :1])[:, None, :, None]
    other = [torch.where(first, a, -a) for a in (k, v)]
    seen = (first & valid[:, None, :, None]).expand_as(q)
    assert torch.equal(of(k, v)[seen], of(*other)[seen])


def test_opcheck():
    (q, k, v), dout, rest = problem(20, 16, torch.float16, True, True, True)
    inputs = [a.detach().requires_grad_() for a in (q, k, v)]
    torch.library.opcheck(A.tile_attention, (*inputs, *rest, True, 0.1))
    torch.library.opcheck(A.tile_attention_backward, (dout, q, k, v, *rest, True, 0.1))
    torch.library.opcheck(A.tile_attention, (*inputs, *rest, True, 0.1, True))
