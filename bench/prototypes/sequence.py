"""The blocks of a model as one kernel: a program takes one sequence through all layers, forward.

    x = x + attention(norm(x)) Wo;   x = x + (silu(g) * u) Wd,  (g, u) = norm(x) Wup        for every layer

The residual stream x (T, D) stays in registers in fp32. Weights are read a tile at a time, from the L2 cache after the
first program. Heads and the columns of the MLP are loops whose products add to x, so no other tile of width D is kept
but the normed rows. Products take the dtype of the weights and add up in fp32; q, k, v, the attention's output and the
gate are rounded to it once. Rotary positions turn q and k as in kernels/triton/attention.py: the swapped columns come
from a second product with the swapped rows of the weight, so no registers are shuffled.

Neither dropout, the embedding nor the last norm is part of it.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tdlm_fast.config import Model as Shape
from tdlm_fast.kernels.ops.rotary import kept_rotation
from tdlm_fast.kernels.triton.launch import overlap, start_kernel
from tdlm_fast.model import Block, linear_layers, norm_weights

EPS = Shape().norm_eps
LOG2E = tl.constexpr(1.4426950408889634)


class Weights(NamedTuple):
    """The weights of L layers, stacked; inner is the MLP's width."""

    norms: Tensor  # (L, 2, D) fp32
    qkv: Tensor  # (L, 3 D, D)
    out: Tensor  # (L, D, D)
    up: Tensor  # (L, 2 inner, D)
    down: Tensor  # (L, D, inner)


def stack(blocks: list[Block], dtype: torch.dtype) -> Weights:
    """Return the weights of some blocks in the dtype of their products. Raises ValueError for another eps than EPS."""
    if any(block.eps != EPS for block in blocks):
        raise ValueError(f"the kernels take norms of eps {EPS}")
    norms = torch.stack([torch.stack([b.norm1.weight, b.norm2.weight]) for b in blocks]).float()
    layers = ([getattr(b, name).weight for b in blocks] for name in ("qkv", "out", "up", "down"))
    return Weights(norms.detach(), *(torch.stack(ws).detach().to(dtype).contiguous() for ws in layers))


def body_ref(x: Tensor, blocks: list[Block], causal: bool, valid: Tensor | None = None) -> Tensor:
    """Return x (B, T, D) after all blocks, as tdlm_fast.model.Model computes it."""
    a = None
    for block in blocks:
        x, a = block(x, a, linear_layers(block), norm_weights(block), causal, valid)
    return x if a is None else x + a


@triton.jit
def normed(x, W, eps, D: tl.constexpr):
    """RMSNorm of the rows of x, fp32."""
    w = tl.load(W + tl.arange(0, D))
    return x * tl.rsqrt(tl.sum(x * x, 1) / D + eps)[:, None] * w[None, :]


@triton.jit
def projected(y, W, row0, row, D: tl.constexpr):
    """y times rows row0 + row of W (_, D), transposed: (BLOCK_T, len(row)), fp32."""
    w = tl.load(W + (row0 + row)[:, None] * D + tl.arange(0, D)[None, :])
    return tl.dot(y, tl.trans(w), input_precision="ieee")


@triton.jit
def turn(TURNS, T, HEAD_K: tl.constexpr, BLOCK_T: tl.constexpr):
    """(cos, sin) of all positions, (BLOCK_T, HEAD_K); sin is negative in the first half of a head."""
    HALF: tl.constexpr = HEAD_K // 2
    t, c = tl.arange(0, BLOCK_T), tl.arange(0, HEAD_K)
    at, inside = TURNS + t[:, None] * HEAD_K + tl.where(c < HALF, c, c - HALF)[None, :], (t < T)[:, None]
    sin = tl.load(at + HALF, mask=inside, other=0.0)
    return tl.load(at, mask=inside, other=0.0), tl.where((c < HALF)[None, :], -sin, sin)


@triton.jit
def turned(y, W, row0, TURNS, T, D: tl.constexpr, HEAD_K: tl.constexpr, BLOCK_T: tl.constexpr, SWAP: tl.constexpr):
    """A head's q or k, turned by its positions, in the dtype of y. SWAP: the columns of each pair exchanged."""
    HALF: tl.constexpr = HEAD_K // 2
    c = tl.arange(0, HEAD_K)
    q = projected(y, W, row0, c, D)
    swapped = projected(y, W, row0, tl.where(c < HALF, c + HALF, c - HALF), D)
    cos, sin = turn(TURNS, T, HEAD_K, BLOCK_T)
    if SWAP:
        q = swapped * cos - q * sin
    else:
        q = q * cos + swapped * sin
    return q.to(y.dtype)


@triton.jit
def probabilities(q, k, VALID, b, T, scale, CAUSAL: tl.constexpr, BLOCK_T: tl.constexpr):
    """softmax(q k^T scale + mask), fp32 (BLOCK_T, BLOCK_T). Every token sees itself: no 0 / 0."""
    i, j = tl.arange(0, BLOCK_T)[:, None], tl.arange(0, BLOCK_T)[None, :]
    keep = j < T
    if CAUSAL:
        keep = keep & (j <= i)
    if VALID is not None:
        keep = keep & (tl.load(VALID + b.to(tl.int64) * T + j, mask=j < T, other=0) != 0)
    keep = keep | (i == j)
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2E)
    s = tl.where(keep, s, float("-inf"))
    p = tl.exp2(s - tl.max(s, 1)[:, None])
    return p / tl.sum(p, 1)[:, None]


