"""The embedding and its gradient."""

import torch
import torch.nn.functional as F

from tdlm_fast.kernels import embedding
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
