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

from tdlm_fast.kernels.ops.rotary import kept_rotation
from tdlm_fast.kernels.triton.launch import overlap, start_kernel
from tdlm_fast.model import EPS, Block

LOG2E = tl.constexpr(1.4426950408889634)


class Weights(NamedTuple):
    """The weights of L layers, stacked; inner is the MLP's width."""

    norms: Tensor  # (L, 2, D) fp32
    qkv: Tensor  # (L, 3 D, D)
    out: Tensor  # (L, D, D)
    up: Tensor  # (L, 2 inner, D)
    down: Tensor  # (L, D, inner)


def stack(blocks: list[Block], dtype: torch.dtype) -> Weights:
    """Return the weights of some blocks in the dtype of their products."""
    norms = torch.stack([torch.stack([b.norm1.weight, b.norm2.weight]) for b in blocks]).float()
    layers = ([getattr(b, name).weight for b in blocks] for name in ("qkv", "out", "up", "down"))
    return Weights(norms.detach(), *(torch.stack(ws).detach().to(dtype).contiguous() for ws in layers))


def body_ref(x: Tensor, blocks: list[Block], causal: bool, valid: Tensor | None = None) -> Tensor:
    """Return x (B, T, D) after all blocks, as tdlm_fast.model.Model computes it."""
    a = None
    for block in blocks:
        x, a = block(x, a, block.layers, causal, valid)
    return x if a is None else x + a


@triton.jit
def _normed(x, W, eps, D: tl.constexpr):
    """RMSNorm of the rows of x, fp32."""
    w = tl.load(W + tl.arange(0, D))
    return x * tl.rsqrt(tl.sum(x * x, 1) / D + eps)[:, None] * w[None, :]


@triton.jit
def _projected(y, W, row0, row, D: tl.constexpr):
    """y times rows row0 + row of W (_, D), transposed: (BLOCK_T, len(row)), fp32."""
    w = tl.load(W + (row0 + row)[:, None] * D + tl.arange(0, D)[None, :])
    return tl.dot(y, tl.trans(w), input_precision="ieee")


@triton.jit
def _turned(y, W, row0, TURNS, T, D: tl.constexpr, HEAD_K: tl.constexpr, BLOCK_T: tl.constexpr):
    """A head's q or k, turned by its positions, in the dtype of y."""
    HALF: tl.constexpr = HEAD_K // 2
    t, c = tl.arange(0, BLOCK_T), tl.arange(0, HEAD_K)
    q = _projected(y, W, row0, c, D)
    swapped = _projected(y, W, row0, tl.where(c < HALF, c + HALF, c - HALF), D)
    at, inside = TURNS + t[:, None] * HEAD_K + tl.where(c < HALF, c, c - HALF)[None, :], (t < T)[:, None]
    cos, sin = tl.load(at, mask=inside, other=0.0), tl.load(at + HALF, mask=inside, other=0.0)
    return (q * cos + swapped * tl.where((c < HALF)[None, :], -sin, sin)).to(y.dtype)


@triton.jit
def _probabilities(q, k, VALID, b, T, scale, CAUSAL: tl.constexpr, BLOCK_T: tl.constexpr):
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
def forward_kernel(X, Y, NORMS, QKV, OUT, UP, DOWN, VALID, TURNS, layers, T, eps, scale, D: tl.constexpr,
                   HEADS: tl.constexpr, INNER: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_T: tl.constexpr,
                   BLOCK_I: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Program b: sequence b. Rows past T are 0 and stay finite; they are not stored."""
    overlap(PDL)
    HEAD_K: tl.constexpr = D // HEADS
    b, t, d = tl.program_id(0), tl.arange(0, BLOCK_T), tl.arange(0, D)
    c, i = tl.arange(0, HEAD_K), tl.arange(0, BLOCK_I)
    at, inside = (b.to(tl.int64) * T + t[:, None]) * D + d[None, :], (t < T)[:, None]
    x = tl.load(X + at, mask=inside, other=0.0).to(tl.float32)
    kind = QKV.dtype.element_ty
    for layer in range(layers):
        y = _normed(x, NORMS + 2 * layer * D, eps, D).to(kind)
        qkv, out = QKV + layer * 3 * D * D, OUT + layer * D * D
        for h in range(HEADS):
            row0 = h * HEAD_K
            q = _turned(y, qkv, row0, TURNS, T, D, HEAD_K, BLOCK_T)
            k = _turned(y, qkv, D + row0, TURNS, T, D, HEAD_K, BLOCK_T)
            p = _probabilities(q, k, VALID, b, T, scale, CAUSAL, BLOCK_T).to(kind)
            v = _projected(y, qkv, 2 * D + row0, c, D).to(kind)
            a = tl.dot(p, v, input_precision="ieee").to(kind)
            w = tl.load(out + d[:, None] * D + row0 + c[None, :])
            x = tl.dot(a, tl.trans(w), x, input_precision="ieee")
        y = _normed(x, NORMS + (2 * layer + 1) * D, eps, D).to(kind)
        up, down = UP + layer * 2 * INNER * D, DOWN + layer * D * INNER
        for i0 in range(0, INNER, BLOCK_I):
            g = _projected(y, up, i0, i, D)
            u = _projected(y, up, INNER + i0, i, D)
            z = (g / (1 + tl.exp(-g)) * u).to(kind)
            w = tl.load(down + d[:, None] * INNER + i0 + i[None, :])
            x = tl.dot(z, tl.trans(w), x, input_precision="ieee")
    tl.store(Y + at, x.to(Y.dtype.element_ty), mask=inside)


def launch(T: int) -> dict:
    """Block sizes and warps for sequences of T tokens: at 128 the tiles that compile without spills."""
    block_t = max(16, triton.next_power_of_2(T))
    return dict(BLOCK_T=block_t, BLOCK_I=32, num_warps=8 if block_t > 64 else 4, num_stages=1, enable_fp_fusion=True)


def body(x: Tensor, weights: Weights, heads: int, causal: bool, valid: Tensor | None = None) -> Tensor:
    """Return x (B, T, D) after all layers. valid (B, T) is False at padding, to which no token attends.

    Raises ValueError where the kernel's tiles are not those of the shape: D and the width of a head must be powers of
    2 from 16 on, inner a multiple of 32, T at most 128.
    """
    (B, T, D), layers, inner = x.shape, len(weights.qkv), weights.down.shape[2]
    options, K = launch(T), D // heads
    if D & (D - 1) or D % heads or K & (K - 1) or K < 16 or inner % options["BLOCK_I"] or T > 128:
        raise ValueError(f"no tiles for D {D}, {heads} heads, inner {inner}, T {T}")
    y, valid = torch.empty_like(x, memory_format=torch.contiguous_format), None if valid is None else valid.contiguous()
    start_kernel(
        forward_kernel, (B,), x.contiguous(), y, *weights, None if valid is None else valid.view(torch.uint8),
        kept_rotation(T, K, x.device), layers, T, EPS, 1 / math.sqrt(K), D=D, HEADS=heads, INNER=inner, CAUSAL=causal,
        **options,
    )  # fmt: skip
    return y
