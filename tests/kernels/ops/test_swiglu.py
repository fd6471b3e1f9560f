"""The gate of SwiGLU: the references against PyTorch in fp64, and what does not fit."""

import pytest
import torch
import torch.nn.functional as F

from tdlm_fast.kernels import swiglu
from tdlm_fast.kernels.ops.swiglu import swiglu_backward, swiglu_forward

pytestmark = pytest.mark.usefixtures("references")  # tests/kernels/cpu/test_norm_and_gate.py tests the native kernels


def plain(x):
    g, u = x.chunk(2, -1)
    return F.silu(g) * u


def inputs(shape=(3, 5, 2 * 7), scale=2.0):
    g = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=g).double() * scale, torch.randn(*shape[:-1], shape[-1] // 2, generator=g)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_output_and_gradient_are_rounded_once(dtype, scale):
    x, dy = inputs(scale=scale)
    x, dy = x.to(dtype), dy.to(dtype)
    wide = x.double().requires_grad_()
    y = plain(wide)
    (dx,) = torch.autograd.grad(y, wide, dy.double())
    for ours, truth in ((swiglu_forward(x), y), (swiglu_backward(dy, x), dx)):
        assert ours.dtype == dtype and ours.shape == truth.shape
        torch.testing.assert_close(ours.double(), truth.detach(), rtol=torch.finfo(dtype).eps + 2e-6, atol=1e-6)


def test_gradcheck():
    x, _ = inputs((2, 6))
    assert torch.autograd.gradcheck(swiglu_forward, x.requires_grad_())


def test_without_a_backend_it_is_pytorch_to_the_bit():
    x = inputs()[0].float()
    assert torch.equal(swiglu(x), plain(x))


def test_a_gate_of_0_lets_nothing_through_and_a_large_one_everything():
    x = torch.tensor([[0.0, 100.0, -100.0, 3.0, 3.0, 3.0]])
    assert swiglu_forward(x).tolist() == [[0.0, 300.0, 0.0]]


def test_opcheck():
    x, dy = inputs()
    torch.library.opcheck(swiglu_forward, (x.float().requires_grad_(),))
    torch.library.opcheck(swiglu_backward, (dy, x.float()))
