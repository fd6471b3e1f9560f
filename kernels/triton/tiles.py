"""Choose form, tiles and scratch of the linear cross-entropy on a GPU, by arithmetic that needs no GPU.

    fused    linear_cross_entropy.py: no logits in memory; a tile of rows and one of the vocabulary fit the chip
    stored   linear_cross_entropy_chunked.py: logits of some rows at a time, where those tiles do not fit, D above 512

Fused makes four products of 2 D flop a logit. Stored makes three where the tokens' weights are known in the forward
pass, and moves logits besides. bench/without_gpu/rates.py projects the width where both take as long.

TDLM_FP16_ACCUMULATE=1 lets GeForce cards, whose tensor cores add in fp16 at twice the rate, take the 16-bit products
of a model up to 64 wide in fp16: each tile of 64 is added up in fp16, the tiles in fp32.
"""

import os
from typing import NamedTuple

import torch

SHARED_KB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # a program's shared memory, by compute capability
GEFORCE = (86, 89, 120)
SCRATCH_BYTES = (16 << 20) - 1  # a call at tiny holds no more beside its inputs and outputs
MAX_SPLITS, FOLD_ROWS = 16, 256
CHUNK_BYTES = 256 << 20  # of logits that the stored form holds at once


def _options(warps: int, stages: int) -> dict:
    """Return a kernel's options; Triton 3.9 warns that its default of fp fusion will change."""
    return {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}


class Tiles(NamedTuple):
    rows: int
    vocab: int
    warps: int
    stages: int
    peeled: bool = False  # the forward kernel's last tile has code of its own
    registers: int = 0  # at most, a thread; 0 leaves it to the compiler

    @property
    def options(self) -> dict:
        return _options(self.warps, self.stages) | ({"maxnreg": self.registers} if self.registers else {})


class Product(NamedTuple):
    """Tiles of a product of the stored form, (m, k) times (k, n)."""

    m: int
    n: int
    k: int
    warps: int
    stages: int

    @property
    def options(self) -> dict:
        return _options(self.warps, self.stages)


MAX_FUSED_WIDTH = 512
MAX_T = 1 << 12  # of corruption by counts and next_token: a program holds its row, and a longer one spills
MAX_D = 1 << 12  # of rms_norm: a program holds whole rows
SMALL = _options(4, 1)  # of the kernels that only move data


