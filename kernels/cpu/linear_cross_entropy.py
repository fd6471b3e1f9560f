"""The linear cross-entropy of csrc/cpu/linear_cross_entropy.h, for fp32 and bf16."""

import torch
from torch import Tensor

from ..dispatch import implement
from ..ops.linear_cross_entropy import check_shapes, count, lce_backward_weight, lce_forward, lce_sum
from . import library


def _serves(h: Tensor, weight: Tensor, dtype: torch.dtype) -> str:
    return library.serves(h.dtype, weight.dtype, dtype) or ("" if h.shape[1] else "the width is 0")


def _call(name: str, h: Tensor, weight: Tensor, targets: Tensor, n: int, V: int, dtype: torch.dtype, *more):
    bf16 = torch.bfloat16
    error = library.call(
        name, h, h.dtype == bf16, weight, weight.dtype == bf16, dtype == bf16, targets, n, h.shape[1], V, *more,
    )  # fmt: skip
    if error:
        y = targets[:n]
        raise ValueError(f"targets reach from {y.min()} to {y.max()}; they must lie in 0..{V - 1}")


def forward(h, weight, targets, n_rows, valid_vocab, dtype, need_dh):
    check_shapes(h, weight, valid_vocab, targets)
    h, weight, targets = h.contiguous(), weight.contiguous(), targets.long().contiguous()
    N, n = h.shape[0], max(0, count(n_rows, h.shape[0]))
    nll, lse = h.new_zeros(N, dtype=torch.float32), h.new_zeros(N, dtype=torch.float64)
    dh = h.new_empty(N if need_dh else 0, h.shape[1])
    dh[n:] = 0
    _call("tdlm_lce_forward", h, weight, targets, n, valid_vocab, dtype, nll, lse, dh if need_dh else None)
    return nll, lse, dh


def backward_weight(h, weight, targets, lse, grad, n_rows, valid_vocab, dtype):
    check_shapes(h, weight, valid_vocab, targets, lse, grad)
    h, weight, targets, lse, grad = (a.contiguous() for a in (h, weight, targets.long(), lse.double(), grad.float()))
    n, dw = max(0, count(n_rows, h.shape[0])), torch.empty_like(weight)
    dw[valid_vocab:] = 0
    _call("tdlm_lce_backward_weight", h, weight, targets, n, valid_vocab, dtype, lse, grad, dw)
    return dw


def loss_sum(h, weight, targets, token_weights, n_rows, valid_vocab, dtype):
    check_shapes(h, weight, valid_vocab, targets, token_weights)
    h, weight, targets, g = (a.contiguous() for a in (h, weight, targets.long(), token_weights.float()))
    n = max(0, count(n_rows, h.shape[0]))
    nll, lse = h.new_empty(n, dtype=torch.float32), h.new_empty(n, dtype=torch.float64)
    dh, dw = torch.empty_like(h), torch.empty_like(weight)
    dh[n:], dw[valid_vocab if n else 0 :] = 0, 0
    _call("tdlm_lce_sum", h, weight, targets, n, valid_vocab, dtype, g, nll, lse, dh, dw)
    return nll.dot(g[:n]), dh, dw


implement(lce_forward, "cpu", "cpu", lambda h, w, y, n, V, dtype, need_dh: _serves(h, w, dtype), forward)
implement(lce_backward_weight, "cpu", "cpu", lambda h, w, *rest: _serves(h, w, rest[-1]), backward_weight)
implement(lce_sum, "cpu", "cpu", lambda h, w, *rest: _serves(h, w, rest[-1]), loss_sum)
