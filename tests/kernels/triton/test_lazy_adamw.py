"""The kernels of the lazy AdamW: rows that wait have the bits of rows that do not, and the values of the reference."""

import pytest
import torch

from tdlm_fast.kernels.dispatch import reference
from tdlm_fast.kernels.ops.lazy_adamw import catch_up, update_rows
from tests.kernels.ops.test_lazy_adamw import CONSTANTS, Table, batch, compare

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPS = catch_up, update_rows


@pytest.mark.parametrize("D, steps", [(5, 60), (64, 60), (1100, 10)])  # odd, whole, and more than a block
def test_rows_that_wait_have_the_bits_of_rows_that_do_not(D, steps):
    shape = 20, D
    lazy, dense = (Table(shape, steps, lazy=on, device=DEVICE) for on in (True, False))
    compare(lazy, dense, shape, steps, settle_at=steps // 2, device=DEVICE)


@pytest.mark.parametrize("D", [5, 64])
def test_the_kernels_are_the_reference(D):
    """PyTorch's square root on a CPU may be off by one place, so the bits may differ, most of all of weights near 0."""
    shape, steps = (20, D), 40
    ours, truth = (Table(shape, steps, ops=ops, device=DEVICE) for ops in (OPS, tuple(map(reference, OPS))))
    for i in range(steps):
        tokens, *rest = batch(i, shape, device=DEVICE)
        for table in (ours, truth):
            table.prepare(tokens)
            table.update(*rest)
        for name in ("last", "mark"):
            assert torch.equal(getattr(ours, name), getattr(truth, name)), name
    for name in ("p", "m", "v", "scalars"):
        torch.testing.assert_close(getattr(ours, name), getattr(truth, name), rtol=1e-6, atol=2e-8)


@pytest.mark.parametrize("tokens", [None, torch.tensor([[3, 1], [3, 3]])])
def test_opcheck(tokens):
    table = Table((6, 5), 4, device=DEVICE)
    table.mark[3] = 1
    one, tokens = torch.tensor(1.0, device=DEVICE), tokens if tokens is None else tokens.to(DEVICE)
    torch.library.opcheck(catch_up, (*table.tensors(), tokens, table.always, *CONSTANTS))
    torch.library.opcheck(update_rows, (*table.tensors(), torch.ones(6, 5, device=DEVICE), one, one, one, *CONSTANTS))
