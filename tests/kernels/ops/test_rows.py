"""Rows taken from a table, and their gradients."""

import pytest
import torch

from tdlm_fast.kernels import take_rows


@pytest.mark.parametrize("n", [0, 1, 4, None])
def test_take_rows_sends_each_gradient_to_its_row(n):
    h = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    rows = torch.tensor([1, 2, 4, 5, 0, 0] if n is not None else [5, 3, 1, 0, 2, 4])
    live = 6 if n is None else n
    dx = torch.randn(6, 3, dtype=torch.float64)
    x = take_rows(h, rows, None if n is None else torch.tensor(n))
    assert torch.equal(x, h[rows])
    truth = torch.zeros(6, 3, dtype=torch.float64)
    truth[rows[:live]] = dx[:live]
    assert torch.equal(torch.autograd.grad(x, h, dx)[0], truth)
