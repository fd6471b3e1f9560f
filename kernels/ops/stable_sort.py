"""The stable order of small integers, as the tokens are: in one launch on a GPU, up to MAX_N of them.

    rank_i = #{j: (key_j, j) < (key_i, i)},   sorted[rank_i] = key_i,   order[rank_i] = i

Every key is compared with every other, so longer lists are left to torch.sort, whose radix sort takes many launches.
"""

import torch
from torch import Tensor

from ..dispatch import op

MAX_N = 1 << 13


def stable_order_ref(keys: Tensor, bound: int) -> tuple[Tensor, Tensor]:
    return tuple(torch.sort(keys.int(), stable=True))


@op("tdlm::stable_order")
def stable_order(keys: Tensor, bound: int) -> tuple[Tensor, Tensor]:
    """keys (N,) in order, int32, and where each was, (N,) int64; keys are integers of 0 .. bound - 1."""
    return stable_order_ref(keys, bound)


@stable_order.register_fake
def _(keys, bound):
    return torch.empty_like(keys, dtype=torch.int32), torch.empty_like(keys, dtype=torch.int64)


def serves(n: int, bound: int) -> bool:
    """Whether so many keys are ranked in one launch: a key and its place must fit 31 bits."""
    return 0 < n <= MAX_N and n * bound < 2**31
