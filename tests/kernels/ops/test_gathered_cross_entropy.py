"""The linear cross-entropy of some rows is that of the rows taken first."""

import pytest
import torch

from tdlm_fast.kernels import linear_cross_entropy, take_rows
from tdlm_fast.kernels.ops.gathered_cross_entropy import cross_entropy_of_rows, lce_gathered


def problem(seed=0, M=30, N=20, D=16, V=50, live=13):
    g = torch.Generator().manual_seed(seed)
    h, w = (torch.randn(n, D, generator=g).requires_grad_() for n in (M, V))
    rows, targets = torch.randperm(M, generator=g)[:N], torch.randint(V, (N,), generator=g)
    return h, rows, w, targets, torch.rand(N, generator=g), torch.tensor(live)


def taken_first(h, rows, w, targets, weights, n):
    return linear_cross_entropy(h if rows is None else take_rows(h, rows, n), w, targets, weights, n_rows=n)


@pytest.mark.parametrize("how", ["the function", "the op's reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("all_rows", [True, False])
def test_loss_and_gradients_are_those_of_the_rows_taken_first(how, dtype, counted, all_rows):
    h, rows, w, targets, weights, n = problem(M=20 if all_rows else 30)
    rows, n = None if all_rows else rows, n if counted else None
    if how == "the function":
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = cross_entropy_of_rows(h, rows, w, targets, weights, n)
            truth = taken_first(h, rows, w, targets, weights, n)
    else:
        loss = (lce_gathered(h, rows, w, targets, n, len(w), dtype)[0] * weights).sum()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            truth = taken_first(h, rows, w, targets, weights, n)
    close = dict(rtol=2e-2, atol=2e-2) if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(loss, truth, **close)
    for a, b in zip(torch.autograd.grad(loss, (h, w)), torch.autograd.grad(truth, (h, w)), strict=True):
        torch.testing.assert_close(a, b, **close)
    if not all_rows:  # rows that were not taken get no gradient
        untouched = torch.ones(len(h), dtype=torch.bool).index_fill(0, rows[: 13 if counted else 20], False)
        loss = cross_entropy_of_rows(h, rows, w, targets, weights, n)
        assert not torch.autograd.grad(loss, h)[0][untouched].any()


def test_copies_are_kept_in_the_dtype_of_the_products():
    h, rows, w, targets, _, n = problem()
    *_, x, copy = lce_gathered(h, rows, w, targets, n, len(w), torch.bfloat16)
    assert torch.equal(x[:13], h[rows[:13]].bfloat16()) and not x[13:].any() and torch.equal(copy, w.bfloat16())


def test_rows_that_do_not_fit_are_refused_and_second_derivatives_too():
    from tdlm_fast.kernels.ops.gathered_cross_entropy import check_gathered

    h, rows, w, targets, weights, n = problem()
    with pytest.raises(ValueError, match=r"rows are \(19,\) torch.int64"):
        check_gathered(h, rows[:19], w, 50, targets)
    with pytest.raises(ValueError, match="do not fit together"):
        check_gathered(h[:, :8], rows, w, 50, targets)
    loss = (lce_gathered(h, rows, w, targets, n, len(w), torch.float32)[0] * weights).sum()
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(loss, h, create_graph=True)


def test_opcheck():
    h, rows, w, targets, _, n = problem()
    torch.library.opcheck(lce_gathered, (h, rows, w, targets, n, 50, torch.bfloat16))
    h, _, w, targets, *_ = problem(M=20)
    torch.library.opcheck(lce_gathered, (h, None, w, targets, None, 50, torch.float32))
