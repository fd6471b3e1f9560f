"""Philox4x32-10 in Triton, the same words as philox.random_words.

tl.philox is the generator of Salmon et al. (SC 2011) with a key of 64 bits: seed in the low half, step in the high.
"""

import triton
import triton.language as tl

UINT32_MASK = tl.constexpr(0xFFFFFFFF)


@triton.jit
def random_words(index, seed, step, STREAM: tl.constexpr):
    """One word, int64 in [0, 2^32), for every index, int64 >= 0. seed and step: int64 scalars."""
    index = tl.cast(index, tl.int64)
    zero = (index & 0).to(tl.uint32)
    key = (tl.cast(seed, tl.int64) & UINT32_MASK) | (tl.cast(step, tl.int64) << 32)
    low, high = (index & UINT32_MASK).to(tl.uint32), (index >> 32).to(tl.uint32)
    word, _, _, _ = tl.philox(key, low, high, zero + STREAM, zero)
    return word.to(tl.int64)
