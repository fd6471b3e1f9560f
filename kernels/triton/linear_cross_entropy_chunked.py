"""The linear cross-entropy of wide models on a GPU: the logits of some rows at a time, and two Triton kernels.

    softmax   z -> lse, nll, and softmax(z) - onehot(y), times g if g is known, in the place of z
    weigh     z, lse -> g (e^(z - lse) - onehot(y)) in the place of z

For widths whose tiles do not fit in the chip. Where the weights g of the tokens are known in the forward pass, one
softmax serves dh and dW: three products instead of four, and nothing is computed twice (loss_sum). At most CHUNK_BYTES
of logits live at once, and nothing waits for the host, so a CUDA graph can capture it. The products are matmul.py's:
where a number on the device says how many rows count, half the rows cost half the products here too.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .. import hardware
from ..ops.linear_cross_entropy import check_shapes, lse_dtype
from . import matmul
from .launch import overlap, start_kernel
from .linear_cross_entropy import LOG2E, gradient_scale, live_rows
from .tiles import PRODUCTS, SMALL, Product, card, product, stored_rows

HEADROOM, BLOCK = 12, 1024


@triton.jit(do_not_specialize=["first", "N", "V"])
def softmax_kernel(Z, Y, N_ROWS, LSE, NLL, G, GMAX, first, N, V, apart, WRITE: tl.constexpr, HEADROOM: tl.constexpr,
                   BLOCK: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Program i: row first + i of the batch, row i of Z. A target outside the vocabulary gives NaN."""
    overlap(PDL)
    r = first + tl.program_id(0)
    z = Z + tl.program_id(0).to(tl.int64) * apart
    if r >= live_rows(N_ROWS, N):  # no product reads what lies there
        tl.store(LSE + r, 0.0)
        tl.store(NLL + r, 0.0)
        return
    v = tl.arange(0, BLOCK)
    m, total = tl.full([BLOCK], float("-inf"), tl.float32), tl.zeros([BLOCK], tl.float32)
    for v0 in range(0, V, BLOCK):  # every lane keeps a maximum and a sum of its own
        x = tl.load(z + v0 + v, mask=v < V - v0, other=float("-inf")).to(tl.float32)
        m_new = tl.maximum(tl.maximum(m, x), -1e38)
        total = total * tl.exp2((m - m_new) * LOG2E) + tl.exp2((x - m_new) * LOG2E)
        m = m_new
    top = tl.max(m, 0)
    lse = top + tl.log(tl.sum(total * tl.exp2((m - top) * LOG2E), 0))
    y = tl.load(Y + r)
    known = (y >= 0) & (y < V)
    tl.store(LSE + r, lse)
    tl.store(NLL + r, tl.where(known, lse - tl.load(z + y, mask=known, other=0.0).to(tl.float32), float("nan")))
    if WRITE:
        g = 1.0 if G is None else tl.load(G + r) * gradient_scale(GMAX, HEADROOM)
        tl.debug_barrier()  # z[y] is read before another thread writes there
        for v0 in range(0, V, BLOCK):
            x = tl.load(z + v0 + v, mask=v < V - v0, other=0.0).to(tl.float32)
            p = tl.exp2((x - lse) * LOG2E) - tl.where(v0 + v == y, 1.0, 0.0)
            p = tl.where(g != 0, tl.where(known, p, float("nan")) * g, 0.0)
            tl.store(z + v0 + v, p.to(Z.dtype.element_ty), mask=v < V - v0)


