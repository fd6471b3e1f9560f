"""The Triton kernels of ops/rms_norm.py: some rows per program, with or without the residual added first.

Each program of the backward pass sums dw over its own rows. The sums of the programs are added up in order, or returned
as they are for a weight of as many rows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops.rms_norm import PARTS, check_shapes, first_row
from .launch import overlap, start_kernel

TILE = 1024  # entries that a program holds at once, or one row


@triton.jit(do_not_specialize=["N"])
def forward_kernel(X, A, W, S, Y, N, D, eps, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, PDL: tl.constexpr):
    overlap(PDL)
    r, d = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK_D)
    at = r[:, None].to(tl.int64) * D + d[None, :]
    inside = (r < N)[:, None] & (d < D)[None, :]
    x = tl.load(X + at, mask=inside, other=0.0).to(tl.float32)
    if A is not None:
        s = (x + tl.load(A + at, mask=inside, other=0.0).to(tl.float32)).to(S.dtype.element_ty)
        tl.store(S + at, s, mask=inside)
        x = s.to(tl.float32)  # the norm is that of what is stored
    w = tl.load(W + d, mask=d < D, other=0.0).to(tl.float32)
    y = x * tl.rsqrt(tl.sum(x * x, 1) / D + eps)[:, None] * w[None, :]
    tl.store(Y + at, y.to(Y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["N", "tiles"])
def backward_kernel(
    DY, DS, X, W, DX, DA, PART, N, D, eps, tiles, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, PDL: tl.constexpr
):
    """Program p: dx, and da if there is one, of its tiles of rows; their share of dw into PART[p]."""
    overlap(PDL)
    d = tl.arange(0, BLOCK_D)
    w = tl.load(W + d, mask=d < D, other=0.0).to(tl.float32)
    dw = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for tile in range(tl.program_id(0) * tiles, (tl.program_id(0) + 1) * tiles):
        r = tile * ROWS + tl.arange(0, ROWS)
        at = r[:, None].to(tl.int64) * D + d[None, :]
        inside = (r < N)[:, None] & (d < D)[None, :]
        x = tl.load(X + at, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(DY + at, mask=inside, other=0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(x * x, 1) / D + eps)[:, None]
        x, g = x * scale, dy * w[None, :]
        dw += tl.where(inside, dy * x, 0.0)
        dx = scale * (g - x * (tl.sum(g * x, 1) / D)[:, None])
        if DS is not None:
            dx += tl.load(DS + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(DX + at, dx.to(DX.dtype.element_ty), mask=inside)
        if DA is not None:
            tl.store(DA + at, dx.to(DA.dtype.element_ty), mask=inside)
    tl.store(PART + tl.program_id(0) * D + d, tl.sum(dw, 0), mask=d < D)


def launch(D: int) -> dict:
    """Block sizes and warps for rows of D."""
    block = max(16, triton.next_power_of_2(D))
    rows, warps = min(32, max(1, TILE // block)), max(4, block // 256)
    return dict(ROWS=rows, BLOCK_D=block, num_warps=warps, num_stages=1, enable_fp_fusion=True)


def forward(x, a, weight, eps, dtype) -> tuple[Tensor, Tensor]:
    w = first_row(weight).contiguous()
    check_shapes(x, w, a)
    D, options = x.shape[-1], launch(x.shape[-1])
    N, x, a = x.numel() // D, x.contiguous(), None if a is None else a.contiguous()
    s, y = x.new_empty(0) if a is None else torch.empty_like(x), torch.empty_like(x, dtype=dtype)
    grid = (triton.cdiv(N, options["ROWS"]),)
    start_kernel(forward_kernel, grid, x, a, w, None if a is None else s, y, N, D, eps, **options)
    return s, y


def backward(dy, ds, x, weight, eps, dtype) -> tuple[Tensor, Tensor, Tensor]:
    w = first_row(weight).contiguous()
    check_shapes(x, w, dy, ds)
    D, options = x.shape[-1], launch(x.shape[-1])
    N, x, dy, ds = x.numel() // D, x.contiguous(), dy.contiguous(), None if ds is None else ds.contiguous()
    dx, other = torch.empty_like(x), dtype not in (None, x.dtype)
    da = torch.empty_like(x, dtype=dtype) if other else x.new_empty(0)
    rows = triton.cdiv(N, options["ROWS"])
    in_parts = weight.dim() == 2
    tiles = triton.cdiv(rows, len(weight) if in_parts else PARTS)
    part = x.new_empty(len(weight) if in_parts else triton.cdiv(rows, tiles), D, dtype=torch.float32)
    start_kernel(
        backward_kernel, (len(part),), dy, ds, x, w, dx, da if other else None, part, N, D, eps, tiles, **options,
    )  # fmt: skip
    return dx, da, (part if in_parts else part.sum(0)).to(weight.dtype)


def norm(x, weight, eps) -> Tensor:
    return forward(x, None, weight, eps, x.dtype)[1]


def norm_gradients(dy, x, weight, eps) -> tuple[Tensor, Tensor]:
    dx, _, dw = backward(dy, None, x, weight, eps, None)
    return dx, dw
