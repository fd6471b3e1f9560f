"""The Triton kernel of ops/next_token.py: one program per row, which counts the real tokens before it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops.next_token import empty_outputs
from .launch import overlap, start_kernel

BLOCK = 1024  # places that are counted at once


@triton.jit(do_not_specialize=["N", "start"])
def next_token_kernel(READ, X0, VALID, SHIFTED, SEEN, ORDER, TARGETS, COUNT, N, T, start, BLOCK_T: tl.constexpr,
                      BLOCK: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    overlap(PDL)
    first = tl.program_id(0) * T
    before, n = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.int32)
    for k in range(0, N, BLOCK):
        j = k + tl.arange(0, BLOCK)
        real = (tl.load(VALID + j, mask=j < N, other=0) != 0).to(tl.int32)
        n += real
        before += tl.where(j < first, real, 0)
    count, ahead = tl.sum(n, 0), tl.sum(before, 0)
    i = tl.arange(0, BLOCK_T)
    here, at = i < T, first + i
    valid = tl.load(VALID + at, mask=here, other=0) != 0
    upto = ahead + tl.cumsum(valid.to(tl.int32), 0)
    place = tl.where(valid, upto - 1, count + at - upto)
    tl.store(ORDER + place, at.to(tl.int64), mask=here)
    tl.store(TARGETS + place, tl.load(X0 + at, mask=here, other=0), mask=here)
    follows = here & (i > 0)
    tl.store(SHIFTED + at, tl.where(i > 0, tl.load(READ + at - 1, mask=follows, other=0), start), mask=here)
    tl.store(SEEN + at, tl.load(VALID + at - 1, mask=follows, other=1) != 0, mask=here)
    if first == 0:
        tl.store(COUNT, count.to(tl.int64))


def launch(T: int) -> dict:
    """Block sizes and warps for rows of T."""
    block = triton.next_power_of_2(T)
    return dict(BLOCK_T=block, BLOCK=BLOCK, num_warps=min(16, max(4, block // 256)), num_stages=1,
                enable_fp_fusion=True)  # fmt: skip


def next_token(read, x0, valid, start) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    if not read.shape == x0.shape == valid.shape or x0.dtype != torch.int64 or valid.dtype != torch.bool:
        raise ValueError("read and x0 must be (B, T) int64, and valid must be (B, T) bool")
    read, x0, valid = read.contiguous(), x0.contiguous(), valid.contiguous()
    (B, T), outputs = x0.shape, empty_outputs(read, x0, valid, start)
    start_kernel(next_token_kernel, (B,), read, x0, valid, *outputs, B * T, T, start, **launch(T))
    return outputs
