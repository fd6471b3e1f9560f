"""Several tensors cast at once, and their gradients back."""

import pytest
import torch

from tdlm_fast.kernels.ops.foreach_cast import cast


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_each_is_rounded_as_alone_and_gets_its_own_gradient(dtype):
    g = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=g, requires_grad=True) for shape in ((3, 5), (7,), (2, 1, 4))]
    narrow = cast(dtype, *tensors)
    upstream = [torch.randn(a.shape, generator=g).to(dtype) for a in tensors]
    grads = torch.autograd.grad(narrow, tensors, upstream)
    for a, b, dy, dx in zip(tensors, narrow, upstream, grads, strict=True):
        assert b.dtype == dtype and torch.equal(b, a.to(dtype))
        assert dx.dtype == torch.float32 and torch.equal(dx, dy.float())


def test_a_loss_through_it_has_the_gradients_of_separate_casts():
    g = torch.Generator().manual_seed(1)
    w1, w2 = (torch.randn(6, 6, generator=g, requires_grad=True) for _ in range(2))
    x = torch.randn(4, 6, generator=g).bfloat16()

    def loss(a, b):
        return (x @ a @ b).float().square().sum()

    together = torch.autograd.grad(loss(*cast(torch.bfloat16, w1, w2)), (w1, w2))
    apart = torch.autograd.grad(loss(w1.bfloat16(), w2.bfloat16()), (w1, w2))
    assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))


def test_views_that_are_not_contiguous_are_cast_in_their_shape():
    w = torch.arange(12.0).view(3, 4).T.requires_grad_()
    (narrow,) = cast(torch.bfloat16, w)
    assert torch.equal(narrow, w.bfloat16())
    dy = torch.arange(12.0).view(4, 3).bfloat16()
    assert torch.equal(torch.autograd.grad(narrow, w, dy)[0], dy.float())
