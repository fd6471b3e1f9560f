"""The linear cross-entropy against plain PyTorch in fp64, and as a replacement of F.cross_entropy."""

import pytest
import torch
import torch.nn.functional as F

from tdlm_fast.kernels import linear_cross_entropy
from tdlm_fast.kernels.ops import linear_cross_entropy as head
from tdlm_fast.kernels.ops.linear_cross_entropy import lce_forward, lce_sum


def problem(N, D, V, dtype=torch.float64):
    g = torch.Generator().manual_seed(N + D + V)
    h = torch.randn(N, D, generator=g).to(dtype).requires_grad_()
    w = torch.randn(V, D, generator=g).mul(0.3).to(dtype).requires_grad_()
    return h, w, torch.randint(0, V - 3, (N,), generator=g), torch.rand(N, generator=g)


@pytest.mark.parametrize("shape", [(1, 16, 11), (37, 24, 101), (130, 64, 1003)])
@pytest.mark.parametrize("chunk_bytes", [1 << 12, 1 << 28])
def test_linear_cross_entropy_is_the_cross_entropy_of_the_logits(shape, chunk_bytes, monkeypatch):
    monkeypatch.setattr(head, "CHUNK_BYTES", chunk_bytes)
    h, w, y, weights = problem(*shape)
    V, n = shape[2] - 3, max(1, shape[0] - 5)
    live = torch.arange(shape[0]) < n
    truth = F.cross_entropy((h @ w.T)[:, :V], y, reduction="none") * weights * live
    ours = linear_cross_entropy(h, w, y, weights, valid_vocab=V, n_rows=torch.tensor(n), reduction="none")
    torch.testing.assert_close(ours, truth)
    upstream = torch.rand(shape[0], dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad(ours, (h, w), upstream), torch.autograd.grad(truth, (h, w), upstream), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_bf16_is_as_accurate_as_torchs_own():
    h, w, y, _ = problem(64, 32, 307)
    truth = torch.autograd.grad(F.cross_entropy(h @ w.T, y, reduction="sum"), (h, w))

    def error(loss_of):
        a, b = h.detach().float().requires_grad_(), w.detach().float().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(a, b)
        return [(g - t).abs().max() for g, t in zip(torch.autograd.grad(loss, (a, b)), truth, strict=True)]

    ours = error(lambda a, b: linear_cross_entropy(a, b, y))
    torchs = error(lambda a, b: F.cross_entropy((a @ b.T).float(), y, reduction="sum"))
    for mine, theirs in zip(ours, torchs, strict=True):
        assert mine <= 2 * theirs + 1e-3


def test_ops_pass_opcheck():
    h, w, y, _ = problem(7, 16, 33, torch.float32)
    torch.library.opcheck(lce_forward, (h, w, y, torch.tensor(5), 30, torch.float32, True))
    torch.library.opcheck(lce_sum, (h, w, y, torch.rand(7), torch.tensor(5), 30, torch.float32))


def test_errors_name_what_is_wrong():
    h, w, y, _ = problem(7, 16, 33)
    with pytest.raises(ValueError, match="must lie in 0..32"):
        linear_cross_entropy(h, w, y + 40)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_a_compiled_caller_is_one_graph(reduction):
    """torch.compile(fullgraph=True) of a loss through the op: the gradients of the eager call."""
    g = torch.Generator().manual_seed(0)
    h, w = (torch.randn(n, 16, generator=g, requires_grad=True) for n in (50, 300))
    y, token_weights, n_rows = torch.randint(300, (50,), generator=g), torch.rand(50, generator=g), torch.tensor(40)

    def loss(h):
        return linear_cross_entropy(2 * h, w, y, token_weights, n_rows=n_rows, reduction=reduction).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    (a, *da), (b, *db) = ((v, *torch.autograd.grad(v, (h, w))) for v in (compiled(h), loss(h)))
    for result, expected in zip((a, *da), (b, *db), strict=True):
        torch.testing.assert_close(result, expected)


# ---- as F.cross_entropy: any shape, the mean, ignored targets --------------------------------------------------------

CHOICES = {  # share of tokens that are ignored, and whether tokens have weights
    "plain": (0.0, False), "some ignored": (0.4, False), "all ignored": (1.0, False), "weighted": (0.4, True),
}  # fmt: skip


def both(shape, choice, of, dtype):
    """(the loss and its gradients for h and weight) of one problem, by `of`(h, w, y, token weights)."""
    share, is_weighted = CHOICES[choice]
    g = torch.Generator().manual_seed(len(shape))
    h, w = torch.randn(*shape, 24, generator=g, dtype=torch.float64), torch.randn(101, 24, generator=g).double()
    y = torch.randint(0, 101, shape, generator=g)
    y = torch.where(torch.rand(shape, generator=g) < share, -100, y)
    weights = torch.rand(shape, generator=g) + 0.5 if is_weighted else None
    h, w = h.to(dtype).requires_grad_(), w.to(dtype).requires_grad_()
    loss = of(h, w, y, weights)
    upstream = torch.rand(loss.shape, generator=g).to(loss.dtype)
    return loss.detach(), *torch.autograd.grad(loss, (h, w), upstream)


def plain(reduction):
    def of(h, w, y, weights):
        z = (h @ w.T).reshape(-1, len(w))
        if weights is None:
            loss = F.cross_entropy(z, y.flatten(), reduction=reduction)
            return loss.view(y.shape) if reduction == "none" else loss
        nll = F.cross_entropy(z, y.flatten(), reduction="none").view(y.shape) * weights
        total = weights[y != -100].sum()
        return {"none": nll, "sum": nll.sum(), "mean": nll.sum() / total}[reduction]

    return of


def ours(reduction):
    return lambda h, w, y, weights: linear_cross_entropy(h, w, y, weights, reduction=reduction, ignore_index=-100)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_and_gradients_are_those_of_cross_entropy(shape, choice, reduction, dtype):
    truth, result = (both(shape, choice, of(reduction), dtype) for of in (plain, ours))
    assert truth[0].isnan().all() == (choice == "all ignored" and reduction == "mean")
    for a, b in zip(result, truth, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        torch.testing.assert_close(a, b, equal_nan=True)


def test_the_mean_counts_the_rows_before_the_count():
    h, w, y, _ = problem(40, 16, 33)
    y[3:9] = -100
    truth = F.cross_entropy(h[:30] @ w.T, y[:30])
    unread = torch.where(torch.arange(40) < 30, y, 10**6)
    result = linear_cross_entropy(h, w, unread, reduction="mean", ignore_index=-100, n_rows=torch.tensor(30))
    torch.testing.assert_close(result, truth)
    for mine, theirs in zip(*(torch.autograd.grad(x, (h, w)) for x in (result, truth)), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert linear_cross_entropy(h, w, y, reduction="mean", n_rows=torch.tensor(0)).isnan()


def test_token_weights_get_their_gradient_through_the_mean():
    h, w, y, weights = problem(9, 16, 33)
    weights = weights.double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda g: linear_cross_entropy(h, w, y, g, reduction="mean", ignore_index=int(y[0])), weights
    )


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_compiled_mean_is_one_graph(reduction):
    compiled = torch.compile(ours(reduction), fullgraph=True, backend="aot_eager")
    for of in (compiled, ours(reduction)):
        result = both((3, 5), "some ignored", of, torch.float32)
        for a, b in zip(result, both((3, 5), "some ignored", plain(reduction), torch.float32), strict=True):
            torch.testing.assert_close(a, b)


def test_an_ignored_target_is_an_error_unless_it_is_named():
    h, w, y, _ = problem(9, 16, 33)
    y[2] = -100
    with pytest.raises(ValueError, match="reach from -100"):
        linear_cross_entropy(h, w, y)
    with pytest.raises(ValueError, match=r"must be \(..., D\), \(V, D\), \(...\)"):
        linear_cross_entropy(h.view(3, 3, 16), w, y)
    with pytest.raises(ValueError, match="'sum', 'mean' or 'none'"):
        linear_cross_entropy(h, w, y, reduction="average")
