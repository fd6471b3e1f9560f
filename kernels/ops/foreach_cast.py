"""Cast several tensors, and their gradients back, in one launch each way instead of one per tensor."""

import torch
from torch import Tensor


class _Cast(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dtype, *tensors):
        ctx.dtype = tensors[0].dtype
        out = tuple(torch.empty_like(a, dtype=dtype) for a in tensors)
        torch._foreach_copy_(out, tensors)
        return out

    @staticmethod
    def backward(ctx, *grads):
        out = [torch.empty_like(g, dtype=ctx.dtype) for g in grads]
        torch._foreach_copy_(out, grads)
        return None, *out


def cast(dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
    """[a.to(dtype) for a in tensors], which share one dtype. Each must get a gradient, as factors of products do."""
    return _Cast.apply(dtype, *tensors)
