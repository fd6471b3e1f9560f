"""The gate of SwiGLU (Shazeer 2020), forward and backward in one pass each.

    y = silu(g) u;   du = dy silu(g),   dg = dy u s (1 + g (1 - s)),   s = 1 / (1 + exp(-g))

On the CPU it is native, on a GPU Triton for fp32, bf16 and fp16; elsewhere PyTorch's own operations, which a compiler
fuses. Arithmetic in fp32 (fp64 for fp64), results in the input's dtype, rounded once.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import HAS_TRITON


@torch.library.custom_op("tdlm::swiglu", mutates_args=())
def swiglu_forward(x: Tensor) -> Tensor:
    """y (..., n) of x (..., 2 n)."""
    g, u = (x if x.dtype == torch.float64 else x.float()).chunk(2, -1)
    return (F.silu(g) * u).to(x.dtype)


@torch.library.custom_op("tdlm::swiglu_backward", mutates_args=())
def swiglu_backward(dy: Tensor, x: Tensor) -> Tensor:
    """dx (..., 2 n) of dy (..., n) and x (..., 2 n)."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    (g, u), dy = x.to(wide).chunk(2, -1), dy.to(wide)
    s = torch.sigmoid(g)
    return torch.cat([dy * u * s * (1 + g * (1 - s)), dy * g * s], -1).to(x.dtype)


@swiglu_forward.register_fake
def _(x):
    return x.new_empty(*x.shape[:-1], x.shape[-1] // 2)


@swiglu_backward.register_fake
def _(dy, x):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, dy):
    return swiglu_backward(dy, *ctx.saved_tensors)


swiglu_forward.register_autograd(_backward, setup_context=_setup)


def _triton_forward(x):
    from ..triton.register import DTYPES

    if x.dtype not in DTYPES or not x.numel() or x.shape[-1] % 2:
        return swiglu_forward._init_fn(x)
    from ..triton import swiglu as swiglu_triton

    return swiglu_triton.forward(x)


def _triton_backward(dy, x):
    from ..triton.register import DTYPES

    if x.dtype not in DTYPES or not x.numel():
        return swiglu_backward._init_fn(dy, x)
    if dy.shape != (*x.shape[:-1], x.shape[-1] // 2):
        raise ValueError(f"dy has shape {tuple(dy.shape)}; it must be {(*x.shape[:-1], x.shape[-1] // 2)}")
    from ..triton import swiglu as swiglu_triton

    return swiglu_triton.backward(dy, x)


def register(device: str) -> None:
    """Let the Triton kernels serve a device type: "cuda", or "cpu" in a process of Triton's interpreter."""
    swiglu_forward.register_kernel(device)(_triton_forward)
    swiglu_backward.register_kernel(device)(_triton_backward)


if HAS_TRITON:
    register("cuda")


def swiglu(
    x: Tensor,  # (..., 2 n): gate, then what it lets through
) -> Tensor:
    """g, u = x.chunk(2, -1); F.silu(g) * u: (..., n) in x's dtype."""
    from ..cpu import library as native
    from ..triton import register as gpu

    if native.serves_rows(x) or gpu.serves_rows(x):
        return swiglu_forward(x)
    g, u = x.chunk(2, -1)
    return F.silu(g) * u
