"""The gate of SwiGLU (Shazeer 2020), forward and backward in one pass each.

    y = silu(g) u;   du = dy silu(g),   dg = dy u s (1 + g (1 - s)),   s = 1 / (1 + exp(-g))

Where no backend serves a call, PyTorch's own operations run, which a compiler fuses. Arithmetic is in fp32 (fp64 for
fp64), and results are rounded once, to the input's dtype.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import hardware
from ..dispatch import differentiate, op, server


@op("tdlm::swiglu", fake=lambda x: x.new_empty(*x.shape[:-1], x.shape[-1] // 2))
def swiglu_forward(x: Tensor) -> Tensor:
    """y (..., n) of x (..., 2 n)."""
    g, u = (x if x.dtype == torch.float64 else x.float()).chunk(2, -1)
    return (F.silu(g) * u).to(x.dtype)


@op("tdlm::swiglu_backward", fake=lambda dy, x: x.new_empty(x.shape))
def swiglu_backward(dy: Tensor, x: Tensor) -> Tensor:
    """dx (..., 2 n) of dy (..., n) and x (..., 2 n)."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    (g, u), dy = x.to(wide).chunk(2, -1), dy.to(wide)
    s = torch.sigmoid(g)
    return torch.cat([dy * u * s * (1 + g * (1 - s)), dy * g * s], -1).to(x.dtype)


differentiate(swiglu_forward, swiglu_backward, "F.silu(a) * b of the two halves")


def check_gradient(dy: Tensor, x: Tensor) -> None:
    """Raise ValueError where dy is not of the shape of swiglu(x)."""
    if dy.shape != (*x.shape[:-1], x.shape[-1] // 2):
        raise ValueError(f"dy has shape {tuple(dy.shape)}; it must be {(*x.shape[:-1], x.shape[-1] // 2)}")


def swiglu(
    x: Tensor,  # (..., 2 n): gate, then what it lets through
) -> Tensor:
    """g, u = x.chunk(2, -1); F.silu(g) * u: (..., n) in x's dtype."""
    if not hardware.is_transformed() and server(swiglu_forward, x):
        return swiglu_forward(x)
    g, u = x.chunk(2, -1)
    return F.silu(g) * u
