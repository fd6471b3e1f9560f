"""RMSNorm (Zhang & Sennrich 2019), forward and backward in one pass each.

    y = x r w,   r = 1 / sqrt(mean(x^2) + eps);   dx = r dy w - x r^3 mean(dy w x),   dw = sum over rows of dy x r

On the CPU it is native for fp32 rows of a multiple of 16; elsewhere F.rms_norm. Nothing but x is kept.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def _wide(*tensors: Tensor) -> list[Tensor]:
    return [a if a.dtype == torch.float64 else a.float() for a in tensors]


@torch.library.custom_op("tdlm::rms_norm", mutates_args=())
def rms_norm_forward(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """y (..., D) of x (..., D) and weight (D,), in x's dtype."""
    a, w = _wide(x, weight)
    return (a * torch.rsqrt((a * a).mean(-1, keepdim=True) + eps) * w).to(x.dtype)


@torch.library.custom_op("tdlm::rms_norm_backward", mutates_args=())
def rms_norm_backward(dy: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """dx (..., D) and dw (D,) of dy (..., D)."""
    d, a, w = _wide(dy, x, weight)
    r = torch.rsqrt((a * a).mean(-1, keepdim=True) + eps)
    dx = r * d * w - a * r**3 * (d * w * a).mean(-1, keepdim=True)
    return dx.to(x.dtype), (d * a * r).flatten(0, -2).sum(0).to(weight.dtype)


@rms_norm_forward.register_fake
def _(x, weight, eps):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@rms_norm_backward.register_fake
def _(dy, x, weight, eps):
    return torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty_like(weight)


def _setup(ctx, inputs, output):
    x, weight, ctx.eps = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx, dy):
    return *rms_norm_backward(dy, *ctx.saved_tensors, ctx.eps), None


rms_norm_forward.register_autograd(_backward, setup_context=_setup)


def rms_norm(
    x: Tensor,  # (..., D)
    weight: Tensor,  # (D,)
    eps: float,
) -> Tensor:
    """F.rms_norm(x, (D,), weight, eps): (..., D)."""
    from .native import serves_rows

    if serves_rows(x, weight):
        return rms_norm_forward(x, weight, eps)
    return F.rms_norm(x, weight.shape, weight, eps)
