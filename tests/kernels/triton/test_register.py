"""When the Triton kernels serve an op. Nothing runs here, so these tests need neither a GPU nor the interpreter."""

import subprocess
import sys

import pytest
import torch

from tdlm_fast.kernels import hardware
from tdlm_fast.kernels.triton import register, tiles


def test_triton_is_not_imported_before_it_runs():
    code = "import sys, tdlm_fast.kernels; raise SystemExit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.fixture
def ampere():
    with hardware.pretend((8, 6), 46):
        yield


HALF, WIDE = torch.zeros(4, 32, dtype=torch.float16), torch.zeros(4, 32, dtype=torch.float64)


def test_a_card_before_ampere_is_not_served():
    with hardware.pretend((7, 5), 40):
        assert register.machine(HALF) == "Triton kernels need compute capability 8.0"
    with hardware.pretend((8, 0), 108):
        assert register.machine(HALF) == ""


def test_without_triton_the_reason_is_the_command_and_is_printed_once(monkeypatch):
    monkeypatch.setattr(hardware, "has_triton", lambda: False)
    register.warn.cache_clear()
    with pytest.warns(UserWarning, match="so slower ones run. Triton is not installed: pip install triton") as printed:
        assert register.machine(HALF) == register.machine(HALF) == register.missing() != ""
    assert len(printed) == 1


@pytest.mark.parametrize("serves, args, why", [
    (register.typed, (HALF,), ""), (register.typed, (WIDE,), "it takes fp32, bf16 and fp16"),
    (register.typed, (HALF, None, WIDE), "it takes fp32, bf16 and fp16"), (register.typed, (HALF, None), ""),
    (register.filled, (HALF[:0],), "there is nothing to compute"), (register.filled, (WIDE,), ""),
    (register.gates, (HALF,), ""), (register.gates, (HALF[:, :31],), "it takes an even width"),
    (register.normalizes, (HALF, HALF[0]), ""),
    (register.normalizes, (HALF.new_zeros(1, tiles.MAX_D + 1), HALF[0]), f"it takes rows up to {tiles.MAX_D} wide"),
    (register.puts_rows, (WIDE,), ""), (register.puts_rows, (WIDE[0],), "it takes the rows of a matrix"),
    (register.sorts, (torch.zeros(9), 5), ""),
    (register.sorts, (torch.zeros(2**13 + 1), 5), "there are too many keys to compare them all"),
])  # fmt: skip
def test_what_is_not_served_has_a_reason(serves, args, why, ampere):
    assert serves(*args) == why


@pytest.mark.parametrize("width, form", [(tiles.MAX_FUSED_WIDTH, register.fused), (tiles.MAX_FUSED_WIDTH + 1, None)])
def test_the_head_has_one_form_for_each_width(width, form, ampere):
    h = torch.zeros(4, width)
    reasons = {of: of(h, h, torch.float32) for of in (register.fused, register.chunked)}
    assert [of for of, why in reasons.items() if not why] == [form or register.chunked]
    assert all(of(h, h.double(), torch.float32) for of in reasons)


@pytest.mark.parametrize("sampling, T, why", [
    ("counts", tiles.MAX_T, ""), ("stratified", tiles.MAX_T + 1, ""),
    ("counts", tiles.MAX_T + 1, f"sampling=counts takes rows of up to {tiles.MAX_T} tokens"),
    ("exact", tiles.MAX_T, ""), ("exact", tiles.MAX_T + 1, f"sampling=exact takes rows of up to {tiles.MAX_T} tokens"),
])  # fmt: skip
def test_long_rows_are_corrupted_by_the_kernel_unless_their_tokens_are_counted(sampling, T, why, ampere):
    assert register.corrupts(torch.zeros(1, T), None, 0, 0, None, None, 9, "linear", sampling) == why


def test_every_kernel_is_a_function_of_the_module_that_is_named():
    pytest.importorskip("triton")
    code = (
        "import importlib\n"
        "from tdlm_fast.kernels.triton import register\n"
        "for _, module, name, _ in register.KERNELS:\n"
        "    assert callable(getattr(importlib.import_module(f'tdlm_fast.kernels.triton.{module}'), name)), name\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
