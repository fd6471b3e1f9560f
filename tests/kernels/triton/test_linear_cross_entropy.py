"""The linear cross-entropy in Triton against fp64: at most twice the error of the torch reference in the same dtype."""

import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.race.cases import LCE, Lce
from tdlm_fast.kernels import hardware, linear_cross_entropy
from tdlm_fast.kernels.ops.linear_cross_entropy import lce_backward_rows, lce_backward_weight, lce_forward
from tdlm_fast.kernels.triton import linear_cross_entropy_chunked as lce_stored
from tdlm_fast.kernels.triton import tiles
from tests.kernels.triton.machine import DEVICE, DTYPES, ON_GPU, TTSEM

SMALL = [c for c in LCE if c.N * c.V < 200_000 or ON_GPU]
# ttsem is fast enough for some rows of the whole vocabulary, the interpreter is not.
SMALL += [Lce("few rows, whole vocabulary", 40, 64, 50257, valid_vocab=50256, n_rows=33)] * TTSEM


def answers(h, w, weights, of):
    h, w = h.clone().requires_grad_(), w.clone().requires_grad_()
    nll = of(h, w)
    return [nll.detach(), *torch.autograd.grad(nll, (h, w), weights.to(nll.dtype))]


def ours(case: Lce, dtype, device, fill=None):
    h, w, y, weights, n_rows = case.inputs(dtype, device)
    if n_rows is not None and fill is not None:
        h[case.live :] = fill
    of = functools.partial(
        linear_cross_entropy, targets=y, valid_vocab=case.valid_vocab, n_rows=n_rows, reduction="none"
    )
    return answers(h, w, weights, of)


@functools.cache
def truth_and_reference(case: Lce, dtype, device):
    h, w, y, weights, _ = case.inputs(dtype, device)
    live = torch.arange(case.N, device=device) < case.live

    def plain(h, w):
        return F.cross_entropy((h @ w.T)[:, : case.valid_vocab].to(torch.promote_types(h.dtype, torch.float32)), y,
                               reduction="none") * live  # fmt: skip

    return answers(h.double(), w.double(), weights * live, plain), answers(h, w, weights * live, plain)


def compare(case, dtype, device, fill=float("nan")):
    truth, reference = truth_and_reference(case, dtype, device)
    h, w, *_ = case.inputs(dtype, device)
    size = [x.abs().max().item() if x.numel() else 0 for x in (h.float() @ w.float().T, w, h)]
    noise = 3e-7 * (1 + size[0])  # of fp32 logits
    scales = (1, 1000 * size[1], 1000 * size[2])
    for mine, theirs, true, scale in zip(ours(case, dtype, device, fill), reference, truth, scales, strict=True):
        assert mine.dtype == theirs.dtype and mine.shape == theirs.shape
        if true.numel():
            # dh is rounded to its type twice: for an upstream gradient of 1, and for the true one.
            rounding = torch.finfo(mine.dtype).eps * true.abs().max()
            assert (mine - true).abs().max() <= 2 * (theirs - true).abs().max() + noise * scale + rounding


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_error_is_at_most_twice_torchs(case, dtype, device):
    compare(case, dtype, device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["wide", "some rows", "extreme logits", "all alike"])
