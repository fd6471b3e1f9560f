"""RMSNorm with and without the residual: the references against PyTorch in fp64, and what does not fit."""

import pytest
import torch
import torch.nn.functional as F

from tdlm_fast.kernels import add_rms_norm, hardware, rms_norm, use_backend
from tdlm_fast.kernels.ops.rms_norm import (
    PARTS,
    _Spread,
    add_rms_norm_backward,
    add_rms_norm_forward,
    check_shapes,
    rms_norm_backward,
    rms_norm_forward,
    spread,
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("references")  # tests/kernels/cpu/test_norm_and_gate.py tests the native kernels

EPS = 1e-6


def inputs(dtype=torch.float64, shape=(3, 5, 16)):
    """x, a, weight, and the gradients of s and y."""
    g = torch.Generator().manual_seed(0)
    x, a, ds, dy = (torch.randn(shape, generator=g).to(dtype) for _ in range(4))
    return x, a, torch.randn(shape[-1], generator=g).to(dtype), ds, dy


def plain(x, a, weight):
    s = x if a is None else x + a
    return s, F.rms_norm(s, weight.shape, weight, EPS)


def fused(x, a, weight):
    s, y = add_rms_norm_forward(x, a, weight, EPS, x.dtype)
    return (x if a is None else s), y


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_output_and_gradients_of_the_norm(dtype):
    x, _, weight, _, dy = inputs(dtype)
    wide = [a.double().requires_grad_() for a in (x, weight)]
    y = F.rms_norm(wide[0], weight.shape, wide[1], EPS)
    truth = [y.detach(), *torch.autograd.grad(y, wide, dy.double())]
    ours = [rms_norm_forward(x, weight, EPS), *rms_norm_backward(dy, x, weight, EPS)]
    for mine, true in zip(ours, truth, strict=True):
        assert mine.dtype == dtype and mine.shape == true.shape
        torch.testing.assert_close(mine.double(), true, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


def test_a_row_of_equal_numbers_becomes_their_signs_times_the_weight():
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0])
    y = rms_norm_forward(torch.tensor([[7.0] * 4, [-7.0] * 4, [0.0] * 4]), weight, 0.0 + 1e-12)
    torch.testing.assert_close(y, torch.stack([weight, -weight, 0 * weight]))


@pytest.mark.parametrize("used", ["s and y", "s", "y"])
@pytest.mark.parametrize("added", [True, False])
def test_every_gradient_of_the_sum_and_its_norm(added, used):
    """Where only one of the two outputs is used, the other sends no gradient."""
    x, a, weight, ds, dy = inputs()
    a = a if added else None
    results = []
    for of in (fused, plain):
        leaves = [None if t is None else t.clone().requires_grad_() for t in (x, a, weight)]
        s, y = of(*leaves)
        loss = sum((out * d).sum() for name, out, d in (("s", s, ds), ("y", y, dy)) if name in used.split(" and "))
        grads = torch.autograd.grad(loss, [t for t in leaves if t is not None], allow_unused=True)
        results.append([s.detach(), y.detach(), *(torch.zeros(1).double() if d is None else d for d in grads)])
    for mine, true in zip(*results, strict=True):
        torch.testing.assert_close(mine, true)


def test_the_gradient_of_what_is_added_has_its_dtype():
    x, a, weight, ds, dy = inputs(torch.float32)
    a = a.bfloat16().requires_grad_()
    s, y = add_rms_norm_forward(x.requires_grad_(), a, weight, EPS, torch.bfloat16)
    assert s.dtype == torch.float32 and y.dtype == torch.bfloat16
    dx, da = torch.autograd.grad((s, y), (x, a), (ds, dy.bfloat16()))
    assert dx.dtype == torch.float32 and torch.equal(da, dx.bfloat16())


def test_without_a_backend_it_is_pytorch_to_the_bit():
    x, a, weight, _, _ = inputs(torch.float32)
    assert torch.equal(rms_norm(x, weight, EPS), F.rms_norm(x, weight.shape, weight, EPS))
    for added in (a, None):
        for mine, true in zip(add_rms_norm(x, added, weight, EPS), plain(x, added, weight), strict=True):
            assert torch.equal(mine, true)


def test_shapes_that_do_not_fit_are_an_error_with_the_shapes():
    x, weight = torch.zeros(2, 8), torch.zeros(8)
    check_shapes(x, weight, x, None)
    for args in ((x, weight[:4]), (x, weight, x[:1]), (x, x)):
        with pytest.raises(ValueError, match=r"do not fit together; they must be \(..., D\), \(D,\)"):
            check_shapes(*args)


def test_opcheck():
    x, a, weight, ds, dy = inputs(torch.float32)
    torch.library.opcheck(rms_norm_forward, (x.clone().requires_grad_(), weight.clone().requires_grad_(), EPS))
    torch.library.opcheck(rms_norm_backward, (dy, x, weight, EPS))
    for added in (a, None):
        torch.library.opcheck(add_rms_norm_forward, (x, added, weight, EPS, torch.bfloat16))
    torch.library.opcheck(add_rms_norm_backward, (dy, ds, x, weight, EPS, torch.bfloat16))
    torch.library.opcheck(add_rms_norm_backward, (dy, None, x, weight, EPS, None))
    torch.library.opcheck(add_rms_norm_forward, (x, a, weight.expand(3, -1), EPS, torch.bfloat16))
    torch.library.opcheck(add_rms_norm_backward, (dy, ds, x, weight.expand(3, -1), EPS, None))


def test_weights_are_spread_only_for_a_gpu_whose_kernels_serve():
    x, _, weight, _, _ = inputs(torch.float32)
    weights = [weight.clone().requires_grad_() for _ in range(3)]
    assert spread(x, weights) is weights  # on a CPU nothing changes
    with use_backend(None), hardware.pretend((8, 6), 46, torch.Tensor):
        assert [(w.shape, w.stride()) for w in spread(x, weights)] == [((PARTS, len(weight)), (0, 1))] * 3
        with torch.no_grad():
            assert spread(x, weights) is weights
    with use_backend(None), hardware.pretend((7, 5), 46, torch.Tensor):
        assert spread(x, weights) is weights


def test_the_gradients_of_spread_weights_are_those_of_the_weights():
    """Where nothing serves them, through F.rms_norm of one row."""
    x, a, weight, ds, dy = inputs(torch.float32)
    weights = [weight.clone().requires_grad_(), (weight + 1).requires_grad_()]

    def grads(first, second):
        s, y = add_rms_norm(x, a, first, EPS)
        return torch.autograd.grad((y * dy).sum() + (add_rms_norm(s, None, second, EPS)[1] * ds).sum(), weights)

    for mine, true in zip(grads(*_Spread.apply(*weights)), grads(*weights), strict=True):
        assert torch.equal(mine, true)
