"""The Triton kernel of ops/batch.py: a program copies a piece of a row."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import overlap, start_kernel

BLOCK = 1024  # tokens a program, at most
OPTIONS = dict(num_warps=4, num_stages=1, enable_fp_fusion=True)


@triton.jit
def draw_kernel(TOKENS, STARTS, LENGTHS, ORDER, STEP, X0, VALID, T, steps_per_epoch, n_tokens, token_mask,
                BLOCK: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    overlap(PDL)
    b = tl.program_id(0).to(tl.int64)
    row = tl.load(ORDER + tl.load(STEP) % steps_per_epoch * tl.num_programs(0) + b)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at = tl.minimum(tl.load(STARTS + row) + i, n_tokens - 1)
    valid = i < tl.load(LENGTHS + row)
    x0 = tl.load(TOKENS + at, mask=i < T, other=0).to(tl.int64) & token_mask
    if VALID is not None:
        x0 = tl.where(valid, x0, 0)
        tl.store(VALID + b * T + i, valid, mask=i < T)
    tl.store(X0 + b * T + i, x0, mask=i < T)


def draw(tokens, starts, lengths, order, step, rows, steps_per_epoch, seq_len, mask, padded) -> tuple[Tensor, Tensor]:
    x0, block = order.new_empty(rows, seq_len), min(BLOCK, triton.next_power_of_2(seq_len))
    valid = order.new_empty((rows, seq_len) if padded else 0, dtype=torch.bool)
    start_kernel(
        draw_kernel, (rows, triton.cdiv(seq_len, block)), tokens, starts, lengths, order, step, x0,
        valid if padded else None, seq_len, steps_per_epoch, len(tokens),
        mask, BLOCK=block, **OPTIONS,
    )  # fmt: skip
    return x0, valid
