"""The linear cross-entropy in Triton: two flash-style passes, no logits in memory.

    forward   m, L, A = max_v z, sum_v 2^(c z - c m), sum_v 2^(c z - c m) w_v  over a part of V; z = h w_v, c = log2 e
    combine   lse = m + ln L,  nll = lse - h . w_y,  dh = A / L - w_y          over the parts, in their order
    fold      shift = c lse - log2 |g|
    weight    dw_v = sum_i s_i 2^(c z - shift_i) h_i - sum_{i: y_i = v} g_i h_i    over some rows; s = sign of g
    gather    dw_v summed over the parts, in their order

Softmax(h W^T) W is attention with Q = h and K = V = W, so `forward` is FlashAttention-2 (Dao 2023) with the rows of h
as queries. `weight` is the same loop with the roles exchanged; the gradient g of each token rides in the exponent, and
g = 0 gives exactly 0.

Both passes cut their work into units, a tile of rows with a tile of the vocabulary, and give each program of the grid
an equal run of them (stream-K; Osama et al. 2023, arXiv 2301.03598). The grid fills the GPU once, so no multiprocessor
waits for a last wave, however many rows count; their number is read on the device. Where a run ends within a tile,
combine and gather add up the parts in a fixed order: no atomics, the same bits every run. tiles.py chooses tiles and
grid.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import hardware
from ..ops.gathered_cross_entropy import check_gathered
from ..ops.linear_cross_entropy import check_shapes, live_only, lse_dtype
from .launch import overlap, start_kernel
from .tiles import FOLD_ROWS, SMALL, Plan, card, fused, rows_launch

LOG2E = tl.constexpr(1.4426950408889634)
NO_TARGET = tl.constexpr(2**31 - 3)
MAX_LOGIT = tl.constexpr(40.0)  # e^40 times a large vocabulary is far from the largest fp32 and bf16, 3e38


@triton.jit(do_not_specialize=["N"])
def take_kernel(H, FROM, N_ROWS, X, LONGEST, N, D, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, PDL: tl.constexpr):
    """Row FROM[i] of H, or row i, to row i of X in its dtype; 0 past the count. LONGEST[program]: max |x|^2."""
    overlap(PDL)
    r, d = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK_D)
    on = r < live_rows(N_ROWS, N)
    row = r.to(tl.int64) if FROM is None else tl.load(FROM + r, mask=on, other=0)
    narrow = (d < D)[None, :]
    x = tl.load(H + row[:, None] * D + d[None, :], mask=on[:, None] & narrow, other=0.0).to(X.dtype.element_ty)
    tl.store(X + r[:, None].to(tl.int64) * D + d[None, :], x, mask=(r < N)[:, None] & narrow)
    x = x.to(tl.float32)
    tl.store(LONGEST + tl.program_id(0), tl.max(tl.sum(x * x, 1), 0))


@triton.jit
def _largest(VALUES, n, BLOCK: tl.constexpr):
    """The largest of n values that are not negative."""
    largest = tl.zeros([BLOCK], tl.float32)
    for start in range(0, n, BLOCK):
        i = start + tl.arange(0, BLOCK)
        largest = tl.maximum(largest, tl.load(VALUES + i, mask=i < n, other=0.0))
    return tl.max(largest, 0)


@triton.jit
def live_rows(N_ROWS, N):
    """How many rows count: n_rows held within 0..N, or all."""
    if N_ROWS is None:
        live = N
    else:
        live = tl.minimum(tl.maximum(tl.load(N_ROWS), 0), N).to(tl.int32)
    return live


@triton.jit
def _attend(x, m, total, acc, W, j, V, D, ENDS: tl.constexpr, ONLINE: tl.constexpr, NEED_DH: tl.constexpr,
            HALF_SUMS: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """Tile j of the vocabulary by the online softmax. V ends in it if ENDS is "here", never, or finds out if "maybe".

    Past the end the last row is read again, and its logit is -inf. Without ONLINE m stays as it is.
    """
    SUM: tl.constexpr = tl.float16 if HALF_SUMS else tl.float32
    v, d = tl.arange(0, BLOCK_V), tl.arange(0, BLOCK_D)
    left = V - j * BLOCK_V
    row = v if ENDS == "never" else tl.minimum(v, left - 1)
    at = tl.cast(j * BLOCK_V, tl.int64) * D + row[:, None] * D + d[None, :]
    w = tl.load(W + at, mask=(d < D)[None, :], other=0.0)
    z = tl.dot(x, tl.trans(w), input_precision="ieee", out_dtype=SUM).to(tl.float32)
    if ENDS == "here":
        z = tl.where((v < left)[None, :], z, float("-inf"))
    elif ENDS == "maybe":
        if left < BLOCK_V:
            z = tl.where((v < left)[None, :], z, float("-inf"))
    if ONLINE:
        m_new = tl.maximum(m, tl.max(z, 1))
        p = tl.exp2(z * LOG2E - (m_new * LOG2E)[:, None])
        alpha = tl.exp2((m - m_new) * LOG2E)
        total, acc, m = total * alpha, acc * alpha[:, None] if NEED_DH else acc, m_new
    else:
        p = tl.exp2(z * LOG2E)
    total += tl.sum(p, 1)
    if NEED_DH:
        if HALF_SUMS:
            acc += tl.dot(p.to(w.dtype), w, out_dtype=SUM).to(tl.float32)
        else:
            acc = tl.dot(p.to(w.dtype), w, acc, input_precision="ieee")
    return m, total, acc


@triton.jit(do_not_specialize=["N", "V", "n_h", "n_w"])
def forward_kernel(H, W, N_ROWS, LONGEST_H, LONGEST_W, M, L, ACC, N, V, D, n_h, n_w, LOGITS: tl.constexpr,
                   NEED_DH: tl.constexpr, HALF_SUMS: tl.constexpr, PEELED: tl.constexpr, BLOCK_N: tl.constexpr,
                   BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """The part of program p in row tile t goes to place p + t of M, L and ACC: no two parts share one.

    LOGITS: "any"; or "small", "large": end at once unless all |h| |w| are small, or some large. Small logits cannot
    overflow, so the loop needs no maximum. Both loops in one kernel would spill.
    """
    overlap(PDL)
    if LOGITS != "any":
        is_small = tl.sqrt(_largest(LONGEST_H, n_h, 1024) * _largest(LONGEST_W, n_w, 1024)) < MAX_LOGIT
        if is_small != (LOGITS == "small"):
            return
    ONLINE: tl.constexpr = LOGITS != "small"
    live, v_tiles, p = live_rows(N_ROWS, N), tl.cdiv(V, BLOCK_V), tl.program_id(0)
    units = tl.cdiv(live, BLOCK_N) * v_tiles
    share = tl.cdiv(units, tl.num_programs(0))
    begin, end = p * share, tl.minimum((p + 1) * share, units)
    r, d = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    for tile in range(begin // v_tiles, tl.cdiv(end, v_tiles)):
        row0 = tile * BLOCK_N
        seen = (r < live - row0)[:, None] & (d < D)[None, :]
        x = tl.load(H + (row0 + r)[:, None].to(tl.int64) * D + d[None, :], mask=seen, other=0.0)
        m = tl.full([BLOCK_N], float("-inf") if ONLINE else 0.0, tl.float32)
        total = tl.zeros([BLOCK_N], tl.float32)
        acc = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        first, last = tl.maximum(begin - tile * v_tiles, 0), tl.minimum(end - tile * v_tiles, v_tiles)
        whole = tl.minimum(last, V // BLOCK_V)
        # PEELED has two bodies and no branch. Across a branch Triton does not see that the second product takes the
        # first, splits the columns over warps too, and each row's maximum goes through shared memory: 14.0 instructions
        # a logit, not 11.5, at D = 64 on sm_86. Wide tiles and fp32 would spill with two bodies.
        if PEELED:
            for j in range(first, whole):
                m, total, acc = _attend(
                    x, m, total, acc, W, j, V, D, "never", ONLINE, NEED_DH, HALF_SUMS, BLOCK_V, BLOCK_D
                )
            if whole < last:
                m, total, acc = _attend(
                    x, m, total, acc, W, whole, V, D, "here", ONLINE, NEED_DH, HALF_SUMS, BLOCK_V, BLOCK_D
                )
        else:
            for j in range(first, last):
                m, total, acc = _attend(
                    x, m, total, acc, W, j, V, D, "maybe", ONLINE, NEED_DH, HALF_SUMS, BLOCK_V, BLOCK_D
                )
        at = (p + tile) * BLOCK_N + r
        tl.store(M + at, m)
        tl.store(L + at, total)
        if NEED_DH:
            tl.store(ACC + at[:, None].to(tl.int64) * D + d[None, :], acc, mask=(d < D)[None, :])


@triton.jit(do_not_specialize=["N", "V", "programs"])
def combine_kernel(H, W, Y, N_ROWS, M, L, ACC, NLL, LSE, DH, N, V, D, programs, NEED_DH: tl.constexpr,
                   BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
                   PDL: tl.constexpr):  # fmt: skip
    """Rows past the count get 0; a target outside the vocabulary gets NaN, and nothing outside W is read."""
    overlap(PDL)
    live, v_tiles = live_rows(N_ROWS, N), tl.cdiv(V, BLOCK_V)
    share = tl.maximum(tl.cdiv(tl.cdiv(live, BLOCK_N) * v_tiles, programs), 1)
    tile = tl.program_id(0) * ROWS // BLOCK_N
    r, d = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK_D)
    on, at = r < live, r[:, None].to(tl.int64) * D + d[None, :]
    y = tl.load(Y + r, mask=on, other=-1)
    known = (y >= 0) & (y < V)
    wide = on[:, None] & (d < D)[None, :]
    x = tl.load(H + at, mask=wide, other=0.0).to(tl.float32)
    wy = tl.load(W + y[:, None] * D + d[None, :], mask=wide & known[:, None], other=0.0).to(tl.float32)
    m = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
    end = tl.where(tile * BLOCK_N < live, tl.cdiv((tile + 1) * v_tiles, share), 0)
    for p in range(tile * v_tiles // share, end):  # the programs that met this tile
        part = tl.cast(p, tl.int64) * BLOCK_N + r  # place p + tile, row r - tile BLOCK_N of it
        m_p = tl.load(M + part, mask=on, other=0.0)
        m_new = tl.maximum(m, m_p)
        old, new = tl.exp2((m - m_new) * LOG2E), tl.exp2((m_p - m_new) * LOG2E)
        total = total * old + tl.load(L + part, mask=on, other=1.0) * new
        if NEED_DH:
            acc = (
                acc * old[:, None] + tl.load(ACC + part[:, None] * D + d[None, :], mask=wide, other=0.0) * new[:, None]
            )
        m = m_new
    lse = m + tl.log(total)
    nll = tl.where(known, lse - tl.sum(x * wy, 1), float("nan"))
    tl.store(NLL + r, tl.where(on, nll, 0.0), mask=r < N)
    tl.store(LSE + r, tl.where(on, lse, 0.0), mask=r < N)
    if NEED_DH:
        dh = tl.where(known[:, None], acc / total[:, None] - wy, float("nan"))
        dh = tl.where(on[:, None], dh, 0.0).to(DH.dtype.element_ty)
        tl.store(DH + at, dh, mask=(r < N)[:, None] & (d < D)[None, :])


@triton.jit
def gradient_scale(GMAX, HEADROOM: tl.constexpr):
    """fp16 has few exponents: gradients are scaled to at most 2^(HEADROOM + 1) inside the products."""
    if GMAX is None:
        scale = 1.0
    else:
        g = tl.load(GMAX)
        scale = tl.where(g > 1e-30, tl.exp2(HEADROOM - tl.floor(tl.log2(g))), 1.0)
    return scale


@triton.jit(do_not_specialize=["N", "padded"])
def fold_kernel(
    Y, LSE, G, GMAX, N_ROWS, SHIFT, GS, CODE, N, padded, HEADROOM: tl.constexpr, ROWS: tl.constexpr, PDL: tl.constexpr
):
    """Per row the exponent's shift, the scaled gradient, and the target; -2 - target where the gradient is negative."""
    overlap(PDL)
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    on = r < live_rows(N_ROWS, N)
    g = tl.load(G + r, mask=on, other=0.0) * gradient_scale(GMAX, HEADROOM)
    lse = tl.load(LSE + r, mask=on, other=0.0)
    y = tl.load(Y + r, mask=on, other=-1)
    y = tl.where((y >= 0) & (y < NO_TARGET), y, NO_TARGET).to(tl.int32)
    tl.store(SHIFT + r, lse * LOG2E - tl.log2(tl.abs(g)), mask=r < padded)
    tl.store(GS + r, g, mask=r < padded)
    tl.store(CODE + r, tl.where(g < 0, -2 - y, y), mask=r < padded)