@triton.jit(do_not_specialize=["first", "N", "V"])
def weigh_kernel(
    Z, Y, N_ROWS, LSE, G, GMAX, first, N, V, apart, HEADROOM: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    overlap(PDL)
    r = first + tl.program_id(0)
    if r >= live_rows(N_ROWS, N):
        return
    v = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    z = Z + tl.program_id(0).to(tl.int64) * apart + v
    g = tl.load(G + r) * gradient_scale(GMAX, HEADROOM)
    x = tl.load(z, mask=v < V, other=0.0).to(tl.float32)
    p = tl.exp2((x - tl.load(LSE + r)) * LOG2E) - tl.where(v == tl.load(Y + r), 1.0, 0.0)
    tl.store(z, tl.where(g != 0, p * g, 0.0).to(Z.dtype.element_ty), mask=v < V)


def _plans(dtype: torch.dtype, device: torch.device) -> tuple[Product, Product, Product, int]:
    """The tiles of the three products, and the multiprocessors that they run on."""
    gpu = hardware.card(device)
    logits, towards_h, towards_w = (product(card(gpu.capability), dtype, of) for of in PRODUCTS)
    return logits, towards_h, towards_w, gpu.multiprocessors


def _chunks(N: int, V: int, dtype: torch.dtype) -> list[tuple[int, int]]:
    size = stored_rows(V, dtype)
    return [(i, min(i + size, N)) for i in range(0, N, size)]


def forward(h, weight, targets, n_rows, valid_vocab, dtype, need_dh) -> tuple[Tensor, Tensor, Tensor]:
    check_shapes(h, weight, valid_vocab, targets)
    x, w = _even(h, dtype), _even(weight[:valid_vocab], dtype)
    dh = h.new_empty(len(h) if need_dh else 0, h.shape[1])
    nll, lse = _softmaxes(x, w, targets, n_rows, dh if need_dh else None)
    return nll, lse.to(lse_dtype(h)), dh


def backward_weight(h, weight, targets, lse, grad, n_rows, valid_vocab, dtype) -> Tensor:
    check_shapes(h, weight, valid_vocab, targets, lse, grad)
    (N, D), V = h.shape, valid_vocab
    of_logits, _, of_w, _ = _plans(dtype, h.device)
    w, y, lse = _even(weight[:V], dtype), targets.contiguous(), lse.float().contiguous()
    x, g, top = _live_rows(h, grad, n_rows, dtype)
    dw = weight.new_zeros(len(weight), x.shape[1], dtype=torch.float32)
    for i, j in _chunks(N, V, dtype):
        z = matmul.logits(x[i:j], w, n_rows, i, of_logits)
        grid = (j - i, triton.cdiv(V, BLOCK))
        start_kernel(
            weigh_kernel, grid, z, y, n_rows, lse, g, top, i, N, V, z.stride(0), HEADROOM=HEADROOM, BLOCK=BLOCK, **SMALL
        )
        matmul.towards_w(z, x[i:j], n_rows, i, of_w, dw[:V], add=i > 0)
    return _unscaled(dw, top)[:, :D].to(weight.dtype).contiguous()


def loss_sum(h, weight, targets, token_weights, n_rows, valid_vocab, dtype) -> tuple[Tensor, Tensor, Tensor]:
    check_shapes(h, weight, valid_vocab, targets, token_weights)
    x, g, top = _live_rows(h, token_weights, n_rows, dtype)
    dh = torch.empty_like(x, dtype=torch.float32)
    dw = weight.new_zeros(len(weight), x.shape[1], dtype=torch.float32)
    nll, _ = _softmaxes(x, _even(weight[:valid_vocab], dtype), targets, n_rows, dh, g, top, dw[:valid_vocab])
    dh, dw = (_unscaled(a, top)[:, : h.shape[1]].to(of.dtype).contiguous() for a, of in ((dh, h), (dw, weight)))
    return nll.dot(g), dh, dw


def _softmaxes(x, w, targets, n_rows, dh, g=None, top=None, dw=None) -> tuple[Tensor, Tensor]:
    """nll and lse. On the way dh and dw, where they are not None, are filled: for the gradients g, or for 1."""
    N, V, y = len(x), len(w), targets.contiguous()
    of_logits, of_h, of_w, processors = _plans(x.dtype, x.device)
    nll, lse = (x.new_empty(N, dtype=torch.float32) for _ in range(2))
    for i, j in _chunks(N, V, x.dtype):
        z = matmul.logits(x[i:j], w, n_rows, i, of_logits)
        start_kernel(
            softmax_kernel, (j - i,), z, y, n_rows, lse, nll, g, top, i, N, V, z.stride(0), WRITE=dh is not None,
            HEADROOM=HEADROOM, BLOCK=BLOCK, **SMALL,
        )  # fmt: skip
        if dh is not None:
            dh[i:j] = matmul.towards_h(z, w, n_rows, i, of_h, processors)[:, : dh.shape[1]]
        if dw is not None:
            matmul.towards_w(z, x[i:j], n_rows, i, of_w, dw, add=i > 0)
    return nll, lse


def _even(a: Tensor, dtype: torch.dtype) -> Tensor:
    """a (rows, D) in dtype, contiguous, with columns of 0 up to a multiple of 16, so that rows are read in vectors."""
    a = a.to(dtype)
    return (F.pad(a, (0, -a.shape[1] % 16)) if a.shape[1] % 16 else a).contiguous()


def _live_rows(h: Tensor, grad: Tensor, n_rows: Tensor | None, dtype: torch.dtype) -> tuple:
    """h in dtype, of which no product reads rows past the count; grad in fp32, 0 there; in fp16 the largest |grad|."""
    x, g = _even(h, dtype), grad.float()
    if n_rows is not None:
        g = torch.where(torch.arange(len(h), device=h.device) < n_rows, g, g.new_zeros(()))  # 0 times NaN is NaN
    return x, g.contiguous(), g.abs().amax() if dtype == torch.float16 else None


def _unscaled(a: Tensor, top: Tensor | None) -> Tensor:
    """a without the scale that its gradients had inside the products."""
    return a if top is None else a.div_(torch.where(top > 1e-30, torch.exp2(HEADROOM - top.log2().floor()), 1.0))