@triton.jit
def attended(x, y, QKV, OUT, VALID, TURNS, b, T, scale, D: tl.constexpr, HEADS: tl.constexpr, CAUSAL: tl.constexpr,
             BLOCK_T: tl.constexpr):  # fmt: skip
    """x + attention(y) Wo, head by head; y are the normed rows. QKV, OUT: of one layer."""
    HEAD_K: tl.constexpr = D // HEADS
    d, c = tl.arange(0, D), tl.arange(0, HEAD_K)
    for h in range(HEADS):
        row0 = h * HEAD_K
        q = turned(y, QKV, row0, TURNS, T, D, HEAD_K, BLOCK_T, False)
        k = turned(y, QKV, D + row0, TURNS, T, D, HEAD_K, BLOCK_T, False)
        p = probabilities(q, k, VALID, b, T, scale, CAUSAL, BLOCK_T).to(y.dtype)
        v = projected(y, QKV, 2 * D + row0, c, D).to(y.dtype)
        a = tl.dot(p, v, input_precision="ieee").to(y.dtype)
        w = tl.load(OUT + d[:, None] * D + row0 + c[None, :])
        x = tl.dot(a, tl.trans(w), x, input_precision="ieee")
    return x


@triton.jit
def forward_kernel(X, Y, STREAM, NORMS, QKV, OUT, UP, DOWN, VALID, TURNS, layers, T, eps, scale, D: tl.constexpr,
                   HEADS: tl.constexpr, INNER: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_T: tl.constexpr,
                   BLOCK_I: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Program b: sequence b. STREAM (layers, B, T, D): x before each layer. Rows past T are 0 and are not stored."""
    overlap(PDL)
    b, t, d, i = tl.program_id(0), tl.arange(0, BLOCK_T), tl.arange(0, D), tl.arange(0, BLOCK_I)
    at, inside = (b.to(tl.int64) * T + t[:, None]) * D + d[None, :], (t < T)[:, None]
    x = tl.load(X + at, mask=inside, other=0.0).to(tl.float32)
    kind = QKV.dtype.element_ty
    for layer in range(layers):
        if STREAM is not None:
            tl.store(STREAM + tl.cast(layer, tl.int64) * tl.num_programs(0) * T * D + at, x, mask=inside)
        y = normed(x, NORMS + 2 * layer * D, eps, D).to(kind)
        qkv, out = QKV + layer * 3 * D * D, OUT + layer * D * D
        x = attended(x, y, qkv, out, VALID, TURNS, b, T, scale, D, HEADS, CAUSAL, BLOCK_T)
        y = normed(x, NORMS + (2 * layer + 1) * D, eps, D).to(kind)
        up, down = UP + layer * 2 * INNER * D, DOWN + layer * D * INNER
        for i0 in range(0, INNER, BLOCK_I):
            g = projected(y, up, i0, i, D)
            u = projected(y, up, INNER + i0, i, D)
            z = (g / (1 + tl.exp(-g)) * u).to(kind)
            w = tl.load(down + d[:, None] * INNER + i0 + i[None, :])
            x = tl.dot(z, tl.trans(w), x, input_precision="ieee")
    tl.store(Y + at, x.to(Y.dtype.element_ty), mask=inside)


def launch(T: int) -> dict:
    """Block sizes and warps for sequences of T tokens: at 128 those with which the forward kernel does not spill."""
    block_t = max(16, triton.next_power_of_2(T))
    return dict(BLOCK_T=block_t, BLOCK_I=32, num_warps=8 if block_t > 64 else 4, num_stages=1, enable_fp_fusion=True)


def arguments(x: Tensor, weights: Weights, heads: int, causal: bool, valid: Tensor | None) -> tuple[list, dict]:
    """Return what both kernels end with. Raises ValueError where their tiles are not those of the shape."""
    (_, T, D), layers, inner = x.shape, len(weights.qkv), weights.down.shape[2]
    options, K = launch(T), D // heads
    if D & (D - 1) or D % heads or K & (K - 1) or K < 16 or inner % options["BLOCK_I"] or T > 128:
        raise ValueError(f"no tiles for D {D}, {heads} heads, inner {inner}, T {T}")
    valid = None if valid is None else valid.contiguous().view(torch.uint8)
    values = [valid, kept_rotation(T, K, x.device), layers, T, EPS, 1 / math.sqrt(K)]
    return values, options | dict(D=D, HEADS=heads, INNER=inner, CAUSAL=causal)


def body(x: Tensor, weights: Weights, heads: int, causal: bool, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return x (B, T, D) after all layers and (L, B, T, D) before each, fp32.

    valid (B, T) is False at padding, to which no token attends. D and the width of a head must be powers of 2, from 16
    on, inner a multiple of 32, and T at most 128; otherwise ValueError.
    """
    values, options = arguments(x, weights, heads, causal, valid)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    stream = x.new_empty(len(weights.qkv), *x.shape, dtype=torch.float32)
    start_kernel(forward_kernel, (len(x),), x.contiguous(), y, stream, *weights, *values, **options)
    return y, stream
