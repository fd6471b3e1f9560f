"""The Triton kernels of ops/lazy_adamw.py. Both round every operation to the nearest, so that they agree on every bit.

catch_up has a program for each token of the batch. The first program that reaches a row claims it by its mark, so one
program takes the row through its missed steps. Which one it is does not matter.
"""

import triton
import triton.language as tl
from torch import Tensor

from .launch import overlap, start_kernel
from .tiles import rows_launch

OPTIONS = dict(num_stages=1, enable_fp_fusion=False)  # a fused multiply-add in one kernel would round differently


@triton.jit
def adamw(p, m, v, g, rate, c2, beta1, beta2, rest1, rest2, eps):
    m = m * beta1 + g * rest1
    v = v * beta2 + g * g * rest2
    return p - tl.div_rn(rate * m, tl.div_rn(tl.sqrt_rn(v), c2) + eps), m, v


@triton.jit(do_not_specialize=["N"])
def catch_up_kernel(
    P, M, V, LAST, MARK, SCALARS, STEPS, TRAIN_STEP, TOKENS, ALWAYS, N, D, beta1, beta2, rest1, rest2, eps,
    BLOCK_D: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    overlap(PDL)
    row = tl.program_id(0).to(tl.int64)
    if TOKENS is not None:
        if row < N:
            row = tl.load(TOKENS + row)
        else:
            row = tl.load(ALWAYS + row - N)
        now = tl.load(TRAIN_STEP).to(tl.int32) + 1
        if tl.atomic_max(MARK + row, now, sem="relaxed") == now:  # another program has the row
            return
    last, done = tl.load(LAST + row), tl.load(STEPS).to(tl.int32)
    if last == done:
        return
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        at = row * D + d
        m, v = tl.load(M + at, mask=d < D, other=0.0), tl.load(V + at, mask=d < D, other=0.0)
        if tl.sum(((m != 0.0) | (v != 0.0)).to(tl.int32), 0) > 0:
            p = tl.load(P + at, mask=d < D, other=0.0)
            for n in range(last + 1, done + 1):
                line = SCALARS + n * 3
                rate, c2 = tl.load(line), tl.load(line + 1)
                p, m, v = adamw(p, m, v, 0.0, rate, c2, beta1, beta2, rest1, rest2, eps)
            tl.store(P + at, p, mask=d < D)
            tl.store(M + at, m, mask=d < D)
            tl.store(V + at, v, mask=d < D)
    tl.store(LAST + row, done)


@triton.jit(do_not_specialize=["rows"])
def update_kernel(
    P, M, V, LAST, MARK, SCALARS, STEPS, TRAIN_STEP, GRAD, LR, SCALE, SKIP, rows, D, beta1, beta2, rest1, rest2, eps,
    ROWS: tl.constexpr, BLOCK_D: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    overlap(PDL)
    if tl.load(SKIP) != 0.0:
        return
    row, d = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    now = tl.load(TRAIN_STEP).to(tl.int32) + 1
    marked = tl.load(MARK + row, mask=row < rows, other=0) == now
    n = tl.load(STEPS).to(tl.int32)
    line = SCALARS + n * 3
    rate, c2 = tl.div_rn(tl.load(LR).to(tl.float32), tl.load(line + 2)), tl.load(line + 1)
    if tl.program_id(1) == 0:
        tl.store(LAST + row, n, mask=marked)
        if tl.program_id(0) == 0:
            tl.store(line, rate)
    at, here = row[:, None].to(tl.int64) * D + d[None, :], marked[:, None] & (d < D)[None, :]
    g = tl.div_rn(tl.load(GRAD + at, mask=here, other=0.0), tl.load(SCALE))
    p, m = tl.load(P + at, mask=here, other=0.0), tl.load(M + at, mask=here, other=0.0)
    v = tl.load(V + at, mask=here, other=0.0)
    p, m, v = adamw(p, m, v, g, rate, c2, beta1, beta2, rest1, rest2, eps)
    tl.store(P + at, p, mask=here)
    tl.store(M + at, m, mask=here)
    tl.store(V + at, v, mask=here)


def catch_up_launch(D: int) -> dict:
    """Block size and warps for rows of D."""
    block = max(32, min(1024, triton.next_power_of_2(D)))
    return {"BLOCK_D": block, "num_warps": max(1, min(4, block // 128))}


def catch_up(
    p: Tensor, m: Tensor, v: Tensor, last: Tensor, mark: Tensor, scalars: Tensor, steps: Tensor, train_step: Tensor,
    tokens: Tensor | None, always: Tensor, beta1: float, beta2: float, eps: float,
) -> None:  # fmt: skip
    (rows, D), N = p.shape, 0 if tokens is None else tokens.numel()
    start_kernel(
        catch_up_kernel, (rows if tokens is None else N + len(always),), p, m, v, last, mark, scalars, steps,
        train_step, None if tokens is None else tokens.contiguous(), always, N, D, beta1, beta2, 1 - beta1, 1 - beta2,
        eps, **catch_up_launch(D), **OPTIONS,
    )  # fmt: skip


def update_rows(
    p: Tensor, m: Tensor, v: Tensor, last: Tensor, mark: Tensor, scalars: Tensor, steps: Tensor, train_step: Tensor,
    grad: Tensor, lr: Tensor, scale: Tensor, skip: Tensor, beta1: float, beta2: float, eps: float,
) -> None:  # fmt: skip
    (rows, D), (grid, blocks) = p.shape, rows_launch(*p.shape)
    start_kernel(
        update_kernel, grid, p, m, v, last, mark, scalars, steps, train_step, grad.contiguous(), lr, scale, skip, rows,
        D, beta1, beta2, 1 - beta1, 1 - beta2, eps, **blocks, num_warps=4, **OPTIONS,
    )  # fmt: skip
