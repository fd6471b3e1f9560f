"""Choose form, tiles and scratch of the linear cross-entropy on a GPU, by arithmetic that needs no GPU.

    fused    linear_cross_entropy.py: no logits in memory; a tile of rows and one of the vocabulary fit the chip
    stored   linear_cross_entropy_chunked.py: logits of some rows at a time, where those tiles do not fit, D above 512

Fused makes four products of 2 D flop a logit. Stored makes three where the tokens' weights are known in the forward
pass, and moves logits besides. bench/without_gpu/rates.py projects the width where both take as long.

TDLM_FP16_ACCUMULATE=1 lets GeForce cards, whose tensor cores add in fp16 at twice the rate, take the 16-bit products
of a model up to 64 wide in fp16: each tile of 64 is added up in fp16, the tiles in fp32.
"""

import math
import os
from typing import NamedTuple

import torch

SHARED_KB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # a program's shared memory, by compute capability
GEFORCE = (86, 89, 120)
FOLD_ROWS = 256
CHUNK_BYTES = 256 << 20  # of logits that the stored form holds at once


def _options(warps: int, stages: int) -> dict:
    """Return a kernel's options; Triton 3.9 warns that its default of fp fusion will change."""
    return {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}


class Tiles(NamedTuple):
    rows: int
    vocab: int
    warps: int
    stages: int
    fit: int  # programs that the grid has for each multiprocessor: as many as fit it, or whole waves of them
    peeled: bool = False  # the forward kernel's last tile has code of its own
    registers: int = 0  # at most, a thread; 0 leaves it to the compiler

    @property
    def options(self) -> dict:
        return _options(self.warps, self.stages) | ({"maxnreg": self.registers} if self.registers else {})


def efficiency(units: int, programs: int, resident: int) -> float:
    """Return the share of the card's time that is work, if programs take equal runs of units of equal time.

    resident: how many programs run on the card at once.
    """
    share = math.ceil(units / programs)
    waves = math.ceil(math.ceil(units / share) / resident)
    return units / (waves * resident * share)


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
# spills that leave room for as many programs on a multiprocessor as possible, in Triton 3.9. In 3.6 none spills up to
# sm_90, and a few spill 8 or 16 bytes on later cards (bench/results/resources-older.json). Larger tiles
# on Hopper and later halve the reads from L2; 128 registers let two programs of eight warps share a multiprocessor.
_NARROW = (16, 32, 64)
_WGMMA = dict.fromkeys(_NARROW, (Tiles(128, 64, 8, 3, 2, True, 128), Tiles(64, 128, 8, 3, 2, False, 128))) | {
    128: (Tiles(64, 64, 4, 3, 6), Tiles(64, 64, 8, 2, 6)),
    256: (Tiles(64, 64, 8, 2, 1), Tiles(64, 64, 8, 2, 1)),
    512: (Tiles(64, 32, 8, 2, 1), Tiles(32, 64, 8, 2, 1)),
}
# 168 registers let three programs of four warps share a multiprocessor.
_MMA = {
    16: (Tiles(64, 64, 4, 3, 4, True, 168), Tiles(32, 64, 4, 3, 5)),
    32: (Tiles(64, 64, 4, 3, 3, True, 168), Tiles(32, 64, 4, 3, 5)),
    64: (Tiles(64, 64, 4, 3, 3, True, 168), Tiles(32, 64, 4, 3, 3)),
    128: (Tiles(64, 64, 8, 2, 2), Tiles(64, 64, 8, 2, 2)),
    256: (Tiles(64, 32, 8, 2, 1), Tiles(32, 64, 8, 2, 1)),
    512: (Tiles(32, 32, 8, 2, 1), Tiles(32, 32, 8, 2, 1)),
}
_MMA_120 = {  # where the tiles above spill, or other numbers of programs fit
    16: (Tiles(64, 64, 4, 3, 3, True, 168), Tiles(32, 64, 4, 3, 5)),
    32: (Tiles(64, 64, 4, 3, 3, True, 168), Tiles(32, 64, 8, 3, 2)),
    64: (Tiles(64, 32, 4, 3, 3, True, 168), Tiles(32, 64, 4, 3, 2)),
}
_WGMMA_ODD = {  # of odd widths
    32: (Tiles(128, 64, 8, 3, 2), Tiles(32, 128, 8, 3, 2)),
    256: (Tiles(64, 64, 8, 2, 1), Tiles(32, 32, 8, 2, 2)),
    512: _MMA[512],
}
_WGMMA_100 = {  # where the tiles above spill on sm_100
    32: (Tiles(64, 64, 4, 3, 3, True), _WGMMA[32][1]),
    64: (Tiles(64, 64, 4, 3, 3, True), _WGMMA[64][1]),
    512: _MMA[512],
}
_WGMMA_ODD_100 = {
    16: (_WGMMA[16][0], Tiles(64, 64, 8, 3, 2)),
    256: (Tiles(64, 32, 8, 2, 1), Tiles(32, 32, 8, 2, 2)),
}
_FP32 = {
    16: (Tiles(64, 64, 4, 2, 4), Tiles(32, 64, 4, 2, 3)),
    32: (Tiles(64, 32, 4, 2, 4), Tiles(32, 64, 8, 2, 2)),
    64: (Tiles(64, 32, 4, 2, 3), Tiles(32, 64, 8, 2, 3)),
    128: (Tiles(32, 16, 4, 2, 3), Tiles(32, 64, 8, 2, 2)),
    256: (Tiles(32, 16, 8, 2, 2), Tiles(16, 32, 8, 2, 2)),
    512: (Tiles(16, 16, 8, 2, 2), Tiles(16, 16, 8, 2, 2)),
}
_FP32_90 = {  # here and below where the tiles above spill
    32: (Tiles(64, 32, 4, 2, 4), Tiles(32, 64, 4, 2, 3)),
    64: (Tiles(64, 32, 4, 2, 3), Tiles(32, 16, 4, 2, 4)),
    128: (Tiles(32, 16, 8, 2, 2), Tiles(32, 64, 8, 2, 2)),
}
_FP32_80 = {
    16: (Tiles(64, 32, 4, 2, 4), Tiles(32, 64, 4, 2, 3)),
    64: (Tiles(64, 32, 8, 2, 2), Tiles(32, 32, 4, 2, 4)),
    128: (Tiles(32, 16, 4, 1, 2), Tiles(32, 32, 4, 2, 2)),
}
_FP32_100 = _FP32_80 | {16: (Tiles(64, 64, 4, 2, 4), Tiles(32, 32, 4, 2, 3))}
_FP32_120 = _FP32_80 | {
    16: (Tiles(64, 32, 4, 2, 3), Tiles(32, 64, 4, 2, 3)),
    128: (Tiles(16, 32, 4, 2, 2), Tiles(32, 32, 4, 2, 2)),
}


