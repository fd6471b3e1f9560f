"""The head with tiles copied by TMA, against fp64 and the product's loop for small logits."""

import importlib.util

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed (pip install triton)", allow_module_level=True)

import triton

from bench.prototypes import pipelined_head
from tdlm_fast.kernels.triton import linear_cross_entropy, tiles
from tests.kernels.triton.machine import DEVICE, INTERPRETED, ON_GPU

if ON_GPU and torch.cuda.get_device_capability() < (9, 0):
    pytest.skip("tensor descriptors need compute capability 9.0", allow_module_level=True)

DTYPE = torch.float32 if INTERPRETED else torch.bfloat16  # the interpreter multiplies bf16 wrongly
N, D, V, LIVE = 150, 64, 333, 137  # neither rows nor vocabulary fill their tiles


@pytest.fixture(autouse=True)
def room_for_descriptors():
    """A kernel that makes a descriptor writes it to memory of the GPU."""
    triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device=DEVICE))


def inputs(device):
    torch.manual_seed(0)
    x, w = (torch.randn(n, D, device=device, dtype=DTYPE) for n in (N, V))
    return x / 2, w / 2, torch.randint(V, (N,), device=device)


def answers(device, specialize, n_rows=None):
    x, w, y = inputs(device)
    plan = tiles.fused(90, N, D, V, *[DTYPE] * 3, processors=4)
    return pipelined_head.forward(plan, x, w, y, n_rows, tiles=plan.forward, specialize=specialize)


@pytest.mark.parametrize("specialize", [False, True])
def test_losses_and_gradients_are_those_of_fp64(specialize, device):
    x, w, y = inputs(device)
    nll, _, dh = answers(device, specialize)
    plain = pipelined_head.head_ref(x, w, y)
    truth = pipelined_head.head_ref(x.double(), w.double(), y)
    for mine, theirs, true in zip((nll, dh), plain, truth, strict=True):
        rounding = torch.finfo(mine.dtype).eps * true.abs().max()
        assert (mine - true).abs().max() <= 2 * (theirs - true).abs().max() + rounding + 1e-5


@pytest.mark.skipif(INTERPRETED, reason="the product takes its loop for small logits in bf16, on Hopper's tiles")
@pytest.mark.parametrize("specialize", [False, True])
@pytest.mark.parametrize("live", [LIVE, 0, None])
def test_the_bits_are_those_of_the_product(live, specialize, device):
    x, w, y = inputs(device)
    n_rows = None if live is None else torch.tensor([live], device=device)
    nll, lse, dh = answers(device, specialize, n_rows)
    rows = torch.arange(N, device=device)
    theirs = linear_cross_entropy.gathered_forward(x, rows, w, y, n_rows, V, DTYPE)
    assert theirs[0].count_nonzero() == (N if live is None else live)
    for mine, other in zip((nll, lse, dh), theirs, strict=False):
        assert torch.equal(mine, other)
