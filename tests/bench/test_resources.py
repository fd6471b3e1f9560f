"""The compiled kernels do not spill, their shared memory fits, and resources.json holds what the compiler gives."""

import importlib.util
import json
import os

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed (pip install triton)", allow_module_level=True)
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton's interpreter compiles nothing", allow_module_level=True)

import triton

from bench.without_gpu import resources
from tdlm_fast.kernels.triton import tiles

pytestmark = pytest.mark.slow

if not resources.RESULTS.exists():
    pytest.skip("bench/results/resources.json is missing (make resources)", allow_module_level=True)

FILE = json.loads(resources.RESULTS.read_text())
OLDER = json.loads(resources.RESULTS.with_name("resources-older.json").read_text())  # the Triton of PyTorch 2.11
REPRESENTATIVE = (
    "forward, bfloat16, D 64", "weight, bfloat16, D 64", "forward, float32, D 128", "weight, float16, D 128",
    "forward without dh, bfloat16, D 16", "weight, bfloat16, D 64, odd width", "combine of forward, float16, D 64",
    "forward, float16, fp16 sums, D 64", "fold", "softmax, bfloat16", "mask, counts, T 128", "compact, T 128",
    "attention's gradient, bfloat16, T 128, K 32, causal, every mask", "embedding's chunks, bfloat16, D 64",
    "attention's gradient, bfloat16, T 128, K 16, causal, every mask, turned",
    "norm, float32 to bfloat16, D 64", "norm's gradient, float32 to bfloat16, D 4096", "order of tokens", "clip",
    "squares of 15 gradients",
    "gate's gradient, bfloat16, D 192", "draw, int32, padded", "record",
    "logits, bfloat16", "towards w, added, bfloat16",
)  # fmt: skip


def test_every_card_is_in_the_file():
    assert set(FILE["cards"]) == {str(card) for card in tiles.SHARED_KB}


@pytest.mark.parametrize("card", [int(card) for card in FILE["cards"]])
def test_the_file_holds_every_kernel_that_can_be_launched_and_none_spills(card):
    result = FILE["cards"][str(card)]
    names = [name for name, *_ in resources.kernels(card)]
    assert len(set(names)) == len(names) and set(result) == set(names)
    assert not resources.faults(card, result)


@pytest.mark.parametrize("card", [int(card) for card in FILE["cards"]])
def test_an_older_triton_spills_nothing_on_cards_to_hopper_and_little_on_later_ones(card):
    assert OLDER["triton"] < FILE["triton"]
    result = OLDER["cards"][str(card)]
    assert set(result) == {name for name, *_ in resources.kernels(card)}
    wrong = resources.faults(card, result)
    assert len(wrong) == 0 if card <= 90 else len(wrong) <= 7 and max(r["stack"] for r in result.values()) <= 16, wrong


def compile_again(card: int, names: tuple[str, ...], fewest: int):
    result = resources.measure(card, only=names.__contains__)
    assert len(result) >= fewest and not resources.faults(card, result)
    if triton.__version__ == FILE["triton"]:
        assert result == {name: FILE["cards"][str(card)][name] for name in result}


@pytest.mark.parametrize("card", [card for card in (86, 90) if str(card) in FILE["cards"]])
def test_compiling_again_gives_the_same(card):
    """Compile the head's two passes for both cards, every other kernel for one of the two."""
    names = REPRESENTATIVE[:2] + REPRESENTATIVE[2:][card == 86 :: 2]
    compile_again(card, names, len(names))


@pytest.mark.long
@pytest.mark.parametrize("card", [card for card in (86, 90) if str(card) in FILE["cards"]])
def test_compiling_all_again_gives_the_same(card):
    compile_again(card, REPRESENTATIVE, len(REPRESENTATIVE) - 1)


def test_a_spill_and_too_much_shared_memory_are_found():
    bad = {"a": {"stack": 8, "local": 0, "shared": 10}, "b": {"stack": 0, "local": 0, "shared": 120_000}}
    assert [f.split(" takes")[0].split(" spills")[0] for f in resources.faults(86, bad)] == ["sm_86 a", "sm_86 b"]
    assert len(resources.faults(90, bad)) == 1


@pytest.mark.parametrize("file", [FILE, OLDER], ids=["now", "older"])
def test_enough_programs_of_the_head_share_a_multiprocessor(file):
    for name in ("forward, bfloat16, D 64", "weight, bfloat16, D 64", "forward, float16, fp16 sums, D 64"):
        assert file["cards"]["86"][name]["programs"] >= 3, name
        assert "fp16 sums" in name or file["cards"]["90"][name]["programs"] >= 2, name