def card(capability: tuple[int, int] | int) -> int | None:
    """Return the newest entry of SHARED_KB up to this compute capability; None before Ampere."""
    number = capability if isinstance(capability, int) else 10 * capability[0] + capability[1]
    return max((c for c in SHARED_KB if c <= number), default=None)


def tiles(card: int, dtype: torch.dtype, block_d: int, odd_width: bool = False) -> tuple[Tiles, Tiles] | None:
    """Return (forward, weight) tiles of the fused form; None where it does not fit. odd_width: D % 16 is not 0."""
    wgmma = _WGMMA | _WGMMA_ODD if odd_width else _WGMMA
    wgmma_100 = wgmma | _WGMMA_ODD_100 if odd_width else wgmma | _WGMMA_100
    halves = {90: wgmma, 100: wgmma_100, 120: _MMA | _MMA_120}.get(card, _MMA)
    singles = _FP32 | {80: _FP32_80, 90: _FP32_90, 100: _FP32_100, 120: _FP32_120}.get(card, {})
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
    card: int
    dtype: torch.dtype  # of the products
    half_sums: bool
    block_d: int  # D, padded
    forward: Tiles
    weight: Tiles
    programs: int  # of the forward kernel
    parts: int  # places for what they sum up: a program that ends within a tile shares the tile with the next
    weight_programs: int
    forward_scratch: int  # bytes
    weight_scratch: int

    @property
    def combine_rows(self) -> int:
        return max(1, 1024 // self.block_d)

    @property
    def gather_rows(self) -> int:
        return max(1, min(self.weight.vocab, 512 // self.block_d))

    @property
    def bounds_logits(self) -> bool:
        """Return whether the forward pass looks for small logits, whose loop issues fewer instructions.

        On other cards the products take longer than that, and fp16 has too few exponents.
        """
        return self.card in (90, 100) and self.block_d <= 64 and self.dtype == torch.bfloat16

    @property
    def headroom(self) -> int:
        return 0 if self.half_sums else 12


def half_sums_asked() -> bool:
    """Return whether the environment asks for sums in fp16."""
    return os.environ.get("TDLM_FP16_ACCUMULATE") == "1"


def fused(
    card: int, N: int, D: int, V: int, h_dtype: torch.dtype, w_dtype: torch.dtype, dtype: torch.dtype, *,
    processors: int, need_dh: bool = True, half: bool | None = None,
) -> Plan | None:  # fmt: skip
    """The launch of the fused form on a card with so many multiprocessors; None where the stored form runs."""
    block_d = max(16, 1 << (D - 1).bit_length())
    half = half_sums_asked() if half is None else half
    half = half and card in GEFORCE and block_d <= 64 and dtype != torch.float32
    dtype = torch.float16 if half else dtype
    found = tiles(card, dtype, block_d, D % 16 != 0)
    if found is None:
        return None
    forward, weight = found
    copies = sum(n * D * dtype.itemsize for n, of in ((N, h_dtype), (V, w_dtype)) if of != dtype)
    row_tiles, part = -(-N // forward.rows), forward.rows * (4 * D * need_dh + 8)
    # The grid fills the card once: each program has an equal share of the work, and waits for no other.
    programs, weight_programs, sums = forward.fit * processors, weight.fit * processors, 4 * weight.vocab * D
    padded = -(-N // weight.rows) * weight.rows
    parts = programs + row_tiles - 1
    return Plan(
        card, dtype, half, block_d, forward, weight, programs, parts, weight_programs,
        forward_scratch=copies + parts * part, weight_scratch=copies + 12 * padded + weight_programs * sums,
    )  # fmt: skip
