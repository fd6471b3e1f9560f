"""Rows of a table and their gradients."""

import pytest
import torch
import torch.nn.functional as F

from tdlm_fast.kernels import embedding, take_rows
from tdlm_fast.kernels.ops.embedding import EmbeddingFunction, embedding_backward


def test_embedding_is_torchs_to_the_bit_and_its_op_agrees():
    weight, tokens = torch.randn(11, 8, requires_grad=True), torch.randint(0, 11, (3, 7))
    dx = torch.randn(3, 7, 8)
    (truth,) = torch.autograd.grad(F.embedding(tokens, weight), weight, dx)
    for of in (embedding, EmbeddingFunction.apply):
        x = of(tokens, weight)
        assert torch.equal(x, weight[tokens])
        torch.testing.assert_close(torch.autograd.grad(x, weight, dx)[0], truth)
    torch.library.opcheck(embedding_backward, (dx.flatten(0, 1), tokens.flatten(), 11))


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
