"""The Triton kernels of ops/attention.py, which holds the formulas: one program per (batch, head).

The scores never leave the program. With rotary positions q and k are turned as they are read, in fp32, and rounded
once. The gradients turn back by dq cos - swap(dq) sin, where swap exchanges the two columns of a pair. As swap(dS k) is
dS swap(k), that takes one more product and no shuffle of registers.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops.attention import dropout_threshold, empty_gradients
from ..ops.rotary import empty_rows_first, kept_rotation
from .launch import overlap, start_kernel


@triton.jit
def _at(b, h, i, stride_b, stride_h, stride_t, BLOCK_K: tl.constexpr):
    """Where rows i of tile [b, h] lie, (BLOCK_T, BLOCK_K)."""
    return b.to(tl.int64) * stride_b + h * stride_h + i[:, None] * stride_t + tl.arange(0, BLOCK_K)[None, :]


@triton.jit
def _turn(TURNS, i, T, HEAD_K: tl.constexpr, BLOCK_K: tl.constexpr):
    """(cos, sin) of rows i, (BLOCK_T, BLOCK_K); sin is negative in the first half: x turns to x cos + swap(x) sin."""
    HALF: tl.constexpr = HEAD_K // 2
    c = tl.arange(0, BLOCK_K)[None, :]
    at = TURNS + i[:, None] * HEAD_K + tl.where(c < HALF, c, c - HALF)
    inside = (i[:, None] < T) & (c < HEAD_K)
    sin = tl.load(at + HALF, mask=inside, other=0.0)
    return tl.load(at, mask=inside, other=0.0), tl.where(c < HALF, -sin, sin)


@triton.jit
def _turned(X, at, TURNS, i, T, HEAD_K: tl.constexpr, BLOCK_K: tl.constexpr, SWAP: tl.constexpr):
    """The tile of X at `at`, turned by its positions if there are TURNS; SWAP: the columns of each pair exchanged."""
    HALF: tl.constexpr = HEAD_K // 2
    c = tl.arange(0, BLOCK_K)[None, :]
    inside = (i[:, None] < T) & (c < HEAD_K)
    x = tl.load(X + at, mask=inside, other=0.0)
    if TURNS is not None:
        other = tl.load(X + at + tl.where(c < HALF, HALF, -HALF), mask=inside, other=0.0)
        cos, sin = _turn(TURNS, i, T, HEAD_K, BLOCK_K)
        if SWAP:
            x = (other * cos - x * sin).to(X.dtype.element_ty)
        else:
            x = (x * cos + other * sin).to(X.dtype.element_ty)
    return x


@triton.jit
def _gradient(ds, X, at, TURNS, i, T, HEAD_K: tl.constexpr, BLOCK_K: tl.constexpr):
    """ds times the tile of X, turned back by its positions if there are TURNS: a gradient of q or k, fp32."""
    x = _turned(X, at, TURNS, i, T, HEAD_K, BLOCK_K, False)
    g = tl.dot(ds, x, input_precision="ieee")
    if TURNS is not None:
        x = _turned(X, at, TURNS, i, T, HEAD_K, BLOCK_K, True)
        swapped = tl.dot(ds, x, input_precision="ieee")
        cos, sin = _turn(TURNS, i, T, HEAD_K, BLOCK_K)
        g = g * cos - swapped * sin
    return g


@triton.jit
def _probabilities(q, k, i, VALID, SEGMENTS, b, T, scale, CAUSAL: tl.constexpr, BLOCK_T: tl.constexpr):
    """softmax(q k^T scale + mask) of query rows i, fp32 (BLOCK_T, BLOCK_T). Rows past T see themselves: no 0 / 0."""
    i, j = i[:, None], tl.arange(0, BLOCK_T)[None, :]
    keep = (j < T) & (i < T)
    if CAUSAL:
        keep = keep & (j <= i)
    if VALID is not None:
        keep = keep & (tl.load(VALID + b.to(tl.int64) * T + j, mask=j < T, other=0) != 0)
    if SEGMENTS is not None:
        own = tl.load(SEGMENTS + b.to(tl.int64) * T + i, mask=i < T, other=0)
        keep = keep & (own == tl.load(SEGMENTS + b.to(tl.int64) * T + j, mask=j < T, other=0))
    keep = keep | (i == j)
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * 1.4426950408889634)
    s = tl.where(keep, s, float("-inf"))
    p = tl.exp2(s - tl.max(s, 1)[:, None])
    return p / tl.sum(p, 1)[:, None]


@triton.jit
def _kept(KEY, program, i, T, THRESHOLD: tl.constexpr, BLOCK_T: tl.constexpr):
    """Which entries dropout keeps, (BLOCK_T, BLOCK_T): the four words of a counter side by side."""
    key = tl.load(KEY).to(tl.uint64) | (tl.load(KEY + 1).to(tl.uint64) << 32)
    counter = (program * T + i[:, None]) * tl.cdiv(T, 4) + tl.arange(0, BLOCK_T // 4)[None, :]
    counter = counter.to(tl.uint32)
    zero = tl.zeros_like(counter)
    w0, w1, w2, w3 = tl.philox(key, counter, zero, zero, zero)
    words = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
    return (words >> 1).to(tl.int32) >= THRESHOLD


@triton.jit
def forward_kernel(
    Q, K, V, OUT, VALID, SEGMENTS, KEY, TURNS, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, o_b, o_h, o_t, H, T, scale,
    rescale, HEAD_K: tl.constexpr, CAUSAL: tl.constexpr, THRESHOLD: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    overlap(PDL)
    program = tl.program_id(0)
    b, h, i = program // H, program % H, tl.arange(0, BLOCK_T)
    inside = (i[:, None] < T) & (tl.arange(0, BLOCK_K)[None, :] < HEAD_K)
    q = _turned(Q, _at(b, h, i, q_b, q_h, q_t, BLOCK_K), TURNS, i, T, HEAD_K, BLOCK_K, False)
    k = _turned(K, _at(b, h, i, k_b, k_h, k_t, BLOCK_K), TURNS, i, T, HEAD_K, BLOCK_K, False)
    v = tl.load(V + _at(b, h, i, v_b, v_h, v_t, BLOCK_K), mask=inside, other=0.0)
    p = _probabilities(q, k, i, VALID, SEGMENTS, b, T, scale, CAUSAL, BLOCK_T)
    if KEY is not None:
        p = tl.where(_kept(KEY, program, i, T, THRESHOLD, BLOCK_T), p * rescale, 0.0)
    out = tl.dot(p.to(v.dtype), v, input_precision="ieee")
    tl.store(OUT + _at(b, h, i, o_b, o_h, o_t, BLOCK_K), out.to(OUT.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["T"])  # a T known to be a multiple of 16 spills at 128 x 32
def backward_kernel(
    Q, K, V, DOUT, DQ, DK, DV, VALID, SEGMENTS, KEY, TURNS, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, g_b, g_h, g_t,
    o_b, o_h, o_t, H, T, scale, rescale, HEAD_K: tl.constexpr, CAUSAL: tl.constexpr, THRESHOLD: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    overlap(PDL)
    program = tl.program_id(0)
    b, h, i = program // H, program % H, tl.arange(0, BLOCK_T)
    inside = (i[:, None] < T) & (tl.arange(0, BLOCK_K)[None, :] < HEAD_K)
    q = _turned(Q, _at(b, h, i, q_b, q_h, q_t, BLOCK_K), TURNS, i, T, HEAD_K, BLOCK_K, False)
    k = _turned(K, _at(b, h, i, k_b, k_h, k_t, BLOCK_K), TURNS, i, T, HEAD_K, BLOCK_K, False)
    v = tl.load(V + _at(b, h, i, v_b, v_h, v_t, BLOCK_K), mask=inside, other=0.0)
    do = tl.load(DOUT + _at(b, h, i, g_b, g_h, g_t, BLOCK_K), mask=inside, other=0.0)
    p = _probabilities(q, k, i, VALID, SEGMENTS, b, T, scale, CAUSAL, BLOCK_T)
    dp = tl.dot(do, tl.trans(v), input_precision="ieee")
    if KEY is not None:
        kept = _kept(KEY, program, i, T, THRESHOLD, BLOCK_T)
        dp = tl.where(kept, dp * rescale, 0.0)
        dropped = tl.where(kept, p * rescale, 0.0)
    else:
        dropped = p
    at = _at(b, h, i, o_b, o_h, o_t, BLOCK_K)
    dv = tl.dot(tl.trans(dropped.to(do.dtype)), do, input_precision="ieee")
    tl.store(DV + at, dv.to(DV.dtype.element_ty), mask=inside)
    ds = (p * (dp - tl.sum(p * dp, 1)[:, None]) * scale).to(q.dtype)
    # k and q come again, from cache: kept in registers until here they would spill.
    dq = _gradient(ds, K, _at(b, h, i, k_b, k_h, k_t, BLOCK_K), TURNS, i, T, HEAD_K, BLOCK_K)
    tl.store(DQ + at, dq.to(DQ.dtype.element_ty), mask=inside)
    dk = _gradient(tl.trans(ds), Q, _at(b, h, i, q_b, q_h, q_t, BLOCK_K), TURNS, i, T, HEAD_K, BLOCK_K)
    tl.store(DK + at, dk.to(DK.dtype.element_ty), mask=inside)


def launch(T: int, K: int) -> dict:
    """Block sizes and warps for T tokens and a head of K."""
    block_t, block_k = max(16, triton.next_power_of_2(T)), max(16, triton.next_power_of_2(K))
    warps = {128: 8, 64: 4}.get(block_t, 2)
    return dict(BLOCK_T=block_t, BLOCK_K=block_k, num_warps=warps, num_stages=1, enable_fp_fusion=True)


def _arguments(q, valid, segments, key, causal, dropout_p, rope, *strided):
    """The arguments that both kernels end with; strided: tensors whose strides go first."""
    B, H, T, K = q.shape
    valid = None if valid is None else valid.contiguous().view(torch.uint8)
    segments = None if segments is None else segments.contiguous()
    strides = [s for a in strided for s in a.stride()[:3]]
    threshold = dropout_threshold(dropout_p) if key is not None else 0
    constants = dict(HEAD_K=K, CAUSAL=causal, THRESHOLD=threshold) | launch(T, K)
    turns = kept_rotation(T, K, q.device) if rope else None
    return [valid, segments, key, turns, *strides, H, T, 1 / math.sqrt(K), 1 / (1 - dropout_p)], constants


def _dense(*tensors: Tensor) -> list[Tensor]:
    """The tensors with their last dimension contiguous."""
    return [a if a.stride(-1) == 1 else a.contiguous() for a in tensors]


def forward(q, k, v, valid, segments, key, causal, dropout_p, rope=False):
    q, k, v = _dense(q, k, v)
    out = empty_rows_first(q)
    arguments, constants = _arguments(q, valid, segments, key, causal, dropout_p, rope, q, k, v, out)
    start_kernel(forward_kernel, (q.shape[0] * q.shape[1],), q, k, v, out, *arguments, **constants)
    return out


def backward(dout, q, k, v, valid, segments, key, causal, dropout_p, rope=False):
    q, k, v, dout = _dense(q, k, v, dout)
    grads = empty_gradients(q)
    dq, dk, dv = grads
    arguments, constants = _arguments(q, valid, segments, key, causal, dropout_p, rope, q, k, v, dout, dq)
    start_kernel(backward_kernel, (q.shape[0] * q.shape[1],), q, k, v, dout, dq, dk, dv, *arguments, **constants)
    return grads
