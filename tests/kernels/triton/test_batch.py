"""The rows of a batch, drawn on the device."""

import pytest
import torch

from tdlm_fast.kernels import dispatch
from tdlm_fast.kernels.ops.batch import draw
from tests.kernels.triton.machine import DEVICE


def split_of(T, dtype, g):
    lengths = torch.randint(1, T + 1, (11,), generator=g)
    tokens = torch.randint(torch.iinfo(dtype).min, torch.iinfo(dtype).max, (int(lengths.sum()),), generator=g)
    parts = tokens.to(dtype), lengths.cumsum(0) - lengths, lengths, torch.randperm(11, generator=g)
    return [a.to(DEVICE) for a in parts]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("T, dtype", [(1, torch.int16), (33, torch.int32), (1500, torch.int16)])
def test_draw_gives_the_references_rows(T, dtype, padded):
    g = torch.Generator().manual_seed(T)
    parts, mask = split_of(T, dtype, g), 2 ** (8 * dtype.itemsize) - 1
    for number in (0, 1, 2, 7):  # 2 steps an epoch
        args = *parts, torch.tensor(number, device=DEVICE), 4, 2, T, mask, padded
        for a, b in zip(draw(*args), dispatch.reference(draw)(*args), strict=True):
            assert a.dtype == b.dtype and torch.equal(a, b)
    assert draw(*args)[0].max() > mask // 2 or T == 1  # unsigned
