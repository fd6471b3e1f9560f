"""Philox4x32-10, a counter-based generator: random words as a pure function of (key, counter).

    (c0, c1, c2, c3) -> (hi(M1 c2) ^ c1 ^ k0, lo(M1 c2), hi(M0 c0) ^ c3 ^ k1, lo(M0 c0)),  ten rounds,
    the key raised by the Weyl constants before each round but the first.

Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011; checked in
tests against the known answers of its public implementation, Random123.
"""

import torch
from torch import Tensor

M0, M1 = 0xD2511F53, 0xCD9E8D57
W0, W1 = 0x9E3779B9, 0xBB67AE85
UINT32_MASK = 0xFFFFFFFF

# Streams keep draws for different purposes apart: they are the third word of the counter.
STREAM_TOKEN, STREAM_TIME, STREAM_BATCH, STREAM_SUBSET, STREAM_SAMPLE, STREAM_DROPOUT = range(6)


def _mul(a: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a * m. The product of two words overflows int64, so split m in halves."""
    low = a * (m & 0xFFFF)  # < 2^48
    high = a * (m >> 16) + (low >> 16)  # < 2^49
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def philox4x32(counter: tuple[Tensor, ...], key: tuple) -> tuple[Tensor, ...]:
    """Ten rounds of Philox4x32. counter: four int64 tensors of words in [0, 2^32); the same back."""
    c0, c1, c2, c3 = counter
    k0, k1 = key[0] & UINT32_MASK, key[1] & UINT32_MASK
    for _ in range(10):
        hi0, lo0 = _mul(c0, M0)
        hi1, lo1 = _mul(c2, M1)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + W0) & UINT32_MASK, (k1 + W1) & UINT32_MASK
    return c0, c1, c2, c3


def random_words(index: Tensor, *, seed: int, step: int, stream: int) -> Tensor:
    """One 32-bit word for every index (any shape, int64, >= 0): int64 in [0, 2^32)."""
    zero = torch.zeros_like(index)
    return philox4x32((index & UINT32_MASK, index >> 32, zero + stream, zero), (seed, step))[0]
