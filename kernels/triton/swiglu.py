"""The Triton kernels of ops/swiglu.py: a tile of y per program, one launch each way."""

import triton
import triton.language as tl
from torch import Tensor

from ..ops.swiglu import check_gradient
from .launch import overlap, start_kernel
from .tiles import SMALL, rows_launch


@triton.jit
def _gate(X, r, c, M, D):
    """Gate, what it lets through and sigmoid(gate), fp32, at rows r and columns c; where they lie; which are inside."""
    at = r[:, None].to(tl.int64) * (2 * D) + c[None, :]
    inside = (r < M)[:, None] & (c < D)[None, :]
    g = tl.load(X + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(X + at + D, mask=inside, other=0.0).to(tl.float32)
    return g, u, 1 / (1 + tl.exp(-g)), at, inside


@triton.jit(do_not_specialize=["M"])
def forward_kernel(X, Y, M, D, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, PDL: tl.constexpr):
    overlap(PDL)
    r, c = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    g, u, s, _, inside = _gate(X, r, c, M, D)
    tl.store(Y + r[:, None].to(tl.int64) * D + c[None, :], (g * s * u).to(Y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["M"])
def backward_kernel(DY, X, DX, M, D, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, PDL: tl.constexpr):
    overlap(PDL)
    r, c = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    g, u, s, at, inside = _gate(X, r, c, M, D)
    dy = tl.load(DY + r[:, None].to(tl.int64) * D + c[None, :], mask=inside, other=0.0).to(tl.float32)
    tl.store(DX + at, (dy * u * s * (1 + g * (1 - s))).to(DX.dtype.element_ty), mask=inside)
    tl.store(DX + at + D, (dy * g * s).to(DX.dtype.element_ty), mask=inside)


def forward(x: Tensor) -> Tensor:
    x, D = x.contiguous(), x.shape[-1] // 2
    y, M = x.new_empty(*x.shape[:-1], D), x.numel() // (2 * D)
    grid, blocks = rows_launch(M, D)
    start_kernel(forward_kernel, grid, x, y, M, D, **blocks, **SMALL)
    return y


def backward(dy: Tensor, x: Tensor) -> Tensor:
    check_gradient(dy, x)
    x, dy, D = x.contiguous(), dy.contiguous(), x.shape[-1] // 2
    dx, M = x.new_empty(x.shape), x.numel() // (2 * D)
    grid, blocks = rows_launch(M, D)
    start_kernel(backward_kernel, grid, dy, x, dx, M, D, **blocks, **SMALL)
    return dx
