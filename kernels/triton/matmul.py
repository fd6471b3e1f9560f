"""Matrix products whose row count is read from device memory, for linear_cross_entropy_chunked.py.

    logits      z  = x w^T     rows of x and z from the count on are neither read nor written
    towards_h   dh = z w       likewise
    towards_w   dw += z^T x    summed over the rows before the count

cuBLAS takes the number of rows from the host, so it runs only where all rows count: n_rows is None. Rows of z lie
padded(V) apart: 50257 is odd, and rows that begin at odd addresses cannot be read in vectors. Sums are fp32, in a fixed
order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import overlap, start_kernel
from .tiles import Product, padded, product_parts


@triton.jit
def _add(acc, a, b, n, k, N, left, WHOLE: tl.constexpr, MASK_N: tl.constexpr):
    """acc and the product of the tiles at a (m, k) and b (k, n), of which k ends at `left` unless it is WHOLE."""
    if WHOLE:
        x = tl.load(a)
        y = tl.load(b, mask=(n < N)[None, :], other=0.0) if MASK_N else tl.load(b)
    else:
        x = tl.load(a, mask=(k < left)[None, :], other=0.0)
        inside = (k < left)[:, None] & (n < N)[None, :] if MASK_N else (k < left)[:, None]
        y = tl.load(b, mask=inside, other=0.0)
    return tl.dot(x, y, acc, input_precision="ieee")


@triton.jit(do_not_specialize=["first", "rows"])
def product_kernel(A, B, C, N_ROWS, first, rows, M, N, K, a_m, a_k, b_k, b_n, c_m, c_part, OF: tl.constexpr,
                   ADD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
                   BLOCK_K: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """C (M, N) of A (M, K) and B (K, N), by part program_id(1) of K; OF is what the three products are called above."""
    overlap(PDL)
    live = tl.minimum(tl.maximum(tl.load(N_ROWS) - first, 0), rows).to(tl.int32)
    if OF == "towards_w":  # neighbours read the same columns of z, else the same rows of w
        m_tile, n_tile = tl.program_id(0) // tl.cdiv(N, BLOCK_N), tl.program_id(0) % tl.cdiv(N, BLOCK_N)
        end = live
    else:
        m_tile, n_tile = tl.program_id(0) % tl.cdiv(M, BLOCK_M), tl.program_id(0) // tl.cdiv(M, BLOCK_M)
        end = K
        if m_tile * BLOCK_M >= live:
            return
    m, n = m_tile * BLOCK_M + tl.arange(0, BLOCK_M), n_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    tiles, part, parts = tl.cdiv(end, BLOCK_K), tl.program_id(1), tl.num_programs(1)
    begin, last = part * tiles // parts, (part + 1) * tiles // parts
    whole = tl.minimum(last, end // BLOCK_K)
    # Past the last row the last one is read again; columns of z may be read past V, where its padding lies.
    from_m = (m if OF == "towards_w" else tl.minimum(m, live - 1)).to(tl.int64)
    from_n = (tl.minimum(n, N - 1) if OF == "logits" else n).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    if ADD:  # loaded now and not at the end, where both would be in registers
        acc = tl.load(C + from_m[:, None] * c_m + from_n[None, :], mask=(m < M)[:, None] & (n < N)[None, :], other=0.0)
    else:
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    MASK_N: tl.constexpr = OF != "logits"
    a = A + from_m[:, None] * a_m + k[None, :].to(tl.int64) * a_k
    b = B + k[:, None].to(tl.int64) * b_k + from_n[None, :] * b_n
    for i in range(begin, whole):
        at = tl.cast(i * BLOCK_K, tl.int64)
        acc = _add(acc, a + at * a_k, b + at * b_k, n, k, N, BLOCK_K, True, MASK_N)
    if whole < last:
        at = tl.cast(whole * BLOCK_K, tl.int64)
        acc = _add(acc, a + at * a_k, b + at * b_k, n, k, N, end - whole * BLOCK_K, False, MASK_N)
    c = C + part.to(tl.int64) * c_part + m.to(tl.int64)[:, None] * c_m + n[None, :]
    if OF == "logits":
        tl.store(c, acc.to(C.dtype.element_ty), mask=(m < live)[:, None])  # z's padding takes what lies past N
    else:
        tl.store(c, acc, mask=(m < (M if OF == "towards_w" else live))[:, None] & (n < N)[None, :])


def _launch(of: str, a: Tensor, b: Tensor, c: Tensor, count: tuple, plan: Product, parts: int = 1, add: bool = False):
    (M, K), N, (n_rows, first, rows) = a.shape, b.shape[1], count
    grid = (triton.cdiv(M, plan.m) * triton.cdiv(N, plan.n), parts)
    start_kernel(
        product_kernel, grid, a, b, c, n_rows, first, rows, M, N, K, *a.stride(), *b.stride(), c.stride(-2),
        c.stride(0), OF=of, ADD=add, BLOCK_M=plan.m, BLOCK_N=plan.n, BLOCK_K=plan.k, **plan.options,
    )  # fmt: skip


def _whole(a: Tensor, b: Tensor) -> Tensor:
    """a @ b of all rows in fp32: cuBLAS sums 16-bit products in it anyway."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    with torch.autocast(a.device.type, enabled=False):
        return a.float() @ b.float()


def logits(x: Tensor, w: Tensor, n_rows: Tensor | None, first: int, plan: Product) -> Tensor:
    """z (rows, V) of x (rows, D), rows first .. first + rows of those that n_rows, () int64, counts; w (V, D)."""
    rows, V = len(x), len(w)
    z = x.new_empty(rows, padded(V))[:, :V]
    if n_rows is None:
        return torch.mm(x, w.T, out=z)
    _launch("logits", x, w.T, z, (n_rows, first, rows), plan)
    return z


def towards_h(z: Tensor, w: Tensor, n_rows: Tensor | None, first: int, plan: Product, processors: int) -> Tensor:
    """z w (rows, D) fp32, 0 from the count on; in parts of V that are added up where few programs would run."""
    if n_rows is None:
        return _whole(z, w)
    rows, D = len(z), w.shape[1]
    parts = product_parts(plan, rows, D, processors)
    dh = z.new_zeros(parts, rows, D, dtype=torch.float32)
    _launch("towards_h", z, w, dh, (n_rows, first, rows), plan, parts)
    return dh[0] if parts == 1 else dh.sum(0)


def towards_w(z: Tensor, x: Tensor, n_rows: Tensor | None, first: int, plan: Product, dw: Tensor, add: bool) -> None:
    """dw (V, D) fp32 = z^T x, or dw += z^T x; dw's last dimension is contiguous."""
    if n_rows is not None:
        _launch("towards_w", z.T, x, dw, (n_rows, first, len(x)), plan, add=add)
    elif add:
        dw += _whole(z.T, x)
    else:
        dw.copy_(_whole(z.T, x))
