"""Sort small integers, such as tokens, in a stable order: up to MAX_N of them in one launch on a GPU.

    rank_i = #{j: (key_j, j) < (key_i, i)},   sorted[rank_i] = key_i,   order[rank_i] = i

The kernel compares every key with every other. Longer lists take torch.sort, whose radix sort is many launches.
"""

import torch
from torch import Tensor

from ..dispatch import op

MAX_N = 1 << 13


@op(
    "tdlm::stable_order",
    fake=lambda keys, bound: (torch.empty_like(keys, dtype=torch.int32), torch.empty_like(keys, dtype=torch.int64)),
)
def stable_order(keys: Tensor, bound: int) -> tuple[Tensor, Tensor]:
    """keys (N,) in order, int32, and where each was, (N,) int64; keys are integers of 0 .. bound - 1."""
    values, order = torch.sort(keys.int(), stable=True)
    return values, order


def serves(n: int, bound: int) -> bool:
    """Return whether one launch ranks n keys below bound: a key and its place must fit 31 bits."""
    return 0 < n <= MAX_N and n * bound < 2**31
