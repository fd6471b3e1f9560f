"""The linear cross-entropy of wide models on a GPU: the logits of some rows at a time, cuBLAS and two Triton kernels.

    softmax   z -> lse, nll, and softmax(z) - onehot(y) in the place of z
    weigh     z, lse -> g (e^(z - lse) - onehot(y)) in the place of z

For widths whose tiles no longer fit in the chip. At most CHUNK_BYTES of logits live at once; nothing waits for the
host, so it can be captured in a CUDA graph, and so rows past the count cost their products too.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .lce_plan import SMALL
from .lce_triton import LOG2E, _live, _scale

CHUNK_BYTES = 256 << 20
HEADROOM, BLOCK = 12, 1024


@triton.jit(do_not_specialize=["first", "N", "V"])
def softmax_kernel(Z, Y, N_ROWS, LSE, NLL, first, N, V, WRITE: tl.constexpr, BLOCK: tl.constexpr):
    """Program i: row first + i of the batch, row i of Z. A target outside the vocabulary gives NaN."""
    r = first + tl.program_id(0)
    z = Z + tl.program_id(0).to(tl.int64) * V
    on = r < _live(N_ROWS, N)
    width = tl.where(on, V, 0)  # of what is read of this row
    v = tl.arange(0, BLOCK)
    m, total = tl.full([BLOCK], float("-inf"), tl.float32), tl.zeros([BLOCK], tl.float32)
    for v0 in range(0, V, BLOCK):  # every lane keeps a maximum and a sum of its own
        x = tl.load(z + v0 + v, mask=v < width - v0, other=float("-inf")).to(tl.float32)
        m_new = tl.maximum(tl.maximum(m, x), -1e38)
        total = total * tl.exp2((m - m_new) * LOG2E) + tl.exp2((x - m_new) * LOG2E)
        m = m_new
    top = tl.max(m, 0)
    lse = top + tl.log(tl.sum(total * tl.exp2((m - top) * LOG2E), 0))
    y = tl.load(Y + r)
    known = (y >= 0) & (y < V)
    nll = tl.where(known, lse - tl.load(z + y, mask=on & known, other=0.0).to(tl.float32), float("nan"))
    tl.store(LSE + r, tl.where(on, lse, 0.0))
    tl.store(NLL + r, tl.where(on, nll, 0.0))
    if WRITE:
        tl.debug_barrier()  # z[y] is read before another thread writes there
        for v0 in range(0, V, BLOCK):
            x = tl.load(z + v0 + v, mask=v < width - v0, other=0.0).to(tl.float32)
            p = tl.exp2((x - lse) * LOG2E) - tl.where(v0 + v == y, 1.0, 0.0)
            p = tl.where(on, tl.where(known, p, float("nan")), 0.0)
            tl.store(z + v0 + v, p.to(Z.dtype.element_ty), mask=v < V - v0)


@triton.jit(do_not_specialize=["first", "N", "V"])
def weigh_kernel(Z, Y, N_ROWS, LSE, G, GMAX, first, N, V, HEADROOM: tl.constexpr, BLOCK: tl.constexpr):
    r = first + tl.program_id(0)
    on = r < _live(N_ROWS, N)
    v = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    z = Z + tl.program_id(0).to(tl.int64) * V + v
    g = tl.load(G + r) * _scale(GMAX, HEADROOM)
    x = tl.load(z, mask=v < tl.where(on, V, 0), other=0.0).to(tl.float32)
    p = tl.exp2((x - tl.load(LSE + r)) * LOG2E) - tl.where(v == tl.load(Y + r), 1.0, 0.0)
    g = tl.where(on, g, 0.0)
    tl.store(z, tl.where(g != 0, p * g, 0.0).to(Z.dtype.element_ty), mask=v < V)


def _chunks(N: int, V: int, itemsize: int) -> list[tuple[int, int]]:
    size = max(128, CHUNK_BYTES // (V * itemsize) // 128 * 128)
    return [(i, min(i + size, N)) for i in range(0, N, size)]


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in fp32: cuBLAS sums 16-bit products in it anyway."""
    if a.dtype == torch.float32 or not a.is_cuda:
        return a.float() @ b.float()
    return torch.mm(a, b, out_dtype=torch.float32)


def forward(h, weight, targets, n_rows, valid_vocab, dtype, need_dh) -> tuple[Tensor, Tensor, Tensor]:
    """lce_forward. h (N, D), weight (V, D), targets (N,)."""
    N, V = len(h), valid_vocab
    x, w, y = h.to(dtype), weight[:V].to(dtype), targets.contiguous()
    nll, lse = (h.new_empty(N, dtype=torch.float32) for _ in range(2))
    dh = h.new_empty(N if need_dh else 0, h.shape[1])
    for i, j in _chunks(N, V, dtype.itemsize):
        z = x[i:j] @ w.T
        softmax_kernel[(j - i,)](z, y, n_rows, lse, nll, i, N, V, WRITE=need_dh, BLOCK=BLOCK, **SMALL)
        if need_dh:
            dh[i:j] = _product(z, w)
    return nll, lse, dh


def backward_weight(h, weight, targets, lse, grad, n_rows, valid_vocab, dtype) -> Tensor:
    """lce_backward_weight: dw (V, D), summed over the chunks in fp32."""
    N, V = len(h), valid_vocab
    w, y, g, lse = weight[:V].to(dtype), targets.contiguous(), grad.float().contiguous(), lse.contiguous()
    live = torch.arange(N, device=h.device) < (N if n_rows is None else n_rows)
    x = torch.where(live[:, None], h, 0.0).to(dtype)  # 0 times NaN would be NaN
    g = torch.where(live, g, 0.0)
    top = g.abs().amax() if dtype == torch.float16 else None
    dw = weight.new_zeros(weight.shape, dtype=torch.float32)
    for i, j in _chunks(N, V, dtype.itemsize):
        z = x[i:j] @ w.T
        grid = (j - i, triton.cdiv(V, BLOCK))
        weigh_kernel[grid](z, y, n_rows, lse, g, top, i, N, V, HEADROOM=HEADROOM, BLOCK=BLOCK, **SMALL)
        dw[:V] += _product(z.T, x[i:j])
    if top is not None:
        dw /= torch.where(top > 1e-30, torch.exp2(HEADROOM - top.log2().floor()), 1.0)
    return dw.to(weight.dtype)