def test_the_stored_form_is_as_accurate(name, dtype, device, monkeypatch):
    monkeypatch.setattr(tiles, "MAX_FUSED_WIDTH", 0)
    monkeypatch.setattr(tiles, "CHUNK_BYTES", 1)
    compare(next(c for c in LCE if c.name == name), dtype, device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_a_weighted_sum_of_the_stored_form_is_as_accurate(case, dtype, device, monkeypatch):
    """Three products of one softmax: the loss, and both gradients with the tokens' weights in them."""
    monkeypatch.setattr(tiles, "MAX_FUSED_WIDTH", 0)
    monkeypatch.setattr(tiles, "CHUNK_BYTES", 1)
    h, w, y, weights, n_rows = case.inputs(dtype, device)
    h[case.live :], live = 7.0, torch.arange(case.N, device=device) < case.live
    h, w = h.float(), w.float()  # whose products are of dtype
    weights[case.live :] = float("nan")

    def gradients(of, h, w):
        h, w = h.clone().requires_grad_(), w.clone().requires_grad_()
        with torch.autocast(device, dtype, enabled=dtype != torch.float32 and h.dtype != torch.float64):
            loss = of(h, w)
        return [loss.detach(), *torch.autograd.grad(loss * 0.5, (h, w))]

    def plain(h, w):
        z = (h @ w.T)[:, : case.valid_vocab]
        z = z.to(torch.promote_types(h.dtype, torch.float32))
        return (F.cross_entropy(z, y, reduction="none") * torch.where(live, weights, 0.0)).sum()

    def mine(h, w):
        return linear_cross_entropy(h, w, y, weights, valid_vocab=case.valid_vocab, n_rows=n_rows)

    sums = []
    monkeypatch.setattr(lce_stored, "loss_sum", lambda *a, real=lce_stored.loss_sum: sums.append(1) or real(*a))
    truth, theirs = gradients(plain, h.double(), w.double()), gradients(plain, h, w)
    if case.live < case.N:
        h[case.live :] = float("nan")
    size = [x[: case.live].abs().max().item() if case.live else 0 for x in (h.float() @ w.float().T, w, h)]
    noise = 3e-7 * (1 + size[0]) * 1000  # of fp32 logits, times the largest weight
    found = gradients(mine, h, w)
    assert len(sums) == (case.N > 0)
    for scale, m, t, exact in zip((case.N, size[1], size[2]), found, theirs, truth, strict=True):
        assert m.dtype == torch.float32 and not m.requires_grad
        if exact.numel():
            rounding = 2 * torch.finfo(dtype).eps * exact.abs().max()
            assert (m - exact).abs().max() <= 2 * (t - exact).abs().max() + rounding + noise * scale


def case(name, dtype=torch.float32, device="cpu"):
    found = next(c for c in LCE if c.name == name)
    return found, *found.inputs(dtype, device)


def test_weights_of_zero_and_rows_past_the_count_give_exactly_zero(device):
    found, h, w, *_ = case("some rows", torch.float16, device)
    nll, dh, _ = ours(found, torch.float16, device)
    assert nll[found.live :].eq(0).all() and dh[found.live :].eq(0).all() and dh[::3].eq(0).all()
    assert ours(next(c for c in LCE if c.name == "no weight"), torch.float16, device)[2].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_gradients_past_the_count_may_hold_anything(dtype, device):
    _, h, w, y, _, n = case("some rows", dtype, device)
    g = torch.rand(len(y), device=device) + 0.5
    lse, dh = lce_forward(h, w, y, n, 301, dtype, True)[1:]
    clean, wild = g.clone(), g.clone()
    clean[int(n) :], wild[int(n) :] = 0, float("nan")
    dw = [lce_backward_weight(h, w, y, lse, a, n, 301, dtype) for a in (clean, wild)]
    assert torch.equal(*dw) and dw[0].isfinite().all()
    found = lce_backward_rows(dh, wild, n)
    truth = (dh.double() * clean.double()[:, None]).to(dtype)
    torch.testing.assert_close(found, truth, rtol=torch.finfo(dtype).eps, atol=0)
    assert torch.equal(lce_backward_rows(dh, clean, None), found)
    with pytest.raises(ValueError, match="must be"):
        lce_backward_rows(dh, wild[:3], n)
    torch.library.opcheck(lce_backward_rows, (dh, clean, n))


def test_two_runs_give_the_same_bits(device):
    runs = [ours(next(c for c in LCE if c.name == "wide"), torch.float16, device) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_tiny_gradients_survive_fp16(device):
    """A loss divided by its tokens has gradients that fp16 cannot hold; the products are scaled for it."""
    _, h, w, y, *_ = case("odd width", torch.float16, device)
    of = functools.partial(linear_cross_entropy, targets=y, reduction="none")
    small, large = (answers(h, w.float(), torch.full((len(y),), g, device=device), of)[2] for g in (2**-24, 0.125))
    torch.testing.assert_close(small * 2**24, large * 8, rtol=1e-5, atol=1e-6)


def test_a_target_outside_the_vocabulary_is_nan_and_reads_nothing(device):
    _, h, w, y, *_ = case("wide", torch.float32, device)
    lse = lce_forward(h, w, y, None, 500, torch.float32, False)[1]
    good = lce_forward(h, w, y, None, 500, torch.float32, True)
    for bad in (-1, -(2**40), 500, 514, 2**31 - 1, 2**40):
        wrong = y.clone()
        wrong[3] = bad
        found = lce_forward(h, w, wrong, None, 500, torch.float32, True)
        assert found[0][3].isnan() and found[2][3].isnan().all()
        rest = torch.arange(len(y), device=device) != 3
        assert all(torch.equal(a[rest], b[rest]) for a, b in zip(found, good, strict=True))
        assert torch.equal(found[1], lse)
        dw = lce_backward_weight(h, w, wrong, lse, torch.ones_like(lse), None, 500, torch.float32)
        assert dw.isfinite().all() and dw[500:].eq(0).all()


def test_a_target_out_of_range_makes_a_weighted_sum_nan(device):
    _, h, w, y, *_ = case("wide", torch.float32, device)
    for bad in (-1, 500, 2**40):
        wrong, weights = y.clone(), torch.ones(len(y), device=device)
        wrong[3] = bad
        loss, dh, dw = lce_stored.loss_sum(h, w, wrong, weights, None, 500, torch.float32)
        assert loss.isnan() and dh[3].isnan().all() and dh[4:].isfinite().all() and dw[:500].isnan().all()
        weights[3] = 0
        _, dh, dw = lce_stored.loss_sum(h, w, wrong, weights, None, 500, torch.float32)
        assert dh.isfinite().all() and dw.isfinite().all()


def test_fp16_sums_are_close_and_only_where_asked(device, monkeypatch):
    if not ON_GPU:
        monkeypatch.setattr(hardware, "INTERPRETER", hardware.Card((8, 6), 4))
    elif tiles.card(torch.cuda.get_device_capability()) not in tiles.GEFORCE:
        pytest.skip("this card adds in fp32 at the full rate")
    found = next(c for c in LCE if c.name == "some rows")
    monkeypatch.setenv("TDLM_FP16_ACCUMULATE", "1")
    half = ours(found, torch.float16, device)
    monkeypatch.delenv("TDLM_FP16_ACCUMULATE")
    single, truth = ours(found, torch.float16, device), truth_and_reference(found, torch.float16, device)[0]
    assert not torch.equal(half[1], single[1])
    for a, b in zip(half, truth, strict=True):
        assert (a - b).norm() <= 4e-3 * b.norm()


def test_inputs_of_two_types(device):
    _, h, w, y, weights, _ = case("wide", torch.float16, device)
    of = functools.partial(linear_cross_entropy, targets=y, reduction="none")
    same = answers(h, w, weights, of)
    with torch.autocast(device, torch.float16):
        mixed = answers(h, w.float(), weights, of)
    assert torch.equal(mixed[0], same[0]) and torch.equal(mixed[1], same[1])
    assert mixed[2].dtype == torch.float32 and torch.equal(mixed[2].half(), same[2])


def test_shapes_that_do_not_fit_are_an_error(device):
    _, h, w, y, g, _ = case("wide", torch.float32, device)
    for args in ((h, w[:, :3], y), (h, w, y[:3])):
        with pytest.raises(ValueError, match="do not fit"):
            lce_forward(*args, None, 500, torch.float32, True)
    with pytest.raises(ValueError, match="do not fit"):
        lce_backward_weight(h, w, y, g[:3], g, None, 500, torch.float32)


def test_ops_pass_opcheck(device):
    _, h, w, y, g, n = case("some rows", torch.float32, device)
    h, w = h[:20].clone().requires_grad_(), w.requires_grad_()
    torch.library.opcheck(lce_forward, (h, w, y[:20], n - 50, 300, torch.float32, True))
    lse = lce_forward(h, w, y[:20], None, 300, torch.float32, False)[1].detach()
    torch.library.opcheck(lce_backward_weight, (h.detach(), w.detach(), y[:20], lse, g[:20], n, 300, torch.float32))


@settings(max_examples=14, deadline=None, derandomize=True)
@given(
    st.integers(1, 80), st.integers(1, 70), st.integers(1, 140), st.integers(-2, 100), st.sampled_from(DTYPES),
    st.sampled_from((0.01, 1.0, 30.0)), st.booleans(),
)  # fmt: skip
def test_any_shape_is_as_accurate(N, D, V, n, dtype, scale, padded_vocabulary):
    valid = max(1, V - 3) if padded_vocabulary else V
    found = Lce("drawn", N, D, V, valid_vocab=valid, n_rows=max(0, min(n, N)), scale=scale)
    compare(found, dtype, DEVICE)
