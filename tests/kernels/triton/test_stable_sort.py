"""The stable order of tokens."""

import pytest
import torch

from tdlm_fast.kernels.ops import stable_sort
from tdlm_fast.kernels.ops.stable_sort import stable_order
from tests.kernels.triton.machine import DEVICE


@pytest.mark.parametrize("kind", ["any", "few", "alike", "int32"])
@pytest.mark.parametrize("N", [1, 31, 32, 129, 700])
def test_the_order_is_torchs(kind, N):
    g = torch.Generator().manual_seed(N)
    bound = {"few": 3, "alike": 8}.get(kind, 50258)
    keys = torch.randint(0, bound, (N,), generator=g).to(DEVICE)
    keys = {"alike": keys * 0 + 7, "int32": keys.int()}.get(kind, keys)
    ordered, where = stable_order(keys, bound)
    truth, place = torch.sort(keys.int(), stable=True)
    assert ordered.dtype == torch.int32 and torch.equal(ordered, truth) and torch.equal(where, place)


def test_what_is_too_long_or_too_large_is_sorted(monkeypatch):
    keys = torch.tensor([2**30, 5, 2**30, 0], device=DEVICE)
    assert (
        not stable_sort.serves(4, 2**31) and stable_sort.serves(2**13, 50258) and not stable_sort.serves(2**13 + 1, 2)
    )
    assert stable_order(keys, 2**31)[1].tolist() == [3, 1, 0, 2]
    monkeypatch.setattr(stable_sort, "MAX_N", 3)
    assert stable_order(keys % 100, 100)[1].tolist() == [3, 1, 0, 2]
