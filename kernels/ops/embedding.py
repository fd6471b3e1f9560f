"""Rows of a table by token, with a gradient that has the same bits in every run and never waits for the host.

    x_i = w[t_i],   dw[v] = sum_{i: t_i = v} dx_i

On a GPU thousands of gradient rows go to one row of the table, above all to that of the mask token. The positions are
sorted by token and cut into chunks. A chunk sums its runs of equal tokens and writes the runs that end inside it; then
every longer run adds up its chunks in order. A frequent token costs as many steps as it has chunks, without atomics.
On the CPU the embedding is PyTorch's. Sums are fp32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dispatch import op


@op("tdlm::embedding_backward", fake=lambda dx, tokens, rows: dx.new_empty(rows, dx.shape[1]))
def embedding_backward(dx: Tensor, tokens: Tensor, rows: int) -> Tensor:
    """dw (rows, D) in dx's dtype, of dx (N, D) and tokens (N,) int64; sums in fp32, fp64 for fp64."""
    acc = torch.float64 if dx.dtype == torch.float64 else torch.float32
    return dx.new_zeros(rows, dx.shape[1], dtype=acc).index_add_(0, tokens, dx.to(acc)).to(dx.dtype)


class EmbeddingFunction(torch.autograd.Function):
    """F.embedding whose gradient is embedding_backward."""

    @staticmethod
    def forward(ctx, tokens, weight):
        ctx.save_for_backward(tokens)
        ctx.rows = len(weight)
        return F.embedding(tokens, weight)

    @staticmethod
    def backward(ctx, dx):
        (tokens,) = ctx.saved_tensors
        return None, embedding_backward(dx.flatten(0, -2).contiguous(), tokens.flatten(), ctx.rows)


def embedding(
    tokens: Tensor,  # any shape, int64
    weight: Tensor,  # (V, D)
) -> Tensor:
    """F.embedding(tokens, weight): (*tokens.shape, D)."""
    return EmbeddingFunction.apply(tokens, weight) if weight.is_cuda else F.embedding(tokens, weight)
