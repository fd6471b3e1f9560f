"""The stable order of small integers."""

import pytest
import torch

from tdlm_fast.kernels.ops import stable_sort
from tdlm_fast.kernels.ops.stable_sort import stable_order


def test_equal_keys_stay_in_their_order():
    keys, order = stable_order(torch.tensor([3, 1, 3, 0, 1]), 4)
    assert keys.tolist() == [0, 1, 1, 3, 3] and order.tolist() == [3, 1, 4, 0, 2]
    assert keys.dtype == torch.int32 and order.dtype == torch.int64


def test_ranks_are_those_of_the_formula():
    """rank_i counts the pairs (key, place) before (key_i, i)."""
    keys = torch.randint(0, 5, (60,), generator=torch.Generator().manual_seed(0))
    pairs = keys * 60 + torch.arange(60)
    rank = (pairs[None] < pairs[:, None]).sum(1)
    values, order = stable_order(keys, 5)
    assert torch.equal(order[rank], torch.arange(60)) and torch.equal(values[rank].long(), keys)


def test_no_keys_are_no_error():
    keys, order = stable_order(torch.zeros(0, dtype=torch.int64), 4)
    assert keys.shape == order.shape == (0,)


@pytest.mark.parametrize("n, bound, expected", [
    (0, 5, False), (1, 5, True), (stable_sort.MAX_N, 50258, True), (stable_sort.MAX_N + 1, 2, False),
    (4, 2**29 - 1, True), (4, 2**29, False),  # n * bound must be below 2^31
])  # fmt: skip
def test_one_launch_ranks_what_fits_31_bits(n, bound, expected):
    assert stable_sort.serves(n, bound) is expected


def test_opcheck():
    torch.library.opcheck(stable_order, (torch.tensor([3, 1, 3]), 4))
