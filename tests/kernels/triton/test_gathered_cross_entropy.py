"""The head that gathers its rows itself, in Triton, against fp64 and against the rows taken first."""

import pytest
import torch

from tdlm_fast.kernels import dispatch, use_backend
from tdlm_fast.kernels.ops import gathered_cross_entropy as G
from tdlm_fast.kernels.triton import tiles
from tests.kernels.triton.machine import DEVICE, HALVES


def problem(N, D, V, live, all_rows):
    g = torch.Generator().manual_seed(N + D + V)
    M = N if all_rows else 2 * N
    h, w = (torch.randn(n, D, generator=g) * 0.5 for n in (M, V))
    rows = None if all_rows else torch.randperm(M, generator=g)[:N].to(DEVICE)
    targets, weights = torch.randint(V, (N,), generator=g), torch.randn(N, generator=g)
    return h.to(DEVICE), rows, w.to(DEVICE), targets.to(DEVICE), weights.to(DEVICE), torch.tensor(live, device=DEVICE)


def answers(h, rows, w, targets, weights, n, dtype=None):
    h, w = h.detach().requires_grad_(), w.detach().requires_grad_()
    arguments = h, rows, w, targets, n, len(w), dtype or h.dtype
    loss = (G.lce_gathered(*arguments)[0] * weights).sum()
    return [loss.detach(), *torch.autograd.grad(loss, (h, w))]


@pytest.mark.parametrize("N, D, V, live", [(200, 64, 300, 137), (70, 16, 130, 70), (40, 40, 129, 0), (99, 64, 65, 9)])
@pytest.mark.parametrize("all_rows", [False, True])
@pytest.mark.parametrize("dtype", HALVES)
def test_error_is_at_most_twice_the_references(N, D, V, live, all_rows, dtype):
    h, rows, w, targets, weights, n = problem(N, D, V, live, all_rows)
    assert dispatch.server(G.lce_gathered, h, rows, w, targets, n, V, dtype).backend == "triton"
    mine = answers(h, rows, w, targets, weights, n, dtype)
    with use_backend("reference"):
        theirs = answers(h, rows, w, targets, weights, n, dtype)
        truth = answers(h.double(), rows, w.double(), targets, weights.double(), n, torch.float64)
    for name, a, b, exact in zip(("loss", "dh", "dw"), mine, theirs, truth, strict=True):
        rounding = 3 * torch.finfo(dtype).eps * exact.abs().max() + 1e-6
        assert a.isfinite().all() and (a - exact).abs().max() <= 2 * (b - exact).abs().max() + rounding, name
    if not all_rows:
        untouched = torch.ones(len(h), dtype=torch.bool, device=DEVICE).index_fill(0, rows[:live], False)
        assert not mine[1][untouched].any()


def test_rows_past_the_count_may_hold_anything():
    h, rows, w, targets, weights, n = problem(100, 32, 90, 61, False)
    first = answers(h, rows, w, targets, weights, n, torch.float16)
    h[rows[61:]], weights[61:], targets[61:] = float("nan"), float("nan"), -7
    for a, b in zip(first[1:], answers(h, rows, w, targets, weights, n, torch.float16)[1:], strict=True):
        assert torch.equal(a, b)


def test_weights_that_need_no_cast_take_the_rows_first():
    h, rows, w, targets, _, n = problem(20, 16, 30, 20, False)
    assert dispatch.server(G.lce_gathered, h, rows, w, targets, n, 30, torch.float32) is None


def test_sums_in_fp16_take_the_rows_first(monkeypatch):
    h, rows, w, targets, _, n = problem(20, 16, 30, 20, False)
    monkeypatch.setenv("TDLM_FP16_ACCUMULATE", "1")
    assert dispatch.server(G.lce_gathered, h, rows, w, targets, n, 30, torch.float16) is None


@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_small_logits_need_no_maximum_and_large_ones_take_it(scale, monkeypatch):
    """On a card where logits are bounded, with a stand-in for bf16: the interpreter multiplies it wrongly."""
    h, rows, w, targets, weights, n = problem(150, 64, 300, 101, False)
    h *= scale
    longest = h[rows[:101]].norm(dim=1).max() * w.norm(dim=1).max()
    assert (longest < 40) == (scale < 1)
    plain = answers(h, rows, w, targets, weights, n, torch.float16)
    monkeypatch.setattr(tiles.Plan, "bounds_logits", True)
    bounded = answers(h, rows, w, targets, weights, n, torch.float16)
    for a, b in zip(plain, bounded, strict=True):
        assert torch.equal(a, b) == (scale > 1)  # large logits take the same loop
        torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-3 * float(a.abs().max()))


def test_logits_are_bounded_where_instructions_are_the_limit():
    def plan(card, D, dtype):
        return tiles.fused(card, 8192, D, 50257, *[dtype] * 3, processors=132)

    assert plan(90, 64, torch.bfloat16).bounds_logits and plan(100, 32, torch.bfloat16).bounds_logits
    for card, D, dtype in ((90, 64, torch.float16), (90, 128, torch.bfloat16), (86, 64, torch.bfloat16)):
        assert not plan(card, D, dtype).bounds_logits