def rows_launch(N: int, D: int) -> tuple[tuple[int, int], dict]:
    """Return (grid, block sizes) of a kernel whose programs take tiles of 1024 entries of N rows of D."""
    block = max(16, min(1024, 1 << (D - 1).bit_length()))
    rows = 1024 // block
    return (-(-N // rows), -(-D // block)), {"ROWS": rows, "BLOCK_D": block}


# (forward, weight) per padded width, found by compiling (bench/without_gpu/resources.py): the largest tiles without
# spills that leave room for as many programs on a multiprocessor as possible, in Triton 3.6 and 3.9 alike. Larger tiles
# on Hopper and later halve the reads from L2; 128 registers let two programs of eight warps share a multiprocessor.
_NARROW = (16, 32, 64)
_WGMMA = dict.fromkeys(_NARROW, (Tiles(128, 64, 8, 3, True, 128), Tiles(64, 128, 8, 3, False, 128))) | {
    128: (Tiles(64, 64, 4, 3), Tiles(64, 64, 8, 2)),
    256: (Tiles(64, 64, 8, 2), Tiles(64, 64, 8, 2)),
    512: (Tiles(64, 32, 8, 2), Tiles(32, 64, 8, 2)),
}
# 168 registers let three programs of four warps share a multiprocessor.
_MMA = dict.fromkeys(_NARROW, (Tiles(64, 64, 4, 3, True, 168), Tiles(32, 64, 4, 3))) | {
    128: (Tiles(64, 64, 8, 2), Tiles(64, 64, 8, 2)),
    256: (Tiles(64, 32, 8, 2), Tiles(32, 64, 8, 2)),
    512: (Tiles(32, 32, 8, 2), Tiles(32, 32, 8, 2)),
}
_MMA_120 = {32: (Tiles(64, 64, 4, 3, True, 168), Tiles(32, 64, 8, 3))}  # where the tile above spills
_WGMMA_ODD = {  # of odd widths
    32: (Tiles(128, 64, 8, 3), Tiles(32, 128, 8, 3)),
    256: (Tiles(64, 64, 8, 2), Tiles(32, 32, 8, 2)),
    512: _MMA[512],
}
_FP32 = {
    16: (Tiles(64, 64, 4, 2), Tiles(32, 64, 4, 2)),
    32: (Tiles(64, 32, 4, 2), Tiles(32, 64, 8, 2)),
    64: (Tiles(64, 32, 4, 2), Tiles(32, 64, 8, 2)),
    128: (Tiles(32, 16, 4, 2), Tiles(32, 64, 8, 2)),
    256: (Tiles(32, 16, 8, 2), Tiles(16, 32, 8, 2)),
    512: (Tiles(16, 16, 8, 2), Tiles(16, 16, 8, 2)),
}
_FP32_90 = {64: (Tiles(64, 32, 4, 2), Tiles(32, 32, 4, 2))}  # here and below where the tiles above spill
_FP32_ELSEWHERE = {
    64: (Tiles(64, 32, 8, 2), Tiles(32, 32, 4, 2)),
    128: (Tiles(32, 16, 4, 2), Tiles(32, 32, 4, 2)),
}


def card(capability: tuple[int, int] | int) -> int | None:
    """Return the newest entry of SHARED_KB up to this compute capability; None before Ampere."""
    number = capability if isinstance(capability, int) else 10 * capability[0] + capability[1]
    return max((c for c in SHARED_KB if c <= number), default=None)


def tiles(card: int, dtype: torch.dtype, block_d: int, odd_width: bool = False) -> tuple[Tiles, Tiles] | None:
    """Return (forward, weight) tiles of the fused form; None where it does not fit. odd_width: D % 16 is not 0."""
    wgmma = _WGMMA | _WGMMA_ODD if odd_width else _WGMMA
    halves = {90: wgmma, 100: wgmma, 120: _MMA | _MMA_120}.get(card, _MMA)
    singles = _FP32 | {86: {}, 89: {}, 90: _FP32_90}.get(card, _FP32_ELSEWHERE)
    found = (singles if dtype == torch.float32 else halves).get(block_d)
    if found is None or not odd_width:
        return found
    forward, weight = (t._replace(peeled=False, registers=0) for t in found)  # addresses take more registers
    return forward, weight


PRODUCTS = ("logits", "towards_h", "towards_w")  # of matmul.py; the last one adds to what is there
_WIDE, _SQUARE = Product(128, 256, 64, 8, 3), Product(128, 128, 64, 8, 3)


def product(card: int, dtype: torch.dtype, of: str) -> Product:
    """Tiles of one of PRODUCTS, found as those above."""
    if dtype == torch.float32:
        rows = 32 if card == 80 else 64
        return Product(rows, 32, 32, 4, 2) if of == "towards_w" else Product(64, 64, 32, 4, 2)
    if card in (90, 100):
        return _WIDE if card == 90 and of != "towards_w" else _SQUARE
    return Product(128, 128, 32, 8 if of == "towards_w" else 4, 4)


def product_parts(plan: Product, rows: int, D: int, processors: int) -> int:
    """Into how many parts of the vocabulary towards_h is cut, so that two programs run on each multiprocessor."""
    return max(1, min(8, 2 * processors // (-(-rows // plan.m) * -(-D // plan.n))))


def padded(V: int) -> int:
    """Logits from one row of the stored form to the next: no tile of it reaches past them."""
    return -(-V // 256) * 256


def stored_rows(V: int, dtype: torch.dtype) -> int:
    """Rows whose logits the stored form holds at once."""
    return max(128, CHUNK_BYTES // (padded(V) * dtype.itemsize) // 128 * 128)


class Plan(NamedTuple):
    dtype: torch.dtype  # of the products
    half_sums: bool
    block_d: int  # D, padded
    forward: Tiles
    weight: Tiles
    programs: int  # of the forward kernel
    row_parts: int  # sums of dw that are added up afterwards
    forward_scratch: int  # bytes
    weight_scratch: int

    @property
    def combine_rows(self) -> int:
        return max(1, 1024 // self.block_d)

    @property
    def headroom(self) -> int:
        return 0 if self.half_sums else 12


def fused(
    card: int, N: int, D: int, V: int, h_dtype: torch.dtype, w_dtype: torch.dtype, dtype: torch.dtype, *,
    processors: int, need_dh: bool = True, half: bool | None = None,
) -> Plan | None:  # fmt: skip
    """The launch of the fused form on a card with so many multiprocessors; None where the stored form runs."""
    block_d = max(16, 1 << (D - 1).bit_length())
    half = os.environ.get("TDLM_FP16_ACCUMULATE") == "1" if half is None else half
    half = half and card in GEFORCE and block_d <= 64 and dtype != torch.float32
    dtype = torch.float16 if half else dtype
    found = tiles(card, dtype, block_d, D % 16 != 0)
    if found is None:
        return None
    forward, weight = found
    copies = sum(n * D * dtype.itemsize for n, of in ((N, h_dtype), (V, w_dtype)) if of != dtype)
    row_tiles, part = -(-N // forward.rows), forward.rows * (4 * D * need_dh + 8)
    # Four programs a multiprocessor, twice over so that the last ones to end wait little, and within the scratch.
    programs = max(row_tiles, min((SCRATCH_BYTES - copies) // part, 8 * processors), 1)
    v_tiles = -(-V // weight.vocab)
    row_parts = max(1, min(8, 2 * processors // v_tiles, -(-N // weight.rows)))
    padded = -(-N // weight.rows) * weight.rows
    partial = 4 * row_parts * V * D if row_parts > 1 else 0
    return Plan(
        dtype, half, block_d, forward, weight, programs, row_parts,
        forward_scratch=copies + programs * part, weight_scratch=copies + 12 * padded + partial,
    )  # fmt: skip
