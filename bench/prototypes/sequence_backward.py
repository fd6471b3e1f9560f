"""The gradients of the blocks of a model as one kernel: a program takes one sequence back through all layers.

    dx = d loss / dx before the first layer;   dW of every weight, of one sequence: they are added up afterwards

The forward kernel (sequence.py) stores the residual stream before each layer. The layer is computed again from it, as
in the forward pass, and then its gradients: first those of the MLP, then head by head those of attention. The gradient
of the stream waits in memory while the heads are computed, which need the registers.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bench.prototypes.sequence import Weights, arguments, attended, normed, probabilities, projected, turn, turned
from tdlm_fast.kernels.triton.launch import overlap, start_kernel


def body_backward_ref(dy: Tensor, y: Tensor, x: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    """Return the gradients of x and of the parameters, where y = sequence.body_ref(x, …) was computed from them."""
    return list(torch.autograd.grad(y, [x, *parameters], dy))


@triton.jit
def _norm_gradient(dy, x, W, DW, eps, D: tl.constexpr):
    """The gradient of x in normed(x); that of the weight goes to DW. Rows past T have dy = 0."""
    d = tl.arange(0, D)
    scale = tl.rsqrt(tl.sum(x * x, 1) / D + eps)[:, None]
    x = x * scale
    tl.store(DW + d, tl.sum(dy * x, 0))
    g = dy * tl.load(W + d)[None, :]
    return scale * (g - x * (tl.sum(g * x, 1) / D)[:, None])


@triton.jit
def _through(dq, dy, y, W, DW, row0, D: tl.constexpr, HEAD_K: tl.constexpr):
    """dy + dq times rows row0 … of W; their gradient goes to DW."""
    at = (row0 + tl.arange(0, HEAD_K))[:, None] * D + tl.arange(0, D)[None, :]
    tl.store(DW + at, tl.dot(tl.trans(dq), y, input_precision="ieee"))
    return tl.dot(dq, tl.load(W + at), dy, input_precision="ieee")


@triton.jit
def _mlp(dx, x, y, UP, DOWN, D_UP, D_DOWN, D: tl.constexpr, INNER: tl.constexpr, BLOCK_I: tl.constexpr):
    """The gradient of y, the normed rows that the MLP reads; dx is that of its output."""
    d, i = tl.arange(0, D), tl.arange(0, BLOCK_I)
    dy = tl.zeros_like(x)
    for i0 in range(0, INNER, BLOCK_I):
        g, u = projected(y, UP, i0, i, D), projected(y, UP, INNER + i0, i, D)
        s = 1 / (1 + tl.exp(-g))
        at = d[:, None] * INNER + i0 + i[None, :]
        z = (g * s * u).to(y.dtype)
        tl.store(D_DOWN + at, tl.dot(tl.trans(dx), z, input_precision="ieee"))
        dz = tl.dot(dx, tl.load(DOWN + at), input_precision="ieee")
        dg, du = (dz * u * s * (1 + g * (1 - s))).to(y.dtype), (dz * g * s).to(y.dtype)
        dy = _through(dg, dy, y, UP, D_UP, i0, D, BLOCK_I)
        dy = _through(du, dy, y, UP, D_UP, INNER + i0, D, BLOCK_I)
    return dy


@triton.jit
def _attention(dx, y, QKV, OUT, D_QKV, D_OUT, VALID, TURNS, b, T, scale, D: tl.constexpr, HEADS: tl.constexpr,
               CAUSAL: tl.constexpr, BLOCK_T: tl.constexpr):  # fmt: skip
    """The gradient of y, the normed rows that attention reads; dx is that of its output."""
    HEAD_K: tl.constexpr = D // HEADS
    d, c = tl.arange(0, D), tl.arange(0, HEAD_K)
    dy = tl.zeros([BLOCK_T, D], tl.float32)
    for h in range(HEADS):
        row0 = h * HEAD_K
        q = turned(y, QKV, row0, TURNS, T, D, HEAD_K, BLOCK_T, False)
        k = turned(y, QKV, D + row0, TURNS, T, D, HEAD_K, BLOCK_T, False)
        v = projected(y, QKV, 2 * D + row0, c, D).to(y.dtype)
        p = probabilities(q, k, VALID, b, T, scale, CAUSAL, BLOCK_T)
        at = d[:, None] * D + row0 + c[None, :]
        a = tl.dot(p.to(y.dtype), v, input_precision="ieee").to(y.dtype)
        tl.store(D_OUT + at, tl.dot(tl.trans(dx), a, input_precision="ieee"))
        da = tl.dot(dx, tl.load(OUT + at), input_precision="ieee").to(y.dtype)
        dv = tl.dot(tl.trans(p.to(y.dtype)), da, input_precision="ieee").to(y.dtype)
        dy = _through(dv, dy, y, QKV, D_QKV, 2 * D + row0, D, HEAD_K)
        dp = tl.dot(da, tl.trans(v), input_precision="ieee")
        ds = (p * (dp - tl.sum(p * dp, 1)[:, None]) * scale).to(y.dtype)
        # q and k turn back by dq cos - swap(dq) sin, and swap(dS k) is dS swap(k).
        cos, sin = turn(TURNS, T, HEAD_K, BLOCK_T)
        swapped = turned(y, QKV, D + row0, TURNS, T, D, HEAD_K, BLOCK_T, True)
        dq = tl.dot(ds, k, input_precision="ieee") * cos - tl.dot(ds, swapped, input_precision="ieee") * sin
        dy = _through(dq.to(y.dtype), dy, y, QKV, D_QKV, row0, D, HEAD_K)
        ds, swapped = tl.trans(ds), turned(y, QKV, row0, TURNS, T, D, HEAD_K, BLOCK_T, True)
        dk = tl.dot(ds, q, input_precision="ieee") * cos - tl.dot(ds, swapped, input_precision="ieee") * sin
        dy = _through(dk.to(y.dtype), dy, y, QKV, D_QKV, D + row0, D, HEAD_K)
    return dy


@triton.jit
def backward_kernel(DY, STREAM, DX, NORMS, QKV, OUT, UP, DOWN, D_NORMS, D_QKV, D_OUT, D_UP, D_DOWN, VALID, TURNS,
                    layers, T, eps, scale, D: tl.constexpr, HEADS: tl.constexpr, INNER: tl.constexpr,
                    CAUSAL: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_I: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Program b: sequence b. The gradients of weights are (B, layers, …)."""
    overlap(PDL)
    b, t, d = tl.program_id(0), tl.arange(0, BLOCK_T), tl.arange(0, D)
    at, inside = (b.to(tl.int64) * T + t[:, None]) * D + d[None, :], (t < T)[:, None]
    dx = tl.load(DY + at, mask=inside, other=0.0).to(tl.float32)
    kind = QKV.dtype.element_ty
    for step in range(layers):
        layer = layers - 1 - step
        part = b.to(tl.int64) * layers + layer
        norms, d_norms = NORMS + 2 * layer * D, D_NORMS + 2 * part * D
        qkv, out = QKV + layer * 3 * D * D, OUT + layer * D * D
        stream = STREAM + tl.cast(layer, tl.int64) * tl.num_programs(0) * T * D + at
        x = tl.load(stream, mask=inside, other=0.0)
        y = normed(x, norms, eps, D).to(kind)
        x = attended(x, y, qkv, out, VALID, TURNS, b, T, scale, D, HEADS, CAUSAL, BLOCK_T)
        y = normed(x, norms + D, eps, D).to(kind)
        dy = _mlp(dx.to(kind), x, y, UP + layer * 2 * INNER * D, DOWN + layer * D * INNER,
                  D_UP + part * 2 * INNER * D, D_DOWN + part * D * INNER, D, INNER, BLOCK_I)  # fmt: skip
        dx += _norm_gradient(dy, x, norms + D, d_norms + D, eps, D)
        tl.store(DX + at, dx, mask=inside)
        tl.debug_barrier()  # other threads may read it again
        y = normed(tl.load(stream, mask=inside, other=0.0), norms, eps, D).to(kind)
        dy = _attention(dx.to(kind), y, qkv, out, D_QKV + part * 3 * D * D, D_OUT + part * D * D, VALID, TURNS, b, T,
                        scale, D, HEADS, CAUSAL, BLOCK_T)  # fmt: skip
        x = tl.load(stream, mask=inside, other=0.0)
        dx = tl.load(DX + at, mask=inside, other=0.0) + _norm_gradient(dy, x, norms, d_norms, eps, D)
        tl.debug_barrier()
    tl.store(DX + at, dx, mask=inside)


def body_backward(
    dy: Tensor, stream: Tensor, weights: Weights, heads: int, causal: bool, valid: Tensor | None = None
) -> tuple[Tensor, Weights]:
    """Return dx (B, T, D) and the gradients of the weights, fp32. stream: of sequence.body, whose errors it raises."""
    values, options = arguments(dy, weights, heads, causal, valid)
    dx = torch.empty_like(dy, dtype=torch.float32, memory_format=torch.contiguous_format)
    parts = [w.new_empty(len(dy), *w.shape, dtype=torch.float32) for w in weights]
    start_kernel(backward_kernel, (len(dy),), dy.contiguous(), stream, dx, *weights, *parts, *values, **options)
    return dx, Weights(*(part.sum(0) for part in parts))
