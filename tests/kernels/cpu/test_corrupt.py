"""The corruption of csrc/cpu: the bits of the reference, and what it refuses."""

import os

import pytest
import torch

from tdlm_fast.kernels import corrupt
from tdlm_fast.kernels.cpu import library as native
from tdlm_fast.kernels.ops.corrupt import corrupt_op
from tdlm_fast.kernels.schedules import SCHEDULES


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampling", ["stratified", "antithetic", "independent"])
@pytest.mark.parametrize("padded", [False, True])
def test_corruption_is_the_references_bit_for_bit(schedule, sampling, padded):
    g = torch.Generator().manual_seed(0)
    x0 = torch.randint(0, 500, (7, 61), generator=g)[:, ::2]
    valid = torch.arange(x0.shape[1]) < torch.randint(1, 40, (7, 1), generator=g) if padded else None
    kw = dict(seed=2**32 - 3, step=9, mask_token_id=500, schedule=schedule, sampling=sampling, valid=valid)
    try:
        for offset, batch_rows in ((0, None), (2**26 - 5, 2**26 + 10)):  # the token index passes 2^32
            native.use("none")
            theirs = corrupt(x0, row_offset=offset, batch_rows=batch_rows, **kw)
            native.use(None)
            ours = corrupt(x0, row_offset=offset, batch_rows=batch_rows, **kw)
            assert ours.n_masked > 0
            for a, b in zip(ours, theirs, strict=True):
                assert torch.equal(a, b) and a.dtype == b.dtype
    finally:
        native.use(os.environ.get("TDLM_CPU_ISA"))


def test_corruption_refuses_what_the_kernel_cannot_read():
    x0 = torch.zeros(2, 3, dtype=torch.int64)
    for bad in (x0.int(), torch.zeros(2, 3)):
        with pytest.raises(ValueError, match="must be"):
            corrupt(bad, seed=0, step=0, mask_token_id=9)
    for bad in (torch.ones(2, 4, dtype=torch.bool), torch.ones(2, 3)):
        with pytest.raises(ValueError, match="must be"):
            corrupt(x0, seed=0, step=0, mask_token_id=9, valid=bad)


@pytest.mark.parametrize("offset, rows", [(0, 0), (0, -1), (-9, 4), (100, 5), (1_000_000, 4), (1, 2)])
def test_rows_outside_the_batch_are_an_error_and_no_crash(offset, rows):
    with pytest.raises(ValueError, match="lie outside batch_rows"):
        corrupt_op(
            torch.zeros(2, 3, dtype=torch.int64), None, 1, 2, None, None, 9, "linear", "stratified", offset, rows
        )
