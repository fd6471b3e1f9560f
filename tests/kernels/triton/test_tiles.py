"""The launch plan of the linear cross-entropy: arithmetic that needs neither Triton nor a GPU."""

import json
from pathlib import Path

import pytest
import torch

from bench.without_gpu import rates
from tdlm_fast.kernels.triton import tiles

TINY = dict(N=8192, D=64, V=50257)
BF16, FP32 = torch.bfloat16, torch.float32


# Compute capability and multiprocessors: A100, RTX 3070 Ti Laptop, RTX 4090, H100 PCIe, H100 and H200, B200, RTX 5090.
CARDS = [(80, 108), (86, 46), (89, 128), (90, 114), (90, 132), (100, 148), (120, 170)]
RESOURCES = json.loads((Path(__file__).parents[3] / "bench/results/resources.json").read_text())["cards"]


@pytest.mark.parametrize("card,processors", CARDS)
@pytest.mark.parametrize("h,w,dtype", [(BF16, BF16, BF16), (BF16, FP32, BF16), (FP32, FP32, BF16), (FP32, FP32, FP32)])
def test_scratch_at_tiny_is_below_24_mb(card, processors, h, w, dtype):
    plan = tiles.fused(card, **TINY, h_dtype=h, w_dtype=w, dtype=dtype, processors=processors)
    assert plan.forward_scratch < 24 << 20 and plan.weight_scratch < 24 << 20
    copies = sum(n * 64 * dtype.itemsize for n, of in ((8192, h), (50257, w)) if of != dtype)
    partials = plan.parts * plan.forward.rows * 4 * (64 + 2)  # of acc, m and l, as the kernel's file allocates them
    assert plan.forward_scratch == copies + partials
    assert plan.parts == plan.programs + -(-8192 // plan.forward.rows) - 1


@pytest.mark.parametrize("card,processors", CARDS)
def test_no_multiprocessor_waits_for_a_last_wave_however_many_rows_count(card, processors):
    """From two tiles of 64 rows on. Fewer make too few units to share out evenly on a card of over 100 processors."""
    plan = tiles.fused(card, **TINY, h_dtype=FP32, w_dtype=FP32, dtype=BF16, processors=processors)
    for live in range(1, 8193):
        for name, tile, programs in (
            ("forward", plan.forward, plan.programs),
            ("weight", plan.weight, plan.weight_programs),
        ):
            units = -(-live // tile.rows) * -(-50257 // tile.vocab)
            fit = RESOURCES[str(card)][f"{name}, bfloat16, D 64"]["programs"]
            share = tiles.efficiency(units, programs, fit * processors)
            assert share >= 0.85 or live <= 128 and share >= 0.5, (live, name, share)


def test_the_efficiency_of_waves():
    assert tiles.efficiency(100, 10, 10) == 1 and tiles.efficiency(101, 10, 10) == pytest.approx(101 / 110)
    assert tiles.efficiency(20, 20, 10) == 1  # two whole waves
    assert tiles.efficiency(11, 11, 10) == pytest.approx(11 / 20)  # a second wave for one program
    assert tiles.efficiency(5, 10, 10) == 0.5


def test_a_grid_holds_as_many_programs_as_fit_or_whole_waves_of_them():
    for number, name, fit in (
        (card, f"{kind}, {str(dtype)[6:]}, D {D}", tile.fit)
        for card in tiles.SHARED_KB for dtype in (BF16, torch.float16, FP32) for D in (16, 32, 64, 128, 256, 512)
        for kind, tile in zip(("forward", "weight"), tiles.tiles(card, dtype, D), strict=True)
    ):  # fmt: skip
        here = RESOURCES[str(number)][name]["programs"]
        assert fit <= here or fit % here == 0, (number, name, fit, here)


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
