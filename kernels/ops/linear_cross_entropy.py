"""Compute the cross-entropy of a linear head without its logits.

    nll_i = logsumexp_v(h_i . w_v) - h_i . w_{y_i}
    dh_i  = g_i (P_i W - w_{y_i}),   dW = sum_i g_i (P_i - onehot(y_i))^T h_i,   P = softmax(h W^T)

softmax(h W^T) W is attention with Q = h and K = V = W: the forward pass yields the loss and, for an upstream gradient
of 1, dh. Only dW needs the probabilities again. The gradient g is per token, so weights of tokens cost nothing. Where
they are known in the forward pass, the CPU keeps the probabilities of some rows until their lse is known and computes
dW there too; so does a GPU whose model is too wide for the fused form. That takes three products instead of four
(lce_sum). Sums are fp32 (fp64 for fp64 inputs). Under autocast the products run in its dtype, and gradients have the
inputs' dtype. The reference holds at most CHUNK_BYTES of logits.
"""

import torch
from torch import Tensor
from torch._C import _autograd  # pyright: ignore[reportAttributeAccessIssue]
from torch._subclasses.fake_tensor import FakeTensor

from .. import hardware
from ..dispatch import first_only, op, server

CHUNK_BYTES = 256 << 20


def _chunks(n: int, V: int, itemsize: int) -> list[tuple[int, int]]:
    size = max(1, CHUNK_BYTES // (2 * V * itemsize))  # logits and their probabilities live together
    return [(i, min(i + size, n)) for i in range(0, n, size)]


def _logits(h: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    z = h.to(dtype) @ weight.to(dtype).T
    return z if z.dtype == torch.float64 else z.float()


def _wide(h: Tensor) -> torch.dtype:
    """Return the dtype of losses and sums."""
    return torch.float64 if h.dtype == torch.float64 else torch.float32


def lse_dtype(h: Tensor) -> torch.dtype:
    """Return the dtype of lse: fp64 on a CPU, whose kernels lose no digits of a large one; fp32 on a GPU."""
    return torch.float64 if not h.is_cuda else _wide(h)


def count(n_rows: Tensor | None, N: int) -> int:
    """Return how many of N rows count, read from the device."""
    return N if n_rows is None else min(int(n_rows), N)


def live_only(g: Tensor, n_rows: Tensor | None) -> Tensor:
    """Return g (N,) with 0 past the count, whatever is there: 0 times NaN would be NaN."""
    return g if n_rows is None else torch.where(torch.arange(len(g), device=g.device) < n_rows, g, 0.0)


def check_shapes(h: Tensor, weight: Tensor, V: int, *per_row: Tensor) -> None:
    """Raise ValueError where sizes do not fit: the kernels trust them, and the ops can be called directly."""
    if (
        h.dim() != 2
        or not 0 < V <= len(weight)
        or h.shape[1:] != weight.shape[1:]
        or any(a.shape != h.shape[:1] for a in per_row)
    ):
        shapes = [tuple(a.shape) for a in (h, weight, *per_row)]
        raise ValueError(f"shapes {shapes} with a vocabulary of {V} do not fit together")


def _fake_forward(h, weight, targets, n_rows, valid_vocab, dtype, need_dh):
    nll, lse = h.new_empty(h.shape[0], dtype=_wide(h)), h.new_empty(h.shape[0], dtype=lse_dtype(h))
    return nll, lse, h.new_empty(h.shape[0] if need_dh else 0, h.shape[1])


@op("tdlm::lce_forward", fake=_fake_forward)
def lce_forward(
    h: Tensor, weight: Tensor, targets: Tensor, n_rows: Tensor | None,
    valid_vocab: int, dtype: torch.dtype, need_dh: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """nll (N,), lse (N,) and dh for unit upstream gradients (N, D), or (0, D) when it is not needed."""
    (N, D), acc = h.shape, _wide(h)
    nll, lse = h.new_zeros(N, dtype=acc), h.new_zeros(N, dtype=lse_dtype(h))
    dh = h.new_zeros(N if need_dh else 0, D)
    w = weight[:valid_vocab].to(dtype)
    for i, j in _chunks(count(n_rows, N), valid_vocab, acc.itemsize):
        z = _logits(h[i:j], w, dtype)
        y = targets[i:j, None]
        each = torch.logsumexp(z, -1)
        lse[i:j], nll[i:j] = each, each - z.gather(1, y)[:, 0]
        if need_dh:
            p = z.sub_(each[:, None]).exp_()
            dh[i:j] = (p.to(dtype) @ w).to(dh.dtype) - w[y[:, 0]].to(dh.dtype)
    return nll, lse, dh


@op("tdlm::lce_backward_weight", fake=lambda h, weight, *_: torch.empty_like(weight))
def lce_backward_weight(
    h: Tensor, weight: Tensor, targets: Tensor, lse: Tensor, grad: Tensor, n_rows: Tensor | None,
    valid_vocab: int, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """dW (V, D), recomputing the probabilities from lse; grad (N,) is the upstream gradient of nll."""
    dw = torch.zeros_like(weight, dtype=_wide(h))
    w = weight[:valid_vocab].to(dtype)
    for i, j in _chunks(count(n_rows, h.shape[0]), valid_vocab, dw.element_size()):
        p = _logits(h[i:j], w, dtype).sub_(lse[i:j, None].to(dw.dtype)).exp_()
        p.scatter_add_(1, targets[i:j, None], p.new_full((j - i, 1), -1.0))
        p.mul_(grad[i:j, None])
        dw[:valid_vocab] += p.to(dtype).T @ h[i:j].to(dtype)
    return dw.to(weight.dtype)


@op("tdlm::lce_backward_rows", fake=lambda dh, grad, n_rows: dh.new_empty(dh.shape))
def lce_backward_rows(dh: Tensor, grad: Tensor, n_rows: Tensor | None) -> Tensor:
    """dh (N, D) for the upstream gradients grad (N,) of nll; 0 past the count, whatever grad is there."""
    return (dh * live_only(grad, n_rows)[:, None]).to(dh.dtype)


PLAIN = "F.cross_entropy(h @ weight.T, targets)"


def _setup(ctx, inputs, output):
    h, weight, targets, n_rows, ctx.valid_vocab, ctx.dtype, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(h, weight, targets, n_rows, output[1], output[2])


def _backward(ctx, grad, _grad_lse, _grad_dh):
    first_only("linear_cross_entropy", PLAIN)
    if grad is None:
        return (None,) * 7
    h, weight, targets, n_rows, lse, dh = ctx.saved_tensors
    grad = grad.contiguous()
    if not h.is_cuda:  # rows past the count have no loss
        grad = live_only(grad, n_rows)
    grad_h = None
    if ctx.needs_input_grad[0]:  # on a GPU this op and the next leave such rows out
        grad_h = lce_backward_rows(dh, grad, n_rows) if h.is_cuda else (dh * grad[:, None]).to(h.dtype)
    grad_w = None
    if ctx.needs_input_grad[1]:
        grad_w = lce_backward_weight(h, weight, targets, lse, grad, n_rows, ctx.valid_vocab, ctx.dtype)
    return grad_h, grad_w, None, None, None, None, None


lce_forward.register_autograd(_backward, setup_context=_setup)


@op(
    "tdlm::lce_sum",
    fake=lambda h, weight, *_: (h.new_empty((), dtype=_wide(h)), torch.empty_like(h), torch.empty_like(weight)),
)
def lce_sum(
    h: Tensor, weight: Tensor, targets: Tensor, token_weights: Tensor, n_rows: Tensor | None,
    valid_vocab: int, dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """sum_i g_i nll_i for token_weights g (N,), and its gradients dh (N, D) and dW (V, D), all in the forward pass.

    dW is linear in the scalar that comes from upstream, so nothing needs to be computed again in the backward pass.
    """
    nll, lse, dh = lce_forward(h, weight, targets, n_rows, valid_vocab, dtype, True)
    grad = live_only(token_weights.to(nll.dtype), n_rows)
    dw = lce_backward_weight(h, weight, targets, lse, grad, n_rows, valid_vocab, dtype)
    return nll.dot(grad), (dh * grad[:, None]).to(h.dtype), dw


def _setup_sum(ctx, inputs, output):
    ctx.set_materialize_grads(False)  # a gradient of zeros for dW would be as large as dW
    ctx.save_for_backward(*output[1:])


def _is_last_use() -> bool:
    """Return whether this backward pass is the last to read its saved tensors, so that it may overwrite them."""
    asked = getattr(_autograd, "_get_current_graph_task_keep_graph", None)
    return asked is not None and not asked()


def _unread(grad: Tensor) -> bool:
    """Return whether grad lies on a GPU: to know its value would wait for the device."""
    return grad.is_cuda and type(grad) in (Tensor, FakeTensor)


def _backward_sum(ctx, grad, _grad_dh, _grad_dw):
    first_only("linear_cross_entropy", PLAIN)
    if grad is None:
        return (None,) * 7
    dh, dw = (a.detach() for a in ctx.saved_tensors)  # as outputs of the op they would require gradients
    if _unread(grad) and _is_last_use():
        return dh.mul_(grad), dw.mul_(grad), None, None, None, None, None
    if type(grad) is not Tensor or not grad.is_cpu or float(grad) != 1 or not _is_last_use():
        dh, dw = (dh * grad).to(dh.dtype), (dw * grad).to(dw.dtype)
    return dh, dw, None, None, None, None, None


lce_sum.register_autograd(_backward_sum, setup_context=_setup_sum)


def _sums_in_forward(h, weight, targets, n_rows, V: int, dtype: torch.dtype) -> bool:
    """Whether the loss and both gradients are made at once: always on the CPU, else by the backend of lce_forward."""
    if not h.is_cuda or torch.compiler.is_compiling():  # compiled code must not depend on the GPU at hand
        return h.is_cpu
    at_once = server(lce_sum, h, weight, targets, None, n_rows, V, dtype)
    forward = server(lce_forward, h, weight, targets, n_rows, V, dtype, True)
    return at_once is not None and forward is not None and at_once.backend == forward.backend


def _factors(targets, token_weights, n_rows, ignore_index, is_mean: bool, dtype: torch.dtype) -> tuple:
    """Targets and factors of tokens, both 0 where a token is ignored; for a mean the factors add up to 1.

    The third is the sum that a mean divides by. Where it is 0 nothing is divided, so that gradients are 0 and not nan.
    """
    factors = torch.ones_like(targets, dtype=dtype) if token_weights is None else token_weights.to(dtype)
    if ignore_index is not None:
        is_ignored = targets == ignore_index
        targets, factors = targets.masked_fill(is_ignored, 0), factors.masked_fill(is_ignored, 0.0)
    if not is_mean:
        return targets, factors, None
    factors = live_only(factors, n_rows)
    total = factors.sum()
    return targets, factors / torch.where(total == 0, 1.0, total), total


def linear_cross_entropy(
    h: Tensor,  # (..., D)
    weight: Tensor,  # (V, D)
    targets: Tensor,  # (...) int64 or int32
    token_weights: Tensor | None = None,  # (...) fp32
    *,
    valid_vocab: int | None = None,  # rows of weight from here on are never predicted: their logit is -inf
    n_rows: Tensor | None = None,  # () integer on h's device: only the first n_rows tokens count
    reduction: str = "sum",
    ignore_index: int | None = None,  # tokens with this target have no loss; F.cross_entropy's default is -100
) -> Tensor:
    """F.cross_entropy((h @ weight.T).flatten(0, -2), targets.flatten(), reduction="none") * token_weights, reduced.

    Returns a scalar for "sum" and "mean" and the shape of targets for "none", in fp32 (fp64 for fp64 inputs), in nats.
    "mean" divides by the number of tokens that count, or by the sum of their token_weights; it is nan where that is 0.
    Exact gradients for h and weight. Raises ValueError where shapes do not fit and, on the CPU, where a target lies
    outside the vocabulary.
    """
    if weight.dim() != 2 or h.shape[-1:] != weight.shape[1:] or targets.shape != h.shape[:-1]:
        shapes = tuple(tuple(a.shape) for a in (h, weight, targets))
        raise ValueError(f"h, weight, targets have shapes {shapes}; they must be (..., D), (V, D), (...)")
    if reduction not in ("sum", "mean", "none"):
        raise ValueError(f"reduction is {reduction!r}; it must be 'sum', 'mean' or 'none'")
    if targets.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"targets are {targets.dtype}; they must be int64 or int32")
    if token_weights is not None and token_weights.shape != targets.shape:
        raise ValueError(f"token_weights have shape {tuple(token_weights.shape)}; it must be {tuple(targets.shape)}")
    V = weight.shape[0] if valid_vocab is None else valid_vocab
    if not 0 < V <= weight.shape[0]:
        raise ValueError(f"valid_vocab is {V}; it must lie in 1..{weight.shape[0]}")
    if hardware.takes_derivatives():
        modes = "forward-mode derivatives, nor those of torch.func"
        raise RuntimeError(f"linear_cross_entropy has no {modes}; use loss.backward(), or {PLAIN}")
    shape = targets.shape
    if h.dim() != 2:
        h, targets = h.reshape(-1, h.shape[-1]), targets.reshape(-1)
        token_weights = None if token_weights is None else token_weights.reshape(-1)
    total = None
    if ignore_index is not None or reduction == "mean":
        is_mean = reduction == "mean"
        targets, token_weights, total = _factors(targets, token_weights, n_rows, ignore_index, is_mean, _wide(h))
    if targets.is_cpu and not torch.compiler.is_compiling():  # a compiled caller does not branch on data
        live = targets if n_rows is None else targets[: count(n_rows, len(targets))]
        if len(live) and not 0 <= live.min() <= live.max() < V:
            raise ValueError(f"targets reach from {live.min()} to {live.max()}; they must lie in 0..{V - 1}")
    if reduction == "none":
        return _losses(h, weight, targets, token_weights, n_rows, V).view(shape)
    loss = _sum(h, weight, targets, token_weights, n_rows, V)
    return loss if total is None else torch.where(total == 0, torch.nan, loss)


def product_dtype(h: Tensor) -> torch.dtype:
    """The dtype of the products: autocast's, else that of h."""
    device = h.device.type
    has_autocast = torch.compiler.is_compiling() or torch.amp.is_autocast_available(device)  # 2.11 cannot trace that
    return torch.get_autocast_dtype(device) if has_autocast and torch.is_autocast_enabled(device) else h.dtype


def _losses(h, weight, targets, token_weights, n_rows, V: int) -> Tensor:
    """(N,): the loss of each token."""
    need_dh = torch.is_grad_enabled() and h.requires_grad
    nll = lce_forward(h, weight, targets, n_rows, V, product_dtype(h), need_dh)[0]
    return nll if token_weights is None else nll * token_weights.to(nll.dtype)


def _sum(h, weight, targets, token_weights, n_rows, V: int) -> Tensor:
    """(): their sum, with three products and not four where the weights are known in the forward pass."""
    is_fixed = token_weights is None or not token_weights.requires_grad
    # Gradients before the upstream factor may not fit in fp16, whose loss is scaled for that very reason.
    fits = torch.float16 not in (h.dtype, weight.dtype)
    needs_both = torch.is_grad_enabled() and h.requires_grad and weight.requires_grad
    if needs_both and is_fixed and fits and _sums_in_forward(h, weight, targets, n_rows, V, product_dtype(h)):
        g = h.new_ones(len(h), dtype=torch.float32) if token_weights is None else token_weights
        return lce_sum(h, weight, targets, g, n_rows, V, product_dtype(h))[0]
    return _losses(h, weight, targets, token_weights, n_rows, V).sum()
