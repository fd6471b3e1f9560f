"""The native SwiGLU and RMSNorm against fp64: at most twice the error of PyTorch's own in the same dtype."""

import os

import pytest
import torch
import torch.nn.functional as F

from tdlm_fast.kernels import rms_norm, swiglu
from tdlm_fast.kernels.cpu import library as native
from tdlm_fast.kernels.ops.rms_norm import rms_norm_backward, rms_norm_forward
from tdlm_fast.kernels.ops.swiglu import swiglu_backward, swiglu_forward

pytestmark = pytest.mark.slow

EPS = 1e-6


@pytest.fixture(params=[*native.available(), "none"])
def isa(request):
    native.use(request.param)
    yield request.param
    native.use(os.environ.get("TDLM_CPU_ISA"))


def plain_swiglu(x):
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


def plain_norm(x, w, eps=EPS):
    return F.rms_norm(x, w.shape, w, eps)


def answers(of, inputs, dy):
    inputs = [a.detach().clone().requires_grad_() for a in inputs]
    y = of(*inputs)
    return [y, *torch.autograd.grad(y, inputs, dy.to(y.dtype))]


def compare(ours, plain, inputs, dy):
    truth = answers(plain, [a.double() for a in inputs], dy)
    theirs, mine = answers(plain, inputs, dy), answers(ours, inputs, dy)
    for a, b, true in zip(mine, theirs, truth, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape and a.isfinite().all()
        assert (a - true).abs().max() <= 2 * (b - true).abs().max() + 1e-6 * (1 + true.abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 2), (3, 5, 2 * 23), (700, 2 * 192), (2, 2 * 16)])
@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_swiglu(isa, dtype, shape, scale):
    g = torch.Generator().manual_seed(sum(shape))
    x = (torch.randn(shape, generator=g) * scale).to(dtype)
    compare(swiglu, plain_swiglu, [x], torch.randn(*shape[:-1], shape[-1] // 2, generator=g).to(dtype))


@pytest.mark.parametrize("shape", [(1, 16), (3, 5, 64), (700, 80), (4, 24)])
@pytest.mark.parametrize("scale, eps", [(1.0, EPS), (1e-4, EPS), (1e-4, 1e-5), (1e4, EPS)])
def test_rms_norm(isa, shape, scale, eps):
    g = torch.Generator().manual_seed(sum(shape))
    x, w = torch.randn(shape, generator=g) * scale, torch.randn(shape[-1], generator=g)
    dy = torch.randn(shape, generator=g)
    compare(lambda x, w: rms_norm(x, w, eps), lambda x, w: plain_norm(x, w, eps), [x, w], dy)


def test_rows_lie_anywhere_and_threads_change_no_bit(isa):
    g = torch.Generator().manual_seed(0)
    x, dy, w = torch.randn(64, 900, generator=g).T, torch.randn(64, 900, generator=g).T, torch.randn(64, generator=g)
    threads, runs = torch.get_num_threads(), []
    try:
        for n in (1, 5):
            torch.set_num_threads(n)
            runs.append(answers(swiglu, [x], dy[:, ::2]) + answers(lambda x, w: rms_norm(x, w, EPS), [x, w], dy))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True)) or isa == "none"
    torch.testing.assert_close(runs[0][0], plain_swiglu(x))
    torch.testing.assert_close(runs[0][2], plain_norm(x, w))


def test_no_rows_are_no_error(isa):
    x, w = torch.zeros(0, 32, requires_grad=True), torch.ones(32, requires_grad=True)
    assert swiglu(x).shape == (0, 16) and rms_norm(x, w, EPS).shape == (0, 32)


def test_gradients_that_do_not_fit_are_an_error():
    x, w = torch.randn(4, 32), torch.ones(32)
    if native.isa:
        with pytest.raises(ValueError, match="must be"):
            swiglu_backward(torch.randn(3, 16), x)
        with pytest.raises(ValueError, match="must be"):
            rms_norm_backward(torch.randn(3, 32), x, w, EPS)


def test_ops_pass_opcheck_with_these_kernels():
    x, w = torch.randn(5, 32, requires_grad=True), torch.ones(32, requires_grad=True)
    torch.library.opcheck(swiglu_forward, (x,))
    torch.library.opcheck(rms_norm_forward, (x, w, EPS))
