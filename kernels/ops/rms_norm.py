"""RMSNorm (Zhang & Sennrich 2019), forward and backward in one pass each, with or without the residual's addition.

    y = x r w,   r = 1 / sqrt(mean(x^2) + eps);   dx = r dy w - x r^3 mean(dy w x),   dw = sum over rows of dy x r
    s = x + a,   y = norm(s);                     dx = da = ds + the gradient of the norm

Where no backend serves a call, the functions are F.rms_norm. Sums are fp32 (fp64 for fp64), and results are rounded
once. Only x (or s) is kept for the backward pass.

A kernel's programs each sum dw over some rows, and one more launch per norm adds up these parts. spread leaves the
parts of all norms of a model apart until the end of the backward pass, and adds them up there together.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import hardware
from ..dispatch import differentiate, op, server

PARTS = 256  # of dw, at most


def _wide(*tensors: Tensor) -> list[Tensor]:
    return [a if a.dtype == torch.float64 else a.float() for a in tensors]


def rms_norm_ref(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Specify the norm: y (..., D), not yet rounded."""
    a, w = _wide(x, weight)
    return a * torch.rsqrt((a * a).mean(-1, keepdim=True) + eps) * w


def rms_norm_backward_ref(dy: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Specify its gradients: dx (..., D) and dw (D,), not yet rounded."""
    d, a, w = _wide(dy, x, weight)
    r = torch.rsqrt((a * a).mean(-1, keepdim=True) + eps)
    dx = r * d * w - a * r**3 * (d * w * a).mean(-1, keepdim=True)
    return dx, (d * a * r).flatten(0, -2).sum(0)


@op("tdlm::rms_norm", fake=lambda x, weight, eps: x.new_empty(x.shape))
def rms_norm_forward(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """y (..., D) of x (..., D) and weight (D,), in x's dtype."""
    return rms_norm_ref(x, weight, eps).to(x.dtype)


@op("tdlm::rms_norm_backward", fake=lambda dy, x, weight, eps: (x.new_empty(x.shape), torch.empty_like(weight)))
def rms_norm_backward(dy: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """dx (..., D) and dw (D,) of dy (..., D)."""
    dx, dw = rms_norm_backward_ref(dy, x, weight, eps)
    return dx.to(x.dtype), dw.to(weight.dtype)


differentiate(rms_norm_forward, rms_norm_backward, "F.rms_norm")


@op(
    "tdlm::add_rms_norm",
    fake=lambda x, a, w, eps, dtype: (x.new_empty(0 if a is None else x.shape), x.new_empty(x.shape, dtype=dtype)),
)
def add_rms_norm_forward(
    x: Tensor, a: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """s = x + a (..., D) in x's dtype, or (0,) without a, and y (..., D), the norm of it, in dtype.

    weight is (D,), or (P, D) of equal rows, as spread makes it.
    """
    s = x if a is None else (x + a).to(x.dtype)
    return (x.new_empty(0) if a is None else s), rms_norm_ref(s, first_row(weight), eps).to(dtype)


def _fake_backward(dy, ds, s, weight, eps, dtype):
    da = s.new_empty(0) if dtype in (None, s.dtype) else s.new_empty(s.shape, dtype=dtype)
    return s.new_empty(s.shape), da, weight.new_empty(weight.shape)


@op("tdlm::add_rms_norm_backward", fake=_fake_backward)
def add_rms_norm_backward(
    dy: Tensor, ds: Tensor | None, s: Tensor, weight: Tensor, eps: float, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor]:
    """dx (..., D) of the gradients of y and s; the same in dtype, (0,) where that is None or s's; dw as weight.

    The rows of a dw (P, D) add up to the gradient.
    """
    dx, dw = rms_norm_backward_ref(dy, s, first_row(weight), eps)
    dx = dx if ds is None else dx + ds
    da = s.new_empty(0) if dtype in (None, s.dtype) else dx.to(dtype)
    out = weight.new_zeros(weight.shape)
    first_row(out).copy_(dw)
    return dx.to(s.dtype), da, out


def _setup_add(ctx, inputs, output):
    x, a, weight, ctx.eps, _ = inputs
    ctx.dtype = None if a is None else a.dtype
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x if a is None else output[0], weight)


def _backward_add(ctx, ds, dy):
    s, weight = ctx.saved_tensors
    if ctx.dtype is None:
        ds = None  # of an output that holds nothing
    if dy is None:
        return ds, ds if ds is None else ds.to(ctx.dtype), None, None, None
    dx, da, dw = add_rms_norm_backward(dy, ds, s, weight, ctx.eps, ctx.dtype)
    return dx, None if ctx.dtype is None else da if da.numel() else dx, dw, None, None


add_rms_norm_forward.register_autograd(_backward_add, setup_context=_setup_add)


def first_row(weight: Tensor) -> Tensor:
    """Return weight (D,), or the first row of a weight (P, D)."""
    return weight[0] if weight.dim() == 2 else weight


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *weights):
        return tuple(w.expand(PARTS, -1) for w in weights)

    @staticmethod
    def backward(ctx, *grads):
        return torch.stack(grads).sum(1).unbind()


def spread(x: Tensor, weights: list[Tensor]) -> list[Tensor]:
    """Return each weight (D,) as (PARTS, D) of equal rows, without a copy, for norms of x (..., D) on a GPU.

    Their gradients then take two launches together, not one each. Where no kernel serves x, the weights are returned as
    they are.
    """
    if not (x.is_cuda and torch.is_grad_enabled()) or hardware.is_transformed():
        return weights
    served = server(add_rms_norm_forward, x, None, weights[0], 0.0, x.dtype)
    return list(_Spread.apply(*weights)) if served else weights


def check_shapes(x: Tensor, weight: Tensor, *like: Tensor | None) -> None:
    """Raise ValueError where x (..., D), weight (D,) and what must be like x do not fit together."""
    if weight.shape != x.shape[-1:] or any(a is not None and a.shape != x.shape for a in like):
        shapes = [tuple(a.shape) for a in (x, weight, *like) if a is not None]
        raise ValueError(f"shapes {shapes} do not fit together; they must be (..., D), (D,), (..., D)")


def rms_norm(
    x: Tensor,  # (..., D)
    weight: Tensor,  # (D,)
    eps: float,
) -> Tensor:
    """F.rms_norm(x, (D,), weight, eps): (..., D)."""
    if not hardware.is_transformed() and server(rms_norm_forward, x, weight, eps):
        return rms_norm_forward(x, weight, eps)
    return F.rms_norm(x, weight.shape, weight, eps)


def add_rms_norm(
    x: Tensor,  # (..., D)
    a: Tensor | None,  # (..., D), added to x first
    weight: Tensor,  # (D,), or of spread
    eps: float,
    narrow: bool = False,
) -> tuple[Tensor, Tensor]:
    """s = x + a, or x without a; s, F.rms_norm(s, (D,), weight, eps): both (..., D), s in x's dtype on a GPU.

    There it is one launch, and with narrow y comes in the dtype of autocast, to which a product would cast it.
    """
    device = x.device.type
    autocast = narrow and torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else x.dtype
    if not hardware.is_transformed() and server(add_rms_norm_forward, x, a, weight, eps, dtype):
        s, y = add_rms_norm_forward(x, a, weight, eps, dtype)
        return (x if a is None else s), y
    s = x if a is None else x + a
    return s, rms_norm(s, first_row(weight), eps)