@triton.jit(do_not_specialize=["N", "V", "rows_of_w"])
def weight_kernel(H, W, SHIFT, GS, CODE, GMAX, N_ROWS, DW, PART, N, V, rows_of_w, D, HEADROOM: tl.constexpr,
                  HALF_SUMS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr,
                  PDL: tl.constexpr):  # fmt: skip
    """The part of a tile that holds its first rows goes to DW. A program's other part, if any, goes to PART[p]."""
    overlap(PDL)
    live, p = live_rows(N_ROWS, N), tl.program_id(0)
    tiles = tl.maximum(tl.cdiv(live, BLOCK_N), 1)
    units = tl.cdiv(rows_of_w, BLOCK_V) * tiles
    share = tl.cdiv(units, tl.num_programs(0))
    begin, end = p * share, tl.minimum((p + 1) * share, units)
    r, v, d = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_V), tl.arange(0, BLOCK_D)
    SUM: tl.constexpr = tl.float16 if HALF_SUMS else tl.float32
    for tile in range(begin // tiles, tl.cdiv(end, tiles)):
        v0 = tile * BLOCK_V
        inside = (v < V - v0)[:, None] & (d < D)[None, :]
        w = tl.load(W + (v0 + v)[:, None].to(tl.int64) * D + d[None, :], mask=inside, other=0.0)
        acc = tl.zeros([BLOCK_V, BLOCK_D], tl.float32)
        last = tl.minimum(end - tile * tiles, tl.cdiv(live, BLOCK_N))  # none where no row counts
        for i in range(tl.maximum(begin - tile * tiles, 0), last):
            r0 = i * BLOCK_N  # past the count the last row is read again, and its shift is inf
            from_h = tl.cast(r0, tl.int64) * D + tl.minimum(r, live - 1 - r0)[:, None] * D + d[None, :]
            x = tl.load(H + from_h, mask=(d < D)[None, :], other=0.0)
            z = tl.dot(w, tl.trans(x), input_precision="ieee", out_dtype=SUM).to(tl.float32)
            q = tl.exp2(z * LOG2E - tl.load(SHIFT + r0 + r)[None, :])
            code = tl.load(CODE + r0 + r)
            # Few tiles hold a target or a negative gradient: a branch that all threads take alike spares the others.
            if tl.max(((code < 0) | (code >= v0) & (code < v0 + BLOCK_V)).to(tl.int32), 0) > 0:
                g = tl.load(GS + r0 + r)
                code = tl.load(CODE + r0 + r, cache_modifier=".cg")  # read once more: kept, it costs registers
                q = tl.where((code < 0)[None, :], -q, q)
                y = tl.where(code < 0, -2 - code, code) - v0
                q -= tl.where(v[:, None] == y[None, :], g[None, :], 0.0)
            if HALF_SUMS:
                acc += tl.dot(q.to(x.dtype), x, out_dtype=SUM).to(tl.float32)
            else:
                acc = tl.dot(q.to(x.dtype), x, acc, input_precision="ieee")
        acc = tl.where((v < V - v0)[:, None], acc / gradient_scale(GMAX, HEADROOM), 0.0)
        to, row0, rows = PART, p * BLOCK_V, BLOCK_V
        if tile * tiles >= begin:
            to, row0, rows = DW, v0, rows_of_w - v0
        at = (row0 + v)[:, None].to(tl.int64) * D + d[None, :]
        tl.store(to + at, acc, mask=(v < rows)[:, None] & (d < D)[None, :])


@triton.jit(do_not_specialize=["N", "rows_of_w", "programs"])
def gather_kernel(DW, PART, N_ROWS, N, rows_of_w, D, programs, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr,
                  BLOCK_D: tl.constexpr, ROWS: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Add to some rows of DW the parts of the programs that went on with their tile, in order."""
    overlap(PDL)
    tiles = tl.maximum(tl.cdiv(live_rows(N_ROWS, N), BLOCK_N), 1)
    share = tl.cdiv(tl.cdiv(rows_of_w, BLOCK_V) * tiles, programs)
    row0 = tl.program_id(0) * ROWS
    tile = row0 // BLOCK_V
    first, end = tl.cdiv(tile * tiles, share), tl.cdiv((tile + 1) * tiles, share)
    first += (first * share == tile * tiles).to(tl.int32)  # a program that begins with the tile wrote to DW
    if first >= end:
        return
    r, d = tl.arange(0, ROWS), tl.arange(0, BLOCK_D)
    inside = (r < rows_of_w - row0)[:, None] & (d < D)[None, :]
    at = DW + row0.to(tl.int64) * D + r[:, None] * D + d[None, :]
    acc = tl.load(at, mask=inside, other=0.0)
    part = PART + (row0 % BLOCK_V + r)[:, None] * D + d[None, :]
    for p in range(first, end):
        acc += tl.load(part + tl.cast(p, tl.int64) * BLOCK_V * D, mask=inside, other=0.0)
    tl.store(at, acc, mask=inside)


@triton.jit(do_not_specialize=["N"])
def rows_kernel(DH, G, N_ROWS, TO, OUT, N, D, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, PDL: tl.constexpr):
    """Row i of dh times its gradient to row TO[i] of OUT, or to row i; without TO, rows past the count get 0."""
    overlap(PDL)
    r, d = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    at = r[:, None].to(tl.int64) * D + d[None, :]
    on, inside = r < live_rows(N_ROWS, N), (r < N)[:, None] & (d < D)[None, :]
    g = tl.load(G + r, mask=on, other=0.0).to(tl.float32)
    dh = tl.load(DH + at, mask=on[:, None] & inside, other=0.0).to(tl.float32)
    if TO is not None:
        inside = inside & on[:, None]
        at = tl.load(TO + r, mask=on, other=0)[:, None] * D + d[None, :]
    tl.store(OUT + at, (dh * g[:, None]).to(OUT.dtype.element_ty), mask=inside)


def _plan(h: Tensor, weight: Tensor, dtype: torch.dtype, need_dh: bool = True) -> Plan:
    gpu, shape = hardware.card(h.device), (len(h), h.shape[1], len(weight))
    plan = fused(card(gpu.capability), *shape, h.dtype, weight.dtype, dtype, processors=gpu.multiprocessors,
                 need_dh=need_dh)  # fmt: skip
    if plan is None:
        raise ValueError(f"the fused form does not serve a width of {h.shape[1]} on this card")
    return plan


def forward(h, weight, targets, n_rows, valid_vocab, dtype, need_dh) -> tuple[Tensor, Tensor, Tensor]:
    """Run two launches; the scratch is plan.forward_scratch bytes."""
    check_shapes(h, weight, valid_vocab, targets)
    plan = _plan(h, weight, dtype, need_dh)
    x, w = h.to(plan.dtype).contiguous(), weight[:valid_vocab].to(plan.dtype).contiguous()
    nll, lse, dh = _forward(plan, x, w, targets, n_rows, h.new_empty(len(h) if need_dh else 0, h.shape[1]))
    return nll, lse.to(lse_dtype(h)), dh


def gathered_forward(h, rows, weight, targets, n_rows, valid_vocab, dtype) -> tuple[Tensor, ...]:
    """Run four launches, and one more where the logits may be bounded."""
    check_gathered(h, rows, weight, valid_vocab, targets)
    x, longest_h = _taken(h, rows, n_rows, len(targets), dtype)
    w, longest_w = _taken(weight, None, None, valid_vocab, dtype)
    plan, dh = _plan(x, w, dtype), h.new_empty(x.shape)
    return *_forward(plan, x, w, targets, n_rows, dh, longest_h, longest_w), x, w


def _taken(a: Tensor, rows: Tensor | None, n_rows: Tensor | None, n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows of a in dtype, and the largest squared length of each program's rows."""
    D, out = a.shape[1], a.new_empty(n, a.shape[1], dtype=dtype)
    (programs, _), blocks = rows_launch(n, D)
    longest = a.new_empty(programs, dtype=torch.float32)
    rows = None if rows is None else rows.contiguous()
    start_kernel(take_kernel, (programs,), a.contiguous(), rows, n_rows, out, longest, n, D, **blocks, **SMALL)
    return out, longest


def _forward(plan: Plan, x, w, targets, n_rows, dh, *longest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    (N,), (V, D), tiles, need_dh = targets.shape, w.shape, plan.forward, len(dh) > 0
    is_bounded = plan.bounds_logits and len(longest) == 2
    longest = longest if is_bounded else (None, None)
    nll, lse = (x.new_empty(N, dtype=torch.float32) for _ in range(2))
    places = plan.parts * tiles.rows
    m, total = (x.new_empty(places, dtype=torch.float32) for _ in range(2))
    acc = x.new_empty(places, D, dtype=torch.float32) if need_dh else None
    shape = dict(BLOCK_N=tiles.rows, BLOCK_V=tiles.vocab, BLOCK_D=plan.block_d)
    for logits in ("small", "large") if is_bounded else ("any",):
        start_kernel(
            forward_kernel, (plan.programs,), x, w, n_rows, *longest, m, total, acc, N, V, D,
            *(0 if a is None else len(a) for a in longest), LOGITS=logits, NEED_DH=need_dh, HALF_SUMS=plan.half_sums,
            PEELED=tiles.peeled, **shape, **tiles.options,
        )  # fmt: skip
    start_kernel(
        combine_kernel, (triton.cdiv(N, plan.combine_rows),), x, w, targets.contiguous(), n_rows,
        m, total, acc, nll, lse, dh if need_dh else None, N, V, D, plan.programs, NEED_DH=need_dh, **shape,
        ROWS=plan.combine_rows, **SMALL,
    )  # fmt: skip
    return nll, lse, dh


def backward_weight(h, weight, targets, lse, grad, n_rows, valid_vocab, dtype) -> Tensor:
    check_shapes(h, weight, valid_vocab, targets, lse, grad)
    plan = _plan(h, weight, dtype)
    x, w = h.to(plan.dtype).contiguous(), weight[:valid_vocab].to(plan.dtype).contiguous()
    return _backward_weight(plan, x, w, targets, lse, grad, n_rows, len(weight)).to(weight.dtype)


def _backward_weight(plan: Plan, x, w, targets, lse, grad, n_rows, rows_of_w: int) -> Tensor:
    """Run three launches; the scratch is plan.weight_scratch bytes."""
    (N, D), V, tiles = x.shape, len(w), plan.weight
    padded = triton.cdiv(N, tiles.rows) * tiles.rows
    shift, gs = (x.new_empty(padded, dtype=torch.float32) for _ in range(2))
    code = x.new_empty(padded, dtype=torch.int32)
    g = grad.float().contiguous()
    top = live_only(g, n_rows).abs().amax() if plan.dtype == torch.float16 else None
    start_kernel(
        fold_kernel, (triton.cdiv(padded, FOLD_ROWS),), targets.contiguous(), lse.float().contiguous(), g, top, n_rows,
        shift, gs, code, N, padded, HEADROOM=plan.headroom, ROWS=FOLD_ROWS, **SMALL,
    )  # fmt: skip
    dw = x.new_empty(rows_of_w, D, dtype=torch.float32)
    part = x.new_empty(plan.weight_programs, tiles.vocab, D, dtype=torch.float32)
    shape = dict(BLOCK_N=tiles.rows, BLOCK_V=tiles.vocab, BLOCK_D=plan.block_d)
    start_kernel(
        weight_kernel, (plan.weight_programs,), x, w, shift, gs, code, top, n_rows, dw, part, N, V, rows_of_w, D,
        HEADROOM=plan.headroom, HALF_SUMS=plan.half_sums, **shape, **tiles.options,
    )  # fmt: skip
    start_kernel(
        gather_kernel, (triton.cdiv(rows_of_w, plan.gather_rows),), dw, part, n_rows, N, rows_of_w, D,
        plan.weight_programs, **shape, ROWS=plan.gather_rows, **SMALL,
    )  # fmt: skip
    return dw


def backward_rows(dh: Tensor, grad: Tensor, n_rows: Tensor | None) -> Tensor:
    if grad.shape != dh.shape[:1]:
        raise ValueError(f"grad has shape {tuple(grad.shape)}; it must be {tuple(dh.shape[:1])}")
    return _backward_rows(dh, grad, n_rows, None, torch.empty_like(dh, memory_format=torch.contiguous_format))


def _backward_rows(dh, grad, n_rows, to, out) -> Tensor:
    (N, D), dh = dh.shape, dh.contiguous()
    grid, blocks = rows_launch(N, D)
    start_kernel(rows_kernel, grid, dh, grad.contiguous(), n_rows, to, out, N, D, **blocks, **SMALL)
    return out


def gathered_backward(dh, x, w, targets, lse, grad, rows, n_rows, height, rows_of_w, of) -> tuple[Tensor, Tensor]:
    """Run four launches, and one that clears dh where not every row of h was taken."""
    plan = _plan(x, w, x.dtype)
    dw = _backward_weight(plan, x, w, targets, lse, grad, n_rows, rows_of_w).to(of)
    if rows is None:
        return _backward_rows(dh, grad, n_rows, None, torch.empty_like(dh)), dw
    return _backward_rows(dh, grad, n_rows, rows.contiguous(), dh.new_zeros(height, dh.shape[1])), dw
