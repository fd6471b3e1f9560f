"""The Triton kernel of ops/stable_sort.py: each program ranks some keys among all."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import overlap, start_kernel

BLOCK, LOOK = 32, 128  # keys a program ranks, and keys it compares them with at once
OPTIONS = dict(num_warps=4, num_stages=1, enable_fp_fusion=True)


@triton.jit
def rank_kernel(KEYS, SORTED, ORDER, N, BLOCK: tl.constexpr, LOOK: tl.constexpr, PDL: tl.constexpr):
    overlap(PDL)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(KEYS + i, mask=i < N, other=0).to(tl.int32)
    mine = key * N + i
    before = tl.zeros([BLOCK, LOOK], tl.int32)
    for start in range(0, N, LOOK):
        j = start + tl.arange(0, LOOK)
        other = tl.load(KEYS + j, mask=j < N, other=0).to(tl.int32) * N + j
        before += ((other[None, :] < mine[:, None]) & (j < N)[None, :]).to(tl.int32)
    rank = tl.sum(before, 1)
    tl.store(SORTED + rank, key, mask=i < N)
    tl.store(ORDER + rank, i.to(tl.int64), mask=i < N)


def stable_order(keys: Tensor, bound: int) -> tuple[Tensor, Tensor]:
    keys = keys.contiguous()
    ordered, order = torch.empty_like(keys, dtype=torch.int32), torch.empty_like(keys, dtype=torch.int64)
    grid = (triton.cdiv(len(keys), BLOCK),)
    start_kernel(rank_kernel, grid, keys, ordered, order, len(keys), BLOCK=BLOCK, LOOK=LOOK, **OPTIONS)
    return ordered, order
