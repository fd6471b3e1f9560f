"""The Triton kernel of ops/rotary.py: queries and keys turned in one launch, forward and back alike."""

import triton
import triton.language as tl
from torch import Tensor

from ..ops.rotary import check_shapes, empty_rows_first, kept_rotation
from .launch import overlap, start_kernel
from .tiles import SMALL

TILE = 1024  # pairs that a program turns, of each


@triton.jit
def _turn(X, OUT, m, c, b, h, t, x_b, x_h, x_t, cos, sin, inside, HALF: tl.constexpr):
    at = X + (b.to(tl.int64) * x_b + h * x_h + t * x_t)[:, None] + c[None, :]
    first = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
    out = OUT + m[:, None].to(tl.int64) * (2 * HALF) + c[None, :]
    tl.store(out, (first * cos - second * sin).to(OUT.dtype.element_ty), mask=inside)
    tl.store(out + HALF, (second * cos + first * sin).to(OUT.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["M"])
def turn_kernel(
    Q, K, OUT_Q, OUT_K, TURNS, M, T, H, q_b, q_h, q_t, k_b, k_h, k_t, HALF: tl.constexpr, BACK: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Row m of the output is head h of position t of sequence b: m = (b T + t) H + h."""
    overlap(PDL)
    m, c = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    b, t, h = m // (T * H), m // H % T, m % H
    inside = (m < M)[:, None] & (c < HALF)[None, :]
    at = TURNS + t[:, None] * (2 * HALF) + c[None, :]
    cos, sin = tl.load(at, mask=inside, other=0.0), tl.load(at + HALF, mask=inside, other=0.0)
    if BACK:
        sin = -sin
    _turn(Q, OUT_Q, m, c, b, h, t, q_b, q_h, q_t, cos, sin, inside, HALF)
    _turn(K, OUT_K, m, c, b, h, t, k_b, k_h, k_t, cos, sin, inside, HALF)


def launch(K: int) -> dict:
    """Block sizes for heads of K."""
    block = max(16, triton.next_power_of_2(K // 2))
    return dict(ROWS=max(1, TILE // block), BLOCK=block)


def turn(q: Tensor, k: Tensor, back: bool) -> tuple[Tensor, Tensor]:
    check_shapes(q, k)
    q, k = (a if a.stride(-1) == 1 else a.contiguous() for a in (q, k))
    (_, H, T, K), M = q.shape, q.numel() // q.shape[-1]
    outputs, blocks = (empty_rows_first(q), empty_rows_first(k)), launch(K)
    start_kernel(
        turn_kernel, (triton.cdiv(M, blocks["ROWS"]),), q, k, *outputs, kept_rotation(T, K, q.device), M, T, H,
        *q.stride()[:3], *k.stride()[:3], HALF=K // 2, BACK=back, **blocks, **SMALL,
    )  # fmt: skip
    return outputs
