"""The linear cross-entropy in Triton against fp64: at most twice the error of the torch reference in the same dtype."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.race.cases import LCE, Lce
from tdlm_fast.kernels import hardware, linear_cross_entropy
from tdlm_fast.kernels.ops.linear_cross_entropy import lce_backward_rows, lce_backward_weight, lce_forward
from tdlm_fast.kernels.triton import tiles
from tests.kernels.triton.head_accuracy import SMALL, answers, case, compare, ours, truth_and_reference
from tests.kernels.triton.machine import DEVICE, DTYPES, ON_GPU


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_error_is_at_most_twice_torchs(case, dtype, device):
    compare(case, dtype, device)


def test_weights_of_zero_and_rows_past_the_count_give_exactly_zero(device):
    result, h, w, *_ = case("some rows", torch.float16, device)
    nll, dh, _ = ours(result, torch.float16, device)
    assert nll[result.live :].eq(0).all() and dh[result.live :].eq(0).all() and dh[::3].eq(0).all()
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
    result = lce_backward_rows(dh, wild, n)
    truth = (dh.double() * clean.double()[:, None]).to(dtype)
    torch.testing.assert_close(result, truth, rtol=torch.finfo(dtype).eps, atol=0)
    assert torch.equal(lce_backward_rows(dh, clean, None), result)
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
        result = lce_forward(h, w, wrong, None, 500, torch.float32, True)
        assert result[0][3].isnan() and result[2][3].isnan().all()
        rest = torch.arange(len(y), device=device) != 3
        assert all(torch.equal(a[rest], b[rest]) for a, b in zip(result, good, strict=True))
        assert torch.equal(result[1], lse)
        dw = lce_backward_weight(h, w, wrong, lse, torch.ones_like(lse), None, 500, torch.float32)
        assert dw.isfinite().all() and dw[500:].eq(0).all()


def test_fp16_sums_are_close_and_only_where_asked(device, monkeypatch):
    if not ON_GPU:
        monkeypatch.setattr(hardware, "INTERPRETER", hardware.Card((8, 6), 4))
    elif tiles.card(torch.cuda.get_device_capability()) not in tiles.GEFORCE:
        pytest.skip("this card adds in fp32 at the full rate")
    result = next(c for c in LCE if c.name == "some rows")
    monkeypatch.setenv("TDLM_FP16_ACCUMULATE", "1")
    half = ours(result, torch.float16, device)
    monkeypatch.delenv("TDLM_FP16_ACCUMULATE")
    single, truth = ours(result, torch.float16, device), truth_and_reference(result, torch.float16, device)[0]
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
    result = Lce("drawn", N, D, V, valid_vocab=valid, n_rows=max(0, min(n, N)), scale=scale)
    compare(result, dtype, DEVICE)
