"""The Triton kernels of ops/embedding.py and ops/rows.py: sums of runs of equal tokens, then across chunks."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops.stable_sort import stable_order
from .launch import overlap, start_kernel
from .tiles import rows_launch

CHUNK = 32  # sorted positions a program
LOOK = 32  # chunks that a long run adds up at once
OPTIONS = dict(num_warps=4, enable_fp_fusion=True)


@triton.jit
def chunk_kernel(SORTED, ORDER, DX, DW, PART, N, D, CHUNK: tl.constexpr, BLOCK_D: tl.constexpr, PDL: tl.constexpr):
    """Runs that lie within the chunk go to DW; the first and the last run of the chunk go to PART[chunk, 0 and 1]."""
    overlap(PDL)
    chunk = tl.program_id(0)
    r, d = tl.arange(0, CHUNK), tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    i = chunk * CHUNK + r
    token = tl.load(SORTED + i, mask=i < N, other=-1)
    order = tl.load(ORDER + i, mask=i < N, other=0)
    dx = tl.load(DX + order[:, None] * D + d[None, :], mask=(i < N)[:, None] & (d < D)[None, :], other=0.0)
    same = (token[:, None] == tl.load(SORTED + chunk * CHUNK + r, mask=i < N, other=-1)[None, :]).to(tl.float32)
    total = tl.dot(same, dx.to(tl.float32), input_precision="ieee")
    before = tl.load(SORTED + i - 1, mask=(i > 0) & (i < N), other=-2)
    left = tl.load(SORTED + chunk * CHUNK - 1, mask=chunk > 0, other=-2)
    right = tl.load(SORTED + (chunk + 1) * CHUNK, mask=(chunk + 1) * CHUNK < N, other=-2)
    whole = (i < N) & ((r == 0) | (token != before)) & (token != left) & (token != right)
    narrow = (d < D)[None, :]
    to = DW + token.to(tl.int64)[:, None] * D + d[None, :]
    tl.store(to, total.to(DW.dtype.element_ty), mask=whole[:, None] & narrow)
    at = PART + chunk * 2 * D + d[None, :] + r[:, None] * 0
    tl.store(at, total, mask=(r == 0)[:, None] & narrow)
    tl.store(at + D, total, mask=((r == CHUNK - 1) & (i < N))[:, None] & narrow)


@triton.jit
def run_kernel(
    SORTED, DW, PART, N, D, CHUNK: tl.constexpr, LOOK: tl.constexpr, BLOCK_D: tl.constexpr, PDL: tl.constexpr
):
    """The run that starts in this chunk and ends in a later one, if there is one."""
    overlap(PDL)
    chunk = tl.program_id(0)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    end = (chunk + 1) * CHUNK
    if end >= N:
        return
    token = tl.load(SORTED + end - 1)
    first = tl.load(SORTED + chunk * CHUNK)
    left = tl.load(SORTED + chunk * CHUNK - 1, mask=chunk > 0, other=-2)
    if (tl.load(SORTED + end) != token) | ((first == token) & (left == token)):
        return
    total = tl.load(PART + (chunk * 2 + 1) * D + d, mask=d < D, other=0.0)
    later, found = chunk + 1, LOOK
    while found == LOOK:
        k = later + tl.arange(0, LOOK)
        mine = tl.load(SORTED + k * CHUNK, mask=k * CHUNK < N, other=-2) == token
        part = tl.load(PART + (k * 2)[:, None] * D + d[None, :], mask=mine[:, None] & (d < D)[None, :], other=0.0)
        total += tl.sum(part, 0)
        found = tl.sum(mine.to(tl.int32))
        later += LOOK
    tl.store(DW + token.to(tl.int64) * D + d, total.to(DW.dtype.element_ty), mask=d < D)


@triton.jit(do_not_specialize=["M"])
def put_kernel(DX, AT, N_ROWS, DH, M, D, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, PDL: tl.constexpr):
    overlap(PDL)
    j, d = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    on = j < M
    if N_ROWS is not None:
        on = on & (j < tl.load(N_ROWS))
    row, inside = tl.load(AT + j, mask=on, other=0), on[:, None] & (d < D)[None, :]
    dx = tl.load(DX + j[:, None].to(tl.int64) * D + d[None, :], mask=inside, other=0.0)
    tl.store(DH + row[:, None] * D + d[None, :], dx, mask=inside)


def put_rows(dx: Tensor, rows: Tensor, n_rows: Tensor | None, N: int) -> Tensor:
    (M, D), dh = dx.shape, dx.new_zeros(N, dx.shape[1])
    grid, blocks = rows_launch(M, D)
    start_kernel(put_kernel, grid, dx.contiguous(), rows.contiguous(), n_rows, dh, M, D, **blocks, **OPTIONS)
    return dh


def backward(dx: Tensor, tokens: Tensor, rows: int) -> Tensor:
    N, D = dx.shape
    dx, dw = dx.contiguous(), dx.new_zeros(rows, D)
    ordered, order = stable_order(tokens, rows)
    block_d = max(16, min(64, triton.next_power_of_2(D)))
    grid = (triton.cdiv(N, CHUNK), triton.cdiv(D, block_d))
    part = dx.new_empty(grid[0], 2, D, dtype=torch.float32)
    options = dict(CHUNK=CHUNK, BLOCK_D=block_d, **OPTIONS)
    start_kernel(chunk_kernel, grid, ordered, order, dx, dw, part, N, D, **options)
    start_kernel(run_kernel, grid, ordered, dw, part, N, D, LOOK=LOOK, **options)
    return dw
