"""The linear cross-entropy of some rows of h, which the kernels gather, cast and scatter themselves.

    x_i = h[rows_i],   nll_i = logsumexp_v(x_i . w_v) - x_i . w_{y_i},   dh[rows_i] = g_i dx_i, 0 elsewhere

It is take_rows and linear_cross_entropy in one, with fewer launches: the forward pass keeps its copies of x and W in
the dtype of the products, and the backward pass reads them again. Only the fused Triton kernels serve it; elsewhere
linear_cross_entropy takes the rows first.
"""

import torch
from torch import Tensor

from .. import hardware
from ..dispatch import first_only, op, reference, server
from .linear_cross_entropy import (
    PLAIN,
    check_shapes,
    lce_backward_weight,
    lce_forward,
    linear_cross_entropy,
    live_only,
    product_dtype,
)
from .rows import put_rows, take_rows


def check_gathered(h: Tensor, rows: Tensor | None, weight: Tensor, V: int, targets: Tensor) -> None:
    """Raise ValueError where sizes do not fit: the kernels trust them."""
    if rows is None:
        check_shapes(h, weight, V, targets)
    elif rows.shape != targets.shape or rows.dtype != torch.int64:
        raise ValueError(f"rows are {tuple(rows.shape)} {rows.dtype}; they must be {tuple(targets.shape)} torch.int64")
    else:
        check_shapes(h[:0], weight, V)


def _fake(h, rows, weight, targets, n_rows, valid_vocab, dtype):
    N, D = len(targets), h.shape[1]
    nll, x = h.new_empty(N, dtype=torch.float32), h.new_empty(N, D, dtype=dtype)
    return nll, torch.empty_like(nll), h.new_empty(N, D), x, h.new_empty(valid_vocab, D, dtype=dtype)


@op("tdlm::lce_gathered", fake=_fake)
def lce_gathered(
    h: Tensor, rows: Tensor | None, weight: Tensor, targets: Tensor, n_rows: Tensor | None,
    valid_vocab: int, dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """nll (N,), lse (N,), the gradient of x for unit gradients (N, D), and x (N, D) and W (V, D) in dtype.

    h (M, D); rows (N,) int64, None for all of h in order; targets (N,); only the first n_rows rows count, and x is 0
    past them.
    """
    taken = h if rows is None else h[rows]
    nll, lse, dx = reference(lce_forward)(taken, weight, targets, n_rows, valid_vocab, dtype, True)
    x = taken.to(dtype, copy=True)
    if n_rows is not None:
        x = torch.where((torch.arange(len(x), device=x.device) < n_rows)[:, None], x, 0.0)
    return nll, lse.to(nll.dtype), dx, x, weight[:valid_vocab].to(dtype, copy=True)


@op(
    "tdlm::lce_gathered_backward",
    fake=lambda dx, x, w, targets, lse, grad, rows, n_rows, height, rows_of_w, of: (
        dx.new_empty(height, dx.shape[1]), dx.new_empty(rows_of_w, dx.shape[1], dtype=of),
    ),
)  # fmt: skip
def lce_gathered_backward(
    dx: Tensor, x: Tensor, w: Tensor, targets: Tensor, lse: Tensor, grad: Tensor, rows: Tensor | None,
    n_rows: Tensor | None, height: int, rows_of_w: int, of: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dh (height, D) in dx's dtype and dW (rows_of_w, D) in `of`, for the gradients grad (N,) of nll."""
    g = live_only(grad, n_rows)
    whole = torch.zeros(rows_of_w, x.shape[1], dtype=lse.dtype, device=x.device)
    whole[: len(w)] = reference(lce_backward_weight)(x, w.to(lse.dtype), targets, lse, g, n_rows, len(w), x.dtype)
    dh = (dx * g[:, None]).to(dx.dtype)
    return (dh if rows is None else reference(put_rows)(dh, rows, n_rows, height)), whole.to(of)


def _setup(ctx, inputs, output):
    h, rows, weight, targets, n_rows, *_ = inputs
    _, lse, dx, x, w = output
    ctx.height, ctx.rows_of_w, ctx.of = len(h), len(weight), weight.dtype
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(dx, x, w, targets, lse, rows, n_rows)


def _backward(ctx, grad, *_):
    first_only("linear_cross_entropy", PLAIN)
    if grad is None:
        return (None,) * 7
    dx, x, w, targets, lse, rows, n_rows = ctx.saved_tensors
    dh, dw = lce_gathered_backward(
        dx, x, w, targets, lse, grad.contiguous(), rows, n_rows, ctx.height, ctx.rows_of_w, ctx.of
    )
    return dh, None, dw, None, None, None, None


lce_gathered.register_autograd(_backward, setup_context=_setup)


def cross_entropy_of_rows(
    h: Tensor,  # (M, D)
    rows: Tensor | None,  # (N,) int64, of which the first n_rows differ; None takes all of h in order
    weight: Tensor,  # (V, D)
    targets: Tensor,  # (N,)
    token_weights: Tensor,  # (N,) fp32, without a gradient
    n_rows: Tensor | None = None,  # () integer on h's device: only the first n_rows rows count
) -> Tensor:
    """linear_cross_entropy(take_rows(h, rows, n_rows), weight, targets, token_weights, n_rows=n_rows): a scalar."""
    arguments = h, rows, weight, targets, n_rows, len(weight), product_dtype(h)
    is_trained = torch.is_grad_enabled() and h.requires_grad and weight.requires_grad
    if is_trained and not hardware.is_transformed() and server(lce_gathered, *arguments):
        return (lce_gathered(*arguments)[0] * token_weights).sum()
    x = h if rows is None else take_rows(h, rows, n_rows)
    return linear_cross_entropy(x, weight, targets, token_weights, n_rows=n_rows)
