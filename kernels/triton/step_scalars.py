"""The Triton kernels of ops/step_scalars.py.

Some programs square the gradients, each of them parts of every gradient, and the one program of clip_kernel adds up
their sums in order.
"""

import triton
import triton.language as tl
from torch import Tensor

from .launch import overlap, start_kernel

PROGRAMS, BLOCK = 1024, 1024  # of the squares: programs at most, and the entries that one squares at once
GRADIENTS = 32  # that one launch squares: its code grows with them
OPTIONS = dict(num_warps=1, num_stages=1, enable_fp_fusion=True)
WIDE = OPTIONS | dict(num_warps=4)


@triton.jit
def squares_kernel(GRADS, SIZES, SUMS, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Program p: the sum of the squares of its share of the blocks of all GRADS into SUMS[p]."""
    overlap(PDL)
    total, turn, programs = tl.zeros([BLOCK], tl.float32), tl.program_id(0), tl.num_programs(0)
    for i in tl.static_range(len(GRADS)):  # pyright: ignore[reportGeneralTypeIssues]
        for start in range(turn * BLOCK, SIZES[i], programs * BLOCK):
            at = start + tl.arange(0, BLOCK)
            g = tl.load(GRADS[i] + at, mask=at < SIZES[i], other=0.0).to(tl.float32)
            total += g * g
        # The next gradient begins with the next program: no program gets the first block of many small ones.
        turn = (turn + programs - tl.cdiv(SIZES[i], BLOCK) % programs) % programs
    tl.store(SUMS + tl.program_id(0), tl.sum(total, 0))


@triton.jit
def clip_kernel(SUMS, LOSS, NORM, SCALE, SKIP, STEPS, n, clip, BLOCK: tl.constexpr, PDL: tl.constexpr):
    overlap(PDL)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, n, BLOCK):
        i = start + tl.arange(0, BLOCK)
        total += tl.load(SUMS + i, mask=i < n, other=0.0)
    norm = tl.sqrt(tl.sum(total, 0))
    both = tl.load(LOSS) + norm
    tl.store(NORM, norm)
    tl.store(SCALE, tl.maximum((norm + 1e-6) / clip, 1.0))
    skip = tl.where(tl.abs(both) < float("inf"), 0.0, 1.0)  # of nan too
    tl.store(SKIP, skip)
    tl.store(STEPS, tl.load(STEPS) + 1 - skip)


@triton.jit
def record_kernel(LOG, STEP, LOSS, NORM, LOSS_TOKENS, TOKENS, window, PDL: tl.constexpr):
    overlap(PDL)
    step = tl.load(STEP)
    line = LOG + step % window * 4
    tl.store(line, tl.load(LOSS).to(tl.float64))
    tl.store(line + 1, tl.load(NORM).to(tl.float64))
    tl.store(line + 2, tl.load(LOSS_TOKENS).to(tl.float64))
    tl.store(line + 3, tl.load(TOKENS).to(tl.float64))
    tl.store(STEP, step + 1)


def clip_scale(loss: Tensor, grads: list[Tensor], clip: float, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    norm, scale, skip = (loss.new_empty(()) for _ in range(3))
    grads = [g.contiguous() for g in grads]
    groups = [tuple(grads[i : i + GRADIENTS]) for i in range(0, len(grads), GRADIENTS)]
    programs = max(1, min(PROGRAMS, sum(triton.cdiv(g.numel(), BLOCK) for g in grads)))
    sums = loss.new_empty(len(groups), programs)
    for group, of in zip(groups, sums, strict=True):
        start_kernel(squares_kernel, (programs,), group, tuple(g.numel() for g in group), of, BLOCK=BLOCK, **WIDE)
    start_kernel(clip_kernel, (1,), sums, loss, norm, scale, skip, steps, sums.numel(), clip, BLOCK=BLOCK, **WIDE)
    return norm, scale, skip


def record(log: Tensor, step: Tensor, loss: Tensor, norm: Tensor, loss_tokens: Tensor, tokens: Tensor) -> None:
    start_kernel(record_kernel, (1,), log, step, loss, norm, loss_tokens, tokens, len(log), **OPTIONS)
