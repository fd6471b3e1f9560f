"""Corruption in Triton: the bits of ops/corrupt.py in two launches, one program per chunk of a sequence.

    mask      t, masked, xt, weights of a chunk, and how many of its tokens are masked
    compact   rows, targets, row weights of a chunk, behind those of the chunks before it

It takes two launches because the place of a chunk's rows depends on all counts before it. In one launch programs would
wait for each other, through a buffer that must be cleared before each call, which is a launch too. With
sampling="counts" or "exact" a program holds its whole sequence, of which it masks a number of tokens.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops.corrupt import BY_COUNT, SAMPLINGS, check_inputs, empty_outputs
from ..philox import STREAM_SUBSET, STREAM_TIME, STREAM_TOKEN, UINT32_MASK
from ..schedules import count_weights, table
from .launch import overlap, start_kernel
from .tiles import SMALL

WORD = tl.constexpr(UINT32_MASK)
CHUNK = 256  # tokens of a program, at most; a program that holds its sequence spills past tiles.MAX_T
BLOCK_C = 256  # counts that are added up at once
TIME, TOKEN, SUBSET = tl.constexpr(STREAM_TIME), tl.constexpr(STREAM_TOKEN), tl.constexpr(STREAM_SUBSET)
ANTITHETIC, INDEPENDENT, COUNTS, EXACT = (
    tl.constexpr(SAMPLINGS.index(n)) for n in ("antithetic", "independent", "counts", "exact")
)


@triton.jit
def random_words(index, seed, step, STREAM: tl.constexpr):
    """philox.random_words: int64 in [0, 2^32) for every index, int64 >= 0. The key is seed and step, int64 scalars."""
    index = tl.cast(index, tl.int64)
    zero = (index & 0).to(tl.uint32)
    key = (tl.cast(seed, tl.int64) & WORD) | (tl.cast(step, tl.int64) << 32)
    low, high = (index & WORD).to(tl.uint32), (index >> 32).to(tl.uint32)
    word, _, _, _ = tl.philox(key, low, high, zero + STREAM, zero)
    return word.to(tl.int64)


@triton.jit(do_not_specialize=["seed", "step", "mask_token_id", "row_offset", "batch_rows"])
def mask_kernel(X0, VALID, SEED_AT, STEP_AT, THRESHOLD, WEIGHT, XT, MASKED, WEIGHTS, T_OUT, HOW_MANY, seed, step,
                mask_token_id, row_offset, batch_rows, T, SAMPLING: tl.constexpr, BLOCK_T: tl.constexpr,
                PDL: tl.constexpr):  # fmt: skip
    overlap(PDL)
    if SEED_AT is not None:
        seed = tl.load(SEED_AT)
    if STEP_AT is not None:
        step = tl.load(STEP_AT)
    b, chunk = tl.cast(tl.program_id(0), tl.int64), tl.program_id(1)
    row = b + row_offset
    if SAMPLING == ANTITHETIC:
        u = random_words(row // 2, seed, step, TIME)
        u = tl.where(row % 2 == 0, u, 4294967295 - u)
    else:
        u = random_words(row, seed, step, TIME)
        if SAMPLING != INDEPENDENT and SAMPLING != EXACT:
            u = ((row << 32) + u) // batch_rows
    level = u >> 16
    threshold = tl.load(THRESHOLD + level)
    i = chunk * BLOCK_T + tl.arange(0, BLOCK_T)
    here = i < T
    at = b * T + i
    x0 = tl.load(X0 + at, mask=here, other=0)
    real = here
    if VALID is not None:
        real = tl.load(VALID + at, mask=here, other=0) != 0
    if SAMPLING == COUNTS or SAMPLING == EXACT:
        n = tl.sum(real.to(tl.int64), 0)
        if SAMPLING == COUNTS:
            count = tl.maximum((threshold * n + 4294967295) >> 32, 1)
        else:
            count = (threshold * n) >> 32
        words = (random_words(row * T + i, seed, step, SUBSET) << 14) | i  # ties go by place
        last = tl.cast(0, tl.int64)  # the count-th smallest of them, bit by bit
        for bit in range(0, 46):
            more = last | (tl.cast(1, tl.int64) << (45 - bit))
            below = tl.sum((real & (words < more)).to(tl.int64), 0)
            last = tl.where(below < count, more, last)
        masked = real & (words <= last) & (count > 0)
    else:
        masked = real & (random_words(row * T + i, seed, step, TOKEN) < threshold)
    if SAMPLING == COUNTS:
        if VALID is not None:
            count += n * (T + 1)
        weight = tl.load(WEIGHT + count)
    else:
        weight = tl.load(WEIGHT + level)
    tl.store(XT + at, tl.where(masked, mask_token_id, x0), mask=here)
    tl.store(MASKED + at, masked, mask=here)
    tl.store(WEIGHTS + at, tl.where(masked, weight, 0.0), mask=here)
    if chunk == 0:
        tl.store(T_OUT + b, (level.to(tl.float32) + 0.5) / 65536)
    tl.store(HOW_MANY + b * tl.num_programs(1) + chunk, tl.sum(masked.to(tl.int32), 0))


@triton.jit(do_not_specialize=["chunks"])
def compact_kernel(X0, MASKED, WEIGHTS, HOW_MANY, ROWS, TARGETS, ROW_WEIGHTS, N_MASKED, chunks, T,
                   BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    overlap(PDL)
    b, mine = tl.program_id(0), tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    before, n = tl.cast(0, tl.int64), tl.cast(0, tl.int64)
    for start in range(0, chunks, BLOCK_C):
        other = start + tl.arange(0, BLOCK_C)
        many = tl.load(HOW_MANY + other, mask=other < chunks, other=0).to(tl.int64)
        n += tl.sum(many, 0)
        before += tl.sum(tl.where(other < mine, many, 0), 0)
    i = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    here = i < T
    at = tl.cast(b, tl.int64) * T + i
    masked = tl.load(MASKED + at, mask=here, other=0) != 0
    place = before + tl.cumsum(masked.to(tl.int32), 0) - 1
    tl.store(ROWS + place, at, mask=masked)
    tl.store(TARGETS + place, tl.load(X0 + at, mask=masked, other=0), mask=masked)
    tl.store(ROW_WEIGHTS + place, tl.load(WEIGHTS + at, mask=masked, other=0.0), mask=masked)
    past = here & (at >= n)  # every place past the count is 0
    tl.store(ROWS + at, tl.zeros([BLOCK_T], tl.int64), mask=past)
    tl.store(TARGETS + at, tl.zeros([BLOCK_T], tl.int64), mask=past)
    tl.store(ROW_WEIGHTS + at, tl.zeros([BLOCK_T], tl.float32), mask=past)
    if mine == 0:
        tl.store(N_MASKED, n)


def launch(T: int, sampling: str) -> tuple[int, dict]:
    """(tokens a program, options) of both kernels: at most 8 tokens a thread, up to 32 warps."""
    block = triton.next_power_of_2(T) if sampling in BY_COUNT else min(CHUNK, triton.next_power_of_2(T))
    return block, SMALL | {"num_warps": min(32, max(4, block // 256))}


@functools.cache  # for ever: a captured graph reads the tables at their address
def _tables(schedule: str, counts: bool, T: int, padding: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """(threshold int64, weight fp32) on the device; made once, so that a captured step copies nothing from the host."""
    threshold, weight = table(schedule)
    weight = count_weights(schedule, T, padding) if counts else weight.float()
    return threshold.to(device), weight.to(device).contiguous()


def corrupt(x0, valid, seed, step, seed_at, step_at, mask_token_id, schedule, sampling, row_offset, batch_rows):
    check_inputs(x0, valid)
    seed, step = seed & UINT32_MASK, step & UINT32_MASK
    (B, T), device, counts = x0.shape, x0.device, sampling == "counts"
    x0, valid = x0.contiguous(), None if valid is None else valid.contiguous()
    threshold, weight = _tables(schedule, counts, T if counts else 0, counts and valid is not None, device)
    xt, masked, weights, t, rows, targets, row_weights, n = outputs = empty_outputs(x0)
    block, options = launch(T, sampling)
    grid = (B, triton.cdiv(T, block))
    how_many = x0.new_empty(grid, dtype=torch.int32)
    start_kernel(
        mask_kernel, grid, x0, valid, seed_at, step_at, threshold, weight, xt, masked, weights, t, how_many, seed,
        step, mask_token_id, row_offset, batch_rows, T, SAMPLING=SAMPLINGS.index(sampling), BLOCK_T=block, **options,
    )  # fmt: skip
    start_kernel(
        compact_kernel, grid, x0, masked, weights, how_many, rows, targets, row_weights, n, how_many.numel(), T,
        BLOCK_T=block, BLOCK_C=BLOCK_C, **options,
    )  # fmt: skip
    return outputs
