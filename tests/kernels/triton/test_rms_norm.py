"""RMSNorm with and without the addition of the residual, against fp64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.race.cases import NORM, Gate, Norm
from tdlm_fast.kernels import add_rms_norm
from tdlm_fast.kernels.ops import rms_norm as rms_norm_ops
from tdlm_fast.kernels.ops.rms_norm import (
    PARTS,
    _Spread,
    add_rms_norm_backward,
    add_rms_norm_forward,
    rms_norm_backward,
    rms_norm_forward,
)
from tdlm_fast.kernels.ops.swiglu import swiglu_backward, swiglu_forward
from tdlm_fast.kernels.triton import rms_norm as rms_norm_triton
from tests.kernels.triton.accuracy import compare
from tests.kernels.triton.machine import DEVICE

# Triton's interpreter is right in bf16 where nothing is multiplied as matrices.
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
EPS = 1e-6


def ours(x, w, a=None):
    if a is None:
        return [rms_norm_forward(x, w, EPS)]
    s, y = add_rms_norm_forward(x, a, w, EPS, x.dtype)
    return [y, s]


def plain(x, w, a=None):
    s = x if a is None else x + a
    y = F.rms_norm(s, w.shape, w, EPS)
    return [y] if a is None else [y, s]


def gate(x):
    g, u = x.chunk(2, -1)
    return [F.silu(g) * u]


# The interpreter takes half a minute for the case of many programs: one dtype of it is enough there.
NORMS = [(c, d) for c in NORM for d in DTYPES if d == torch.float32 or c.name != "many programs" or DEVICE == "cuda"]


@pytest.mark.parametrize("case, dtype", NORMS, ids=str)
def test_norm(case, dtype):
    compare(ours, plain, *case.inputs(dtype, DEVICE))


@pytest.mark.parametrize("eps", [1e-6, 1e-5])
def test_eps_counts_where_rows_are_small(eps):
    (x, w, a), (dy, ds) = Norm("", 9, 48, add=True).inputs(torch.float32, DEVICE)
    inputs = [t.detach().requires_grad_() for t in (x * 1e-3, w, a * 1e-3)]
    s, y = add_rms_norm_forward(*(inputs[i] for i in (0, 2, 1)), eps, torch.float32)
    truth = F.rms_norm(inputs[0] + inputs[2], w.shape, inputs[1], eps)
    torch.testing.assert_close(y, truth, rtol=1e-5, atol=1e-5)
    mine, theirs = (torch.autograd.grad(out, inputs, dy) for out in (y, truth))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())


SCALES = st.sampled_from((0.1, 1.0, 9.0))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(1, 70), st.integers(1, 140), st.sampled_from(DTYPES), SCALES, st.booleans())
def test_any_shape_is_as_accurate(N, D, dtype, scale, add):
    compare(ours, plain, *Norm("drawn", N, D, add, scale).inputs(dtype, DEVICE))
    x, dy = Gate("drawn", N, D, scale).inputs(dtype, DEVICE)
    compare(lambda x: [swiglu_forward(x)], gate, [x], [dy])


@pytest.mark.parametrize("add", [False, True])
def test_as_autocast_trains(add):
    """x in fp32, a and y in 16 bits: y and a's gradient are rounded once, from what fp32 gives."""
    (x, w, a), (dy, ds) = Norm("", 70, 48, add=True).inputs(torch.float32, DEVICE)
    a, dy = a.half(), dy.half()
    inputs = [t.requires_grad_() for t in ((x, w, a) if add else (x, w))]
    with torch.autocast(DEVICE, torch.float16):
        s, y = add_rms_norm(x, a if add else None, w, EPS, narrow=True)
        assert add_rms_norm(x, None, w, EPS)[1].dtype == torch.float32
    assert (s is x) != add and s.dtype == torch.float32 and y.dtype == torch.float16
    grads = torch.autograd.grad((s, y) if add else (y,), inputs, (ds, dy) if add else (dy,))
    exact = [t.detach().double().requires_grad_() for t in inputs]
    truth = plain(*exact)
    wide = torch.autograd.grad(truth, exact, [t.double() for t in ((dy, ds) if add else (dy,))])
    for mine, true in zip((y, *grads), (truth[0], *wide), strict=True):
        eps = torch.finfo(mine.dtype).eps
        assert (mine - true).abs().le(eps * true.abs() + 2e-5).all()
    assert [g.dtype for g in grads] == [t.dtype for t in inputs]


def test_a_gradient_of_the_sum_alone_passes_through():
    (x, w, a), (_, ds) = Norm("", 5, 16, add=True).inputs(torch.float32, DEVICE)
    x, a = x.requires_grad_(), a.half().requires_grad_()
    s, _ = add_rms_norm_forward(x, a, w, EPS, torch.float16)
    dx, da = torch.autograd.grad(s, (x, a), ds)
    assert torch.equal(dx, ds) and torch.equal(da, ds.half())


