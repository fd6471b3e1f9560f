"""The head's forward loop with its tiles of W copied by the GPU's copy engine (TMA), and warps of their own for it.

    L = sum_v 2^(c z),  A = sum_v 2^(c z) w_v,  z = h w_v,  c = log2 e        over a part of V, for small logits

This is forward_kernel of kernels/triton/linear_cross_entropy.py with LOGITS="small" and a gradient of h: the same
units, the same places for the sums, and combine_kernel ends both. Only the loop differs. There every thread computes
addresses and copies its share of a tile of W. Here a tensor descriptor holds the shape of W, one thread starts the copy
of a whole tile, and rows past the end of W arrive as 0. With SPECIALIZE Triton is asked to give the copies to a group
of warps and the products and exps to others (`tl.range(…, warp_specialize=True)`).

It needs compute capability 9.0. Triton 3.6, 3.8 and 3.9 compile both forms. A kernel that makes a descriptor needs
triton.set_allocator.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from tdlm_fast.kernels.triton.launch import overlap, start_kernel
from tdlm_fast.kernels.triton.linear_cross_entropy import combine_kernel, live_rows
from tdlm_fast.kernels.triton.tiles import SMALL, Plan, Tiles

LOG2E = tl.constexpr(1.4426950408889634)


def head_ref(x: Tensor, w: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return (nll (N,), dh (N, D)): the losses of rows x (N, D) with weight w (V, D), and x's gradient of their sum."""
    x = x.detach().clone().requires_grad_()
    nll = torch.nn.functional.cross_entropy((x @ w.T).to(torch.promote_types(x.dtype, torch.float32)), targets,
                                            reduction="none")  # fmt: skip
    return nll.detach(), torch.autograd.grad(nll.sum(), x)[0]


@triton.jit
def _attend(x, total, acc, W, j, V, ENDS: tl.constexpr, BLOCK_V: tl.constexpr):
    """Tile j of the vocabulary, without a running maximum. W: its descriptor. ENDS: V may end in this tile."""
    w = W.load([j * BLOCK_V, 0])
    p = tl.exp2(tl.dot(x, tl.trans(w), input_precision="ieee") * LOG2E)
    if ENDS:
        p = tl.where((tl.arange(0, BLOCK_V) < V - j * BLOCK_V)[None, :], p, 0.0)
    return total + tl.sum(p, 1), tl.dot(p.to(w.dtype), w, acc, input_precision="ieee")


@triton.jit(do_not_specialize=["N", "V"])
def forward_kernel(H, W, N_ROWS, M, L, ACC, N, V, D, SPECIALIZE: tl.constexpr, BLOCK_N: tl.constexpr,
                   BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """The part of program p in row tile t goes to place p + t of M, L and ACC. The maximum is always 0."""
    overlap(PDL)
    live, v_tiles, p = live_rows(N_ROWS, N), tl.cdiv(V, BLOCK_V), tl.program_id(0)
    units = tl.cdiv(live, BLOCK_N) * v_tiles
    share = tl.cdiv(units, tl.num_programs(0))
    begin, end = p * share, tl.minimum((p + 1) * share, units)
    r, d = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    # Made here and not by the host: Triton 3.9 halves the tile of only such a descriptor for two groups of warps.
    rows = tl.make_tensor_descriptor(H, [live, D], [D, 1], [BLOCK_N, BLOCK_D])
    for tile in range(begin // v_tiles, tl.cdiv(end, v_tiles)):
        x = rows.load([tile * BLOCK_N, 0])
        total = tl.zeros([BLOCK_N], tl.float32)
        acc = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        first, last = tl.maximum(begin - tile * v_tiles, 0), tl.minimum(end - tile * v_tiles, v_tiles)
        if SPECIALIZE:  # one loop: Triton 3.9 fails at a second one, and does nothing beside an `if` with results
            for j in tl.range(first, last, warp_specialize=True):
                total, acc = _attend(x, total, acc, W, j, V, True, BLOCK_V)
        else:
            whole = tl.minimum(last, V // BLOCK_V)
            for j in range(first, whole):
                total, acc = _attend(x, total, acc, W, j, V, False, BLOCK_V)
            for j in range(whole, last):  # once or never
                total, acc = _attend(x, total, acc, W, j, V, True, BLOCK_V)
        at = (p + tile) * BLOCK_N + r
        tl.store(M + at, tl.zeros([BLOCK_N], tl.float32))
        tl.store(L + at, total)
        tl.store(ACC + at[:, None].to(tl.int64) * D + d[None, :], acc, mask=(d < D)[None, :])


def forward(
    plan: Plan, x: Tensor, w: Tensor, targets: Tensor, n_rows: Tensor | None, *, tiles: Tiles, specialize: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (nll, lse, dh) of rows x (N, D) with weight w (V, D), both in the dtype of the plan, in two launches.

    The logits must be small: max |x| max |w| < 40, as for the product's loop without a maximum. tiles replaces the
    tiles of the plan.
    """
    (N, D), V = x.shape, len(w)
    places = (plan.programs + triton.cdiv(N, tiles.rows) - 1) * tiles.rows
    m, total, nll, lse = (x.new_empty(n, dtype=torch.float32) for n in (places, places, N, N))
    acc, dh = x.new_empty(places, D, dtype=torch.float32), torch.empty_like(x)
    shape = dict(BLOCK_N=tiles.rows, BLOCK_V=tiles.vocab, BLOCK_D=plan.block_d)
    start_kernel(
        forward_kernel, (plan.programs,), x, TensorDescriptor(w, [V, D], [D, 1], [tiles.vocab, plan.block_d]), n_rows,
        m, total, acc, N, V, D, SPECIALIZE=specialize, **shape, **tiles.options,
    )  # fmt: skip
    start_kernel(
        combine_kernel, (triton.cdiv(N, plan.combine_rows),), x, w, targets, n_rows, m, total, acc, nll, lse, dh, N, V,
        D, plan.programs, NEED_DH=True, **shape, ROWS=plan.combine_rows, **SMALL,
    )  # fmt: skip
    return nll, lse, dh
