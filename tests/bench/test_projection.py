"""The projected step charges every launch for its bytes and products, and the file holds what the code gives."""

import importlib.util
import json
import os

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed (pip install triton)", allow_module_level=True)
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton's interpreter compiles nothing", allow_module_level=True)

import triton

from bench.without_gpu import launches, projection
from tdlm_fast.kernels.triton import tiles

pytestmark = pytest.mark.slow

FILE = json.loads(projection.RESULTS.read_text())
COUNTED = json.loads(launches.RESULTS.read_text())
SAME_TORCH = FILE["torch"] == torch.__version__.partition("+")[0]


def test_the_head_fills_its_waves_as_the_file_says():
    for card, figures in FILE["cards"].items():
        for side, of in ((side, figures["head"]["bf16"][side]) for side in ("forward", "weight")):
            assert set(of["full_waves"]) == set(projection.LIVE), (card, side)
            assert all(0.9 < share <= 1 for share in of["full_waves"].values()), (card, side)


def test_every_op_has_its_row():
    assert projection.group("forward", "tdlm::lce_forward") == projection.group("backward", "tdlm::lce_sum") == "head"
    assert projection.group("optimizer", "mul") == "clip and AdamW"
    assert projection.group("backward", "mm") == "linear layers" != projection.group("forward", "sum")


@pytest.mark.parametrize("card", projection.CHIPS)
@pytest.mark.parametrize("objective", launches.OBJECTIVES)
def test_every_launch_of_the_step_is_in_the_file(card, objective):
    of = FILE["cards"][str(card)]
    rows = of["steps"][objective]["groups"]
    assert sum(r["launches"] for r in rows.values()) == COUNTED["totals"][objective]
    if SAME_TORCH:
        assert projection.step(card, objective, of["head"]["bf16"]) == of["steps"][objective]
    low, high = of["steps"][objective]["whole"]["ms"]
    assert low == pytest.approx(sum(r["ms"] for r in rows.values()), abs=1e-3)
    assert low < high and high >= COUNTED["totals"][objective] * FILE["floor_us"] / 1e3


def test_diffusion_is_charged_half_the_heads_rows():
    for of in FILE["cards"].values():
        heads = [of["steps"][o]["groups"]["head"] for o in launches.OBJECTIVES]
        moved = max(h["mb"] for h in heads) * 1e6 / of["bytes_per_s"] * 1e3
        assert heads[0]["ms"] - moved == pytest.approx((heads[1]["ms"] - moved) / 2, rel=0.02)


@pytest.mark.parametrize("card", projection.CHIPS)
def test_the_heads_mix_is_that_of_the_compiled_loops(card):
    """Tile by tile: the products of two matrix products, and one exp per logit (a few more for the running maximum)."""
    for title, result in FILE["cards"][str(card)]["head"].items():
        half = title != "bf16"
        if triton.__version__ == FILE["triton"]:
            assert projection.head(card, half) == result
        plan = tiles.fused(card, 8192, 64, 50257, *[torch.bfloat16] * 3,
                           processors=projection.CHIPS[card].multiprocessors, half=half)  # fmt: skip
        for side, tile in (("forward", plan.forward), ("weight", plan.weight)):
            mix, warps = result[side]["mix"], tile.warps
            made = sum(n * 2 * (64 * 64 * 16 / 4 if k.startswith("HGMMA") else 16 * 8 * 16)
                       for k, n in mix.items() if "MMA" in k)  # fmt: skip
            assert made * warps == 2 * 2 * tile.rows * tile.vocab * 64, (title, side)
            logits = tile.rows * tile.vocab / warps / 32
            assert logits <= mix["MUFU.EX2"] <= 1.15 * logits
        assert result["projected_ms"]["all overlapped"] <= result["projected_ms"]["products and exp in turn"]