def test_dw_is_the_same_bits_every_run_and_holds_every_row():
    (x, w), (dy,) = Norm("", 3000, 16).inputs(torch.float32, DEVICE)
    runs = [rms_norm_backward(dy, x, w, EPS) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert -(-3000 // rms_norm_triton.launch(16)["ROWS"]) < PARTS  # one tile a program here
    for row in (0, 63, 64, 2999):  # each row reaches dw
        one = torch.zeros_like(dy)
        one[row] = 1
        assert (rms_norm_backward(one, x, w, EPS)[1] != 0).all()


@pytest.mark.parametrize("N", [5, 3000])
def test_parts_of_dw_that_are_left_apart_add_up(N, monkeypatch):
    """The gradients of spread weights, of two norms, against fp64; more parts than tiles of rows, and fewer."""
    (x, w, a), (dy, ds) = Norm("", N, 48, add=True).inputs(torch.float32, DEVICE)
    monkeypatch.setattr(rms_norm_ops, "PARTS", 12)
    weights = [w.clone().requires_grad_(), (2 * w).requires_grad_()]
    first, second = _Spread.apply(*weights)
    assert first.shape == (12, 48) and first.data_ptr() == weights[0].data_ptr()
    parts = [add_rms_norm_backward(dy, ds, x, v, EPS, None)[2] for v in (w, w.expand(12, -1))]
    assert parts[1].shape == (12, 48) and torch.allclose(parts[0], parts[1].sum(0), rtol=1e-5, atol=1e-4)
    assert (parts[1].abs().sum(1) > 0).sum() > 1 or N < rms_norm_triton.launch(48)["ROWS"]

    def loss(x, a, first, second):
        s, y = add_rms_norm(x, a, first, EPS)
        return [(y * dy.to(y) + s * ds.to(s)).sum() + (add_rms_norm(y, None, second, EPS)[1] * ds.to(y)).sum()]

    mine = torch.autograd.grad(loss(x, a, first, second), weights)
    wide = [t.detach().double().requires_grad_() for t in weights]
    truth = torch.autograd.grad(loss(x.double(), a.double(), *wide), wide)
    theirs = torch.autograd.grad(loss(x, a, *weights), weights)
    for m, t, true in zip(mine, theirs, truth, strict=True):
        assert (m - true).abs().max() <= 2 * (t - true).abs().max() + 1e-6 * true.abs().max()


def test_padding_adds_nothing_where_eps_is_0():
    (x, w), (dy,) = Norm("", 3, 20).inputs(torch.float32, DEVICE)
    dx, dw = rms_norm_backward(dy, x, w, 0.0)
    assert dx.isfinite().all() and dw.isfinite().all()


def test_rows_that_lie_apart():
    x, dy = Gate("", 24, 20).inputs(torch.float32, DEVICE)
    far, dfar = x.T.contiguous().T, dy.T.contiguous().T
    w = torch.rand(40, device=DEVICE)
    assert not far.is_contiguous() and torch.equal(swiglu_forward(far), swiglu_forward(x))
    assert torch.equal(swiglu_backward(dfar, far), swiglu_backward(dy, x))
    assert torch.equal(rms_norm_forward(far, w, EPS), rms_norm_forward(x, w, EPS))


def test_what_does_not_fit_is_an_error():
    x, w = torch.randn(4, 32, device=DEVICE), torch.ones(32, device=DEVICE)
    for call in (
        lambda: rms_norm_forward(x, w[:31], EPS),
        lambda: rms_norm_backward(x[:3], x, w, EPS),
        lambda: add_rms_norm_forward(x, x[:3], w, EPS, x.dtype),
        lambda: add_rms_norm_backward(x, x[:3], x, w, EPS, None),
        lambda: swiglu_backward(x, x),
    ):
        with pytest.raises(ValueError, match="fit together|must be"):
            call()


def test_ops_pass_opcheck():
    (x, w, a), (dy, ds) = Norm("", 6, 24, add=True).inputs(torch.float32, DEVICE)
    leaves = [t.clone().requires_grad_() for t in (x, w, a)]
    torch.library.opcheck(rms_norm_forward, (leaves[0], leaves[1], EPS))
    torch.library.opcheck(rms_norm_backward, (dy, x, w, EPS))
    torch.library.opcheck(add_rms_norm_forward, (leaves[0], leaves[2], leaves[1], EPS, torch.float16))
    torch.library.opcheck(add_rms_norm_forward, (leaves[0], None, leaves[1], EPS, torch.float32))
    torch.library.opcheck(add_rms_norm_backward, (dy, ds, x, w, EPS, torch.float16))
    torch.library.opcheck(add_rms_norm_backward, (dy, None, x, w, EPS, None))
    torch.library.opcheck(add_rms_norm_backward, (dy, ds, x, w.expand(3, -1), EPS, None))
    torch.library.opcheck(swiglu_forward, (leaves[0],))
    torch.library.opcheck(swiglu_backward, (dy[:, :12], x))
