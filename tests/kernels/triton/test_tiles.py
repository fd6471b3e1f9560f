"""The launch plan of the linear cross-entropy: arithmetic that needs neither Triton nor a GPU."""

import pytest
import torch

from bench.without_gpu import rates
from tdlm_fast.kernels.triton import tiles

TINY = dict(N=8192, D=64, V=50257)
BF16, FP32 = torch.bfloat16, torch.float32


@pytest.mark.parametrize("card,processors", [(80, 108), (86, 46), (89, 128), (90, 132), (100, 148), (120, 170)])
@pytest.mark.parametrize("h,w,dtype", [(BF16, BF16, BF16), (BF16, FP32, BF16), (FP32, FP32, BF16), (FP32, FP32, FP32)])
def test_scratch_at_tiny_is_below_16_mb(card, processors, h, w, dtype):
    plan = tiles.fused(card, **TINY, h_dtype=h, w_dtype=w, dtype=dtype, processors=processors)
    assert plan.forward_scratch < 16 << 20 and plan.weight_scratch < 16 << 20
    copies = sum(n * 64 * dtype.itemsize for n, of in ((8192, h), (50257, w)) if of != dtype)
    partials = plan.programs * plan.forward.rows * 4 * (64 + 2)  # of acc, m and l, as lce_triton.forward allocates them
    assert plan.forward_scratch == copies + partials
    assert plan.programs >= 1.8 * processors  # the machine is full


def test_few_vocabulary_tiles_are_summed_in_parts_of_the_tokens():
    plan = tiles.fused(86, 8192, 64, 259, BF16, BF16, BF16, processors=46)
    assert plan.row_parts == 8 and plan.weight_scratch == 12 * 8192 + 4 * 8 * 259 * 64
    assert tiles.fused(86, **TINY, h_dtype=BF16, w_dtype=BF16, dtype=BF16, processors=46).row_parts == 1


def test_width_decides_the_form():
    def fused(card, D, dtype=BF16):
        return tiles.fused(card, 8192, D, 50257, dtype, dtype, dtype, processors=46) is not None

    for card in tiles.SHARED_KB:
        for dtype in (BF16, torch.float16, FP32):
            assert fused(card, 16, dtype) and fused(card, 80, dtype) and fused(card, 512, dtype)
            assert not fused(card, 513, dtype) and not fused(card, 768, dtype)


def test_the_crossover_is_where_both_forms_are_projected_to_take_as_long():
    for card, (flops, bandwidth) in rates.RATES.items():
        D = rates.crossover(card, 0.7)
        moved = rates.STORED_BYTES + 8 * D / tiles.stored_rows(50257, BF16)
        fused, stored = 8 * D / flops / 0.7, 6 * D / flops + moved / bandwidth
        assert fused == pytest.approx(stored)
        assert rates.crossover(card, 0.9) > rates.crossover(card, 0.6)


def test_capabilities_fall_to_the_card_before_them():
    assert [tiles.card(c) for c in ((8, 0), (8, 7), (9, 0), (10, 3), (12, 1))] == [80, 86, 90, 100, 120]
    assert tiles.card((7, 5)) is None


def test_fp16_accumulation_is_for_geforce_and_narrow_models(monkeypatch):
    def plan(card, D, dtype=BF16):
        return tiles.fused(card, 512, D, 1000, dtype, dtype, dtype, processors=46)

    assert not plan(86, 64).half_sums
    monkeypatch.setenv("TDLM_FP16_ACCUMULATE", "1")
    assert plan(86, 64).half_sums and plan(86, 64).dtype == torch.float16
    assert not plan(86, 128).half_sums and not plan(90, 64).half_sums and not plan(86, 64, FP32).half_sums


def test_the_sum_over_the_vocabulary_is_cut_until_two_programs_run_on_each_multiprocessor():
    plan = tiles.product(90, BF16, "towards_h")
    for rows, D, processors in ((2560, 768, 132), (2560, 4096, 132), (128, 768, 132), (2560, 768, 20)):
        parts = tiles.product_parts(plan, rows, D, processors)
        programs = -(-rows // plan.m) * -(-D // plan.n)
        assert 1 <= parts <= 8 and (parts == 8 or (parts + 1) * programs > 2 * processors)
        assert parts == 1 or parts * programs <= 2 * processors
    assert tiles.product_parts(plan, 2560, 768, 132) == 4 and tiles.product_parts(plan, 2560, 768, 20) == 1


def test_rows_of_logits_begin_where_vectors_can_be_read_and_a_chunk_is_no_larger_than_it_may_be():
    for V in (1, 255, 256, 50257, 151_936):
        assert V <= tiles.padded(V) < V + 256 and tiles.padded(V) % 256 == 0
        rows = tiles.stored_rows(V, BF16)
        assert rows % 128 == 0 and (rows == 128 or rows * tiles.padded(V) * 2 <= tiles.CHUNK_BYTES)
    widest = max(tiles.product(card, BF16, of)[:2] for card in tiles.SHARED_KB for of in tiles.PRODUCTS)
    assert max(widest) <= 256  # a tile that reaches past V ends within the padding
