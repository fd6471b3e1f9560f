"""Rows of a table, in and out, with gradients that are the same bits every run and never wait for the host.

    embedding   x_i = w[t_i],      dw[v] = sum_{i: t_i = v} dx_i
    take_rows   x_j = h[rows_j],   dh[rows_j] = dx_j, 0 elsewhere (put_rows): no row is taken twice

On a GPU thousands of gradient rows go to one row of the table, [MASK] above all. The positions are sorted by token and
cut into chunks; a chunk sums its runs of equal tokens and writes the runs that end inside it, then every longer run
adds up its chunks, in their order. So a hot row costs as many steps as it has chunks, whoever is hot, without atomics.
On the CPU the embedding is PyTorch's. Sums are fp32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import HAS_TRITON


def embedding_backward_ref(dx: Tensor, tokens: Tensor, rows: int) -> Tensor:
    """dw (rows, D) in dx's dtype; sums in fp32, fp64 for fp64."""
    acc = torch.float64 if dx.dtype == torch.float64 else torch.float32
    return dx.new_zeros(rows, dx.shape[1], dtype=acc).index_add_(0, tokens, dx.to(acc)).to(dx.dtype)


@torch.library.custom_op("tdlm::embedding_backward", mutates_args=())
def embedding_backward(dx: Tensor, tokens: Tensor, rows: int) -> Tensor:
    """dw (rows, D) of dx (N, D) and tokens (N,) int64."""
    return embedding_backward_ref(dx, tokens, rows)


@embedding_backward.register_fake
def _(dx, tokens, rows):
    return dx.new_empty(rows, dx.shape[1])


def put_rows_ref(dx: Tensor, rows: Tensor, n_rows: Tensor | None, N: int) -> Tensor:
    if n_rows is not None:  # what comes after the count repeats a row: it goes to a row that is cut off
        rows = torch.where(torch.arange(len(rows), device=rows.device) < n_rows, rows, N)
    dh = dx.new_zeros(N + 1, *dx.shape[1:])
    return dh.index_copy_(0, rows, dx)[:N]


@torch.library.custom_op("tdlm::put_rows", mutates_args=())
def put_rows(dx: Tensor, rows: Tensor, n_rows: Tensor | None, N: int) -> Tensor:
    """dh (N, D) of dx (M, D) and rows (M,) int64, of which the first n_rows count and differ; 0 elsewhere."""
    return put_rows_ref(dx, rows, n_rows, N)


@put_rows.register_fake
def _(dx, rows, n_rows, N):
    return dx.new_empty(N, *dx.shape[1:])


def _triton_put(dx, rows, n_rows, N):
    if dx.dim() != 2 or not dx.numel():
        return put_rows._init_fn(dx, rows, n_rows, N)
    from ..triton import embedding as embedding_triton

    return embedding_triton.put_rows(dx, rows, n_rows, N)


def _triton_backward(dx, tokens, rows):
    if dx.dtype == torch.float64 or not dx.numel():
        return embedding_backward_ref(dx, tokens, rows)
    from ..triton import embedding as embedding_triton

    return embedding_triton.backward(dx, tokens, rows)


def register(device: str) -> None:
    """Let the Triton kernels serve a device type: "cuda", or "cpu" in a process of Triton's interpreter."""
    embedding_backward.register_kernel(device)(_triton_backward)
    put_rows.register_kernel(device)(_triton_put)


if HAS_TRITON:
    register("cuda")


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tokens, weight):
        ctx.save_for_backward(tokens)
        ctx.rows = len(weight)
        return F.embedding(tokens, weight)

    @staticmethod
    def backward(ctx, dx):
        (tokens,) = ctx.saved_tensors
        return None, embedding_backward(dx.flatten(0, -2).contiguous(), tokens.flatten(), ctx.rows)


def embedding(tokens: Tensor, weight: Tensor) -> Tensor:
    """F.embedding(tokens, weight): tokens of any shape, int64, weight (V, D); (*tokens.shape, D)."""
    return _Embedding.apply(tokens, weight) if weight.is_cuda else F.embedding(tokens, weight)


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, rows, n_rows):
        ctx.save_for_backward(rows, n_rows)
        ctx.N = len(h)
        return h.index_select(0, rows)

    @staticmethod
    def backward(ctx, dx):
        rows, n_rows = ctx.saved_tensors
        return (put_rows if dx.is_cuda else put_rows_ref)(dx, rows, n_rows, ctx.N), None, None


def take_rows(h: Tensor, rows: Tensor, n_rows: Tensor | None = None) -> Tensor:
    """h[rows] for h (N, D) and rows (M,) int64, of which the first n_rows (() int64, default all) are all different.

    Rows past the count are read too, and send no gradient.
    """
    return _TakeRows.apply(h, rows, n_rows)
