"""RMSNorm and the gate of SwiGLU of csrc/cpu/norm_and_gate.h, a row at a time."""

import torch
from torch import Tensor

from ..dispatch import implement
from ..ops.rms_norm import check_shapes, rms_norm_backward, rms_norm_forward
from ..ops.swiglu import check_gradient, swiglu_backward, swiglu_forward
from . import library

ROWS_OF_TASK = 256  # sums over rows are cut there, whatever the number of threads


def _serves_gate(x: Tensor) -> str:
    fits = x.numel() and x.shape[-1] % 2 == 0
    return library.serves(x.dtype) or ("" if fits else "it takes a width that is even, and some rows")


def _serves_norm(x: Tensor, weight: Tensor) -> str:
    if why := library.serves():
        return why
    if not x.dtype == weight.dtype == torch.float32:
        return "it takes fp32"
    fits = x.numel() and x.shape[-1] % 16 == 0 and weight.shape == x.shape[-1:]
    return "" if fits else "it takes a width that is a multiple of 16, and some rows"


def _run(x: Tensor, dy: Tensor | None, y: Tensor, n: int, weight=None, dw=None, eps: float = 0.0) -> None:
    is_bf16, rows = x.dtype == torch.bfloat16, x.numel() // x.shape[-1]
    library.call("tdlm_rows", is_bf16, x, dy, y, weight, dw, rows, n, ROWS_OF_TASK, eps)


def swiglu(x):
    x, n = x.contiguous(), x.shape[-1] // 2
    y = x.new_empty(*x.shape[:-1], n)
    _run(x, None, y, n)
    return y


def swiglu_gradient(dy, x):
    n = x.shape[-1] // 2
    check_gradient(dy, x)
    x, dx = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    _run(x, dy.to(x.dtype).contiguous(), dx, n)
    return dx


def rms_norm(x, weight, eps):
    x, weight = x.contiguous(), weight.contiguous()
    y = torch.empty_like(x)
    _run(x, None, y, len(weight), weight, None, eps)
    return y


def rms_norm_gradients(dy, x, weight, eps):
    check_shapes(x, weight, dy)
    x, weight, n = x.contiguous(), weight.contiguous(), len(weight)
    dx, dw = torch.empty_like(x), x.new_empty(-(-x.numel() // (n * ROWS_OF_TASK)), n)
    _run(x, dy.float().contiguous(), dx, n, weight, dw, eps)
    return dx, dw.sum(0)


implement(swiglu_forward, "cpu", "cpu", _serves_gate, swiglu)
implement(swiglu_backward, "cpu", "cpu", lambda dy, x: _serves_gate(x), swiglu_gradient)
implement(rms_norm_forward, "cpu", "cpu", lambda x, weight, eps: _serves_norm(x, weight), rms_norm)
implement(rms_norm_backward, "cpu", "cpu", lambda dy, x, weight, eps: _serves_norm(x, weight), rms_norm_gradients)
