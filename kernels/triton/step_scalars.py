"""The Triton kernels of ops/step_scalars.py: one program each."""

import triton
import triton.language as tl
from torch import Tensor

from .launch import overlap, start_kernel

BLOCK = 128  # norms that are added up at once
OPTIONS = dict(num_warps=1, num_stages=1, enable_fp_fusion=True)


@triton.jit
def clip_kernel(NORMS, LOSS, NORM, SCALE, SKIP, STEPS, P, clip, BLOCK: tl.constexpr, PDL: tl.constexpr):
    overlap(PDL)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, P, BLOCK):
        i = start + tl.arange(0, BLOCK)
        norm = tl.load(NORMS + i, mask=i < P, other=0.0)
        total += norm * norm
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


def clip_scale(norms: Tensor, loss: Tensor, clip: float, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    norm, scale, skip = (norms.new_empty(()) for _ in range(3))
    start_kernel(clip_kernel, (1,), norms, loss, norm, scale, skip, steps, len(norms), clip, BLOCK=BLOCK, **OPTIONS)
    return norm, scale, skip


def record(log: Tensor, step: Tensor, loss: Tensor, norm: Tensor, loss_tokens: Tensor, tokens: Tensor) -> None:
    start_kernel(record_kernel, (1,), log, step, loss, norm, loss_tokens, tokens, len(log), **OPTIONS)
