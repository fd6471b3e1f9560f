"""Cross-entropy of a linear head, without its logits.

    nll_i = logsumexp_v(h_i . w_v) - h_i . w_{y_i}
    dh_i  = g_i (P_i W - w_{y_i}),   dW = sum_i g_i (P_i - onehot(y_i))^T h_i,   P = softmax(h W^T)

softmax(h W^T) W is attention with Q = h and K = V = W: the forward pass yields the loss and, for a unit upstream
gradient, dh; only dW needs the probabilities again. The gradient g is per token, so per-token weights cost nothing.
Where they are known in the forward pass (a weighted sum), the CPU, and a GPU whose model is too wide for the fused
form, keep the probabilities of some rows until their lse is known and make dW there too: three products instead of
four (lce_sum). Sums are fp32 (fp64 for fp64 inputs); under autocast the products run in its dtype, and gradients return
in the inputs' dtype. The reference holds at most CHUNK_BYTES of logits.
"""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

CHUNK_BYTES = 256 << 20


def _chunks(n: int, V: int, itemsize: int) -> list[tuple[int, int]]:
    size = max(1, CHUNK_BYTES // (2 * V * itemsize))  # logits and their probabilities live together
    return [(i, min(i + size, n)) for i in range(0, n, size)]


def _logits(h: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    z = h.to(dtype) @ weight.to(dtype).T
    return z if z.dtype == torch.float64 else z.float()


def _count(n_rows: Tensor | None, N: int) -> int:
    return N if n_rows is None else min(int(n_rows), N)


@torch.library.custom_op("tdlm::lce_forward", mutates_args=())
def lce_forward(
    h: Tensor, weight: Tensor, targets: Tensor, n_rows: Tensor | None,
    valid_vocab: int, dtype: torch.dtype, need_dh: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """nll (N,), lse (N,) and dh for unit upstream gradients (N, D), or (0, D) when it is not needed."""
    N, D = h.shape
    acc = torch.float64 if h.dtype == torch.float64 else torch.float32
    nll, lse = h.new_zeros(N, dtype=acc), h.new_zeros(N, dtype=acc)
    dh = h.new_zeros(N if need_dh else 0, D)
    w = weight[:valid_vocab].to(dtype)
    for i, j in _chunks(_count(n_rows, N), valid_vocab, acc.itemsize):
        z = _logits(h[i:j], w, dtype)
        y = targets[i:j, None]
        lse[i:j] = torch.logsumexp(z, -1)
        nll[i:j] = lse[i:j] - z.gather(1, y)[:, 0]
        if need_dh:
            p = z.sub_(lse[i:j, None]).exp_()
            dh[i:j] = (p.to(dtype) @ w).to(dh.dtype) - w[y[:, 0]].to(dh.dtype)
    return nll, lse, dh


@lce_forward.register_fake
def _(h, weight, targets, n_rows, valid_vocab, dtype, need_dh):
    acc = torch.float64 if h.dtype == torch.float64 else torch.float32
    nll = h.new_empty(h.shape[0], dtype=acc)
    return nll, torch.empty_like(nll), h.new_empty(h.shape[0] if need_dh else 0, h.shape[1])


@torch.library.custom_op("tdlm::lce_backward_weight", mutates_args=())
def lce_backward_weight(
    h: Tensor, weight: Tensor, targets: Tensor, lse: Tensor, grad: Tensor, n_rows: Tensor | None,
    valid_vocab: int, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """dW (V, D), recomputing the probabilities from lse; grad (N,) is the upstream gradient of nll."""
    dw = torch.zeros_like(weight, dtype=lse.dtype)
    w = weight[:valid_vocab].to(dtype)
    for i, j in _chunks(_count(n_rows, h.shape[0]), valid_vocab, lse.element_size()):
        p = _logits(h[i:j], w, dtype).sub_(lse[i:j, None]).exp_()
        p.scatter_add_(1, targets[i:j, None], p.new_full((j - i, 1), -1.0))
        p.mul_(grad[i:j, None])
        dw[:valid_vocab] += p.to(dtype).T @ h[i:j].to(dtype)
    return dw.to(weight.dtype)


@lce_backward_weight.register_fake
def _(h, weight, targets, lse, grad, n_rows, valid_vocab, dtype):
    return torch.empty_like(weight)


@torch.library.custom_op("tdlm::lce_backward_rows", mutates_args=())
def lce_backward_rows(dh: Tensor, grad: Tensor, n_rows: Tensor | None) -> Tensor:
    """dh (N, D) for the upstream gradients grad (N,) of nll; 0 past the count, whatever grad is there."""
    if n_rows is not None:
        grad = torch.where(torch.arange(len(grad), device=grad.device) < n_rows, grad, 0.0)
    return (dh * grad[:, None]).to(dh.dtype)


@lce_backward_rows.register_fake
def _(dh, grad, n_rows):
    return torch.empty_like(dh, memory_format=torch.contiguous_format)


def _setup(ctx, inputs, output):
    h, weight, targets, n_rows, ctx.valid_vocab, ctx.dtype, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(h, weight, targets, n_rows, output[1], output[2])


def _first_only() -> None:
    """The gradients are outputs of the forward pass: under create_graph=True theirs would be zero, without a word."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # tracing always records
        raise RuntimeError("linear_cross_entropy has no second derivatives; use F.cross_entropy(h @ weight.T, targets)")


def _backward(ctx, grad, _grad_lse, _grad_dh):
    _first_only()
    if grad is None:
        return (None,) * 7
    h, weight, targets, n_rows, lse, dh = ctx.saved_tensors
    grad = grad.contiguous()
    if n_rows is not None and not h.is_cuda:  # rows past the count have no loss, whatever is asked of them
        grad = torch.where(torch.arange(len(grad), device=grad.device) < n_rows, grad, 0.0)
    grad_h = None
    if ctx.needs_input_grad[0]:  # on a GPU this op and the next leave such rows out by themselves
        grad_h = lce_backward_rows(dh, grad, n_rows) if h.is_cuda else (dh * grad[:, None]).to(h.dtype)
    grad_w = None
    if ctx.needs_input_grad[1]:
        grad_w = lce_backward_weight(h, weight, targets, lse, grad, n_rows, ctx.valid_vocab, ctx.dtype)
    return grad_h, grad_w, None, None, None, None, None


lce_forward.register_autograd(_backward, setup_context=_setup)


@torch.library.custom_op("tdlm::lce_sum", mutates_args=())
def lce_sum(
    h: Tensor, weight: Tensor, targets: Tensor, token_weights: Tensor, n_rows: Tensor | None,
    valid_vocab: int, dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """sum_i g_i nll_i for token_weights g (N,), and its gradients dh (N, D) and dW (V, D), all in the forward pass.

    dW is linear in the scalar that comes from upstream, so nothing needs to be computed again in the backward pass.
    """
    nll, lse, dh = lce_forward(h, weight, targets, n_rows, valid_vocab, dtype, True)
    grad = token_weights.to(nll.dtype)
    if n_rows is not None:
        grad = torch.where(torch.arange(len(grad), device=grad.device) < n_rows, grad, 0.0)
    dw = lce_backward_weight(h, weight, targets, lse, grad, n_rows, valid_vocab, dtype)
    return nll.dot(grad), (dh * grad[:, None]).to(h.dtype), dw


@lce_sum.register_fake
def _(h, weight, targets, token_weights, n_rows, valid_vocab, dtype):
    acc = torch.float64 if h.dtype == torch.float64 else torch.float32
    return h.new_empty((), dtype=acc), torch.empty_like(h), torch.empty_like(weight)


def _setup_sum(ctx, inputs, output):
    ctx.set_materialize_grads(False)  # a gradient of zeros for dW would be as large as dW
    ctx.save_for_backward(*output[1:])


def _is_last_use() -> bool:
    """Whether what this backward pass reads is freed after it, so that it may be given away."""
    asked = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return asked is not None and not asked()


def _unread(grad: Tensor) -> bool:
    """Whether grad lies on a GPU, which would have to be waited for to know its value."""
    return grad.is_cuda and type(grad) in (Tensor, FakeTensor)


def _backward_sum(ctx, grad, _grad_dh, _grad_dw):
    _first_only()
    if grad is None:
        return (None,) * 7
    dh, dw = (a.detach() for a in ctx.saved_tensors)  # as outputs of the op they would require gradients
    if _unread(grad) and _is_last_use():
        return dh.mul_(grad), dw.mul_(grad), None, None, None, None, None
    if type(grad) is not Tensor or not grad.is_cpu or float(grad) != 1 or not _is_last_use():
        dh, dw = (dh * grad).to(dh.dtype), (dw * grad).to(dw.dtype)
    return dh, dw, None, None, None, None, None


lce_sum.register_autograd(_backward_sum, setup_context=_setup_sum)


def _sums_in_forward(h: Tensor, weight: Tensor, dtype: torch.dtype) -> bool:
    if not h.is_cuda or torch.compiler.is_compiling():  # which has no use for what the GPU at hand can do
        return h.is_cpu
    from ..triton import register as gpu

    return gpu.sums_in_forward(h, weight, dtype)


def linear_cross_entropy(
    h: Tensor,  # (N, D)
    weight: Tensor,  # (V, D)
    targets: Tensor,  # (N,) int64
    token_weights: Tensor | None = None,  # (N,) fp32
    *,
    valid_vocab: int | None = None,  # rows of weight from here on are never predicted: their logit is -inf
    n_rows: Tensor | None = None,  # () integer on h's device: only the first n_rows tokens count
    reduction: str = "sum",
) -> Tensor:
    """F.cross_entropy(h @ weight.T, targets, reduction="none") * token_weights, summed unless reduction="none".

    Returns a scalar, or (N,) for "none", in fp32 (fp64 for fp64 inputs), nats. Exact gradients for h and weight.
    Raises ValueError where shapes do not fit and, on the CPU, where a target lies outside the vocabulary.
    """
    if h.dim() != 2 or weight.dim() != 2 or h.shape[1] != weight.shape[1] or targets.shape != h.shape[:1]:
        shapes = tuple(tuple(a.shape) for a in (h, weight, targets))
        raise ValueError(f"h, weight, targets have shapes {shapes}; they must be (N, D), (V, D), (N,)")
    if reduction not in ("sum", "none"):
        raise ValueError(f"reduction is {reduction!r}; it must be 'sum' or 'none'")
    V = weight.shape[0] if valid_vocab is None else valid_vocab
    if not 0 < V <= weight.shape[0]:
        raise ValueError(f"valid_vocab is {V}; it must lie in 1..{weight.shape[0]}")
    if targets.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"targets are {targets.dtype}; they must be int64 or int32")
    if targets.is_cpu and not torch.compiler.is_compiling():  # a compiled caller does not branch on data
        live = targets if n_rows is None else targets[: _count(n_rows, len(targets))]
        if len(live) and not 0 <= live.min() <= live.max() < V:
            raise ValueError(f"targets reach from {live.min()} to {live.max()}; they must lie in 0..{V - 1}")
    if token_weights is not None and token_weights.shape != targets.shape:
        raise ValueError(f"token_weights have shape {tuple(token_weights.shape)}; it must be {tuple(targets.shape)}")
    if torch.autograd.forward_ad._current_level >= 0:
        raise RuntimeError("linear_cross_entropy has no forward-mode derivatives; use F.cross_entropy")
    device = h.device.type
    has_autocast = torch.compiler.is_compiling() or torch.amp.is_autocast_available(device)  # 2.11 cannot trace that
    autocast = has_autocast and torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else h.dtype
    need_dh = torch.is_grad_enabled() and h.requires_grad
    fixed = token_weights is None or not token_weights.requires_grad
    # Gradients before the upstream factor may not fit in fp16, whose loss is scaled for that very reason.
    fits = torch.float16 not in (h.dtype, weight.dtype)
    known = reduction == "sum" and need_dh and weight.requires_grad and fixed and fits
    if known and _sums_in_forward(h, weight, dtype):  # three products, not four
        g = h.new_ones(len(h), dtype=torch.float32) if token_weights is None else token_weights
        return lce_sum(h, weight, targets, g, n_rows, V, dtype)[0]
    nll = lce_forward(h, weight, targets, n_rows, V, dtype, need_dh)[0]
    if token_weights is not None:
        nll = nll * token_weights.to(nll.dtype)
    return nll.sum() if reduction == "sum" else nll
