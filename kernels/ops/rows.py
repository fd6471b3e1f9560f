"""Take some rows of a matrix and put their gradients back, where a number on the device says how many count.

    x_j = h[rows_j],   dh[rows_j] = dx_j, 0 elsewhere

No row is taken twice, so the gradient needs no sum.
"""

import torch
from torch import Tensor

from ..dispatch import op, reference


@op("tdlm::put_rows", fake=lambda dx, rows, n_rows, N: dx.new_empty(N, *dx.shape[1:]))
def put_rows(dx: Tensor, rows: Tensor, n_rows: Tensor | None, N: int) -> Tensor:
    """dh (N, D) of dx (M, D) and rows (M,) int64, of which the first n_rows count and differ; 0 elsewhere."""
    if n_rows is not None:  # rows past the count repeat one: they go to a row that is cut off
        rows = torch.where(torch.arange(len(rows), device=rows.device) < n_rows, rows, N)
    dh = dx.new_zeros(N + 1, *dx.shape[1:])
    return dh.index_copy_(0, rows, dx)[:N]


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, rows, n_rows):
        ctx.save_for_backward(rows, n_rows)
        ctx.N = len(h)
        return h.index_select(0, rows)

    @staticmethod
    def backward(ctx, dx):
        rows, n_rows = ctx.saved_tensors
        return (put_rows if dx.is_cuda else reference(put_rows))(dx, rows, n_rows, ctx.N), None, None


def take_rows(
    h: Tensor,  # (N, D)
    rows: Tensor,  # (M,) int64
    n_rows: Tensor | None = None,  # () int64: only the first n_rows rows count
) -> Tensor:
    """h[rows], where the rows that count all differ: (M, D). Rows past the count are read too, and send no gradient."""
    return _TakeRows.apply(h, rows, n_rows)
