"""The blocks of a sequence in one kernel, against tdlm_fast.model.Block and fp64."""

import copy
import importlib.util

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed (pip install triton)", allow_module_level=True)

from bench.prototypes import sequence
from tdlm_fast.config import Model as Shape
from tdlm_fast.model import Block, autocast
from tests.kernels.triton.machine import HALVES, INTERPRETED

DTYPES = ((torch.float32, torch.float32), *((torch.float32, d) for d in HALVES if d == torch.bfloat16))  # of x, weights


def setting(B, T, layers, device, padded):
    torch.manual_seed(T + layers)
    shape = Shape(layers=layers, width=64, heads=4, seq_len=T, inner=192, dropout=0.0)
    blocks = [Block(shape).to(device).requires_grad_(False) for _ in range(layers)]
    for p in (p for b in blocks for p in b.parameters()):
        p.copy_(torch.randn_like(p) * 0.1 + (p.dim() == 1))
    valid = torch.arange(T, device=device) < torch.tensor([[T - 3], [1]], device=device)[:B] if padded else None
    return torch.randn(B, T, 64, device=device), blocks, valid


@pytest.mark.parametrize("weights", [d for _, d in DTYPES], ids=str)
@pytest.mark.parametrize("T, layers, causal, padded", [
    (16, 1, False, False), (24, 2, False, True), (24, 2, True, True), (37, 1, True, False),
])  # fmt: skip
def test_the_blocks_are_those_of_the_model(T, layers, causal, padded, weights, device):
    x, blocks, valid = setting(2, T, layers, device, padded)
    mine = sequence.body(x, sequence.stack(blocks, weights), 4, causal, valid)
    with autocast(x.device, "bf16" if weights == torch.bfloat16 else "fp32"):
        plain = sequence.body_ref(x, blocks, causal, valid)
    truth = sequence.body_ref(x.double(), [copy.deepcopy(b).double() for b in blocks], causal, valid)
    rounding = 4 * torch.finfo(mine.dtype).eps * truth.abs().max()  # of exp2, whose argument is scaled beforehand
    assert mine.isfinite().all() and mine.dtype == x.dtype
    assert (mine - truth).abs().max() <= 2 * (plain - truth).abs().max() + rounding + 1e-6


@pytest.mark.skipif(INTERPRETED, reason="it takes minutes in the interpreter, which multiplies bf16 wrongly")
def test_the_tiles_of_128_tokens(device):
    x, blocks, _ = setting(1, 128, 1, device, False)
    mine = sequence.body(x, sequence.stack(blocks, torch.bfloat16), 4, False)
    with autocast(x.device, "bf16"):
        plain = sequence.body_ref(x, blocks, False)
    truth = sequence.body_ref(x.double(), [copy.deepcopy(b).double() for b in blocks], False)
    assert (mine - truth).abs().max() <= 2 * (plain - truth).abs().max() + 1e-6


def test_no_token_sees_a_later_one(device):
    x, blocks, _ = setting(1, 20, 2, device, False)
    weights, other = sequence.stack(blocks, torch.float32), x.clone()
    other[:, 11] += 1
    for causal in (True, False):
        before, after = (sequence.body(a, weights, 4, causal)[:, :11] for a in (x, other))
        assert torch.equal(before, after) == causal


def test_a_shape_without_tiles_is_refused(device):
    x, blocks, _ = setting(1, 16, 1, device, False)
    weights = sequence.stack(blocks, torch.float32)
    for bad, heads in ((x, 8), (x.new_zeros(1, 129, 64), 4)):
        with pytest.raises(ValueError, match="no tiles"):
            sequence.body(bad, weights, heads, False)
