"""What GPUs compute and move in a second by their data sheets, and the width where the head's two forms break even.

The fused form may reach a smaller share of the flop/s than cuBLAS does. The width is not measured yet.
"""

import torch

from tdlm_fast.kernels.triton import tiles

STORED_BYTES = 12  # 2 each: it writes z, reads it twice, writes the gradient in its place, reads that for dh and for dw
# Dense 16-bit flop/s with fp32 sums and byte/s, of the data sheets (sm_86: RTX 3070 Ti Laptop) and, for 90, reported
# of an H200; none is measured here.
RATES = {80: (312e12, 1.56e12), 86: (33e12, 448e9), 89: (165e12, 1.01e12), 90: (790e12, 4.3e12),
         100: (2250e12, 8e12), 120: (210e12, 1.79e12)}  # fmt: skip


def crossover(card: int, share: float) -> float:
    """The width from which the stored form is projected to be faster, if the fused one reaches `share` of its flop/s.

    4 * 2 D / (share * flop/s) = 3 * 2 D / (flop/s) + (STORED_BYTES + 8 D / rows) / (byte/s), solved for D; dw is read
    and written in fp32 for every chunk of tiles.stored_rows.
    """
    flops, bandwidth = RATES[card]
    return STORED_BYTES / ((8 / share - 6) * bandwidth / flops - 8 / tiles.stored_rows(50257, torch.bfloat16))
