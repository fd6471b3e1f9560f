"""The linear cross-entropy of wide models in Triton against fp64: at most twice the error of PyTorch."""

import pytest
import torch
import torch.nn.functional as F

from bench.race.cases import LCE
from tdlm_fast.kernels import linear_cross_entropy
from tdlm_fast.kernels.triton import linear_cross_entropy_chunked as chunked
from tdlm_fast.kernels.triton import tiles
from tests.kernels.triton.head_accuracy import SMALL, case, compare
from tests.kernels.triton.machine import DTYPES


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["wide", "some rows", "extreme logits", "all alike"])
def test_the_stored_form_is_as_accurate(name, dtype, device, monkeypatch):
    monkeypatch.setattr(tiles, "MAX_FUSED_WIDTH", 0)
    monkeypatch.setattr(tiles, "CHUNK_BYTES", 1)
    compare(next(c for c in LCE if c.name == name), dtype, device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_a_weighted_sum_of_the_stored_form_is_as_accurate(case, dtype, device, monkeypatch):
    """Three products of one softmax: the loss, and both gradients with the tokens' weights in them."""
    monkeypatch.setattr(tiles, "MAX_FUSED_WIDTH", 0)
    monkeypatch.setattr(tiles, "CHUNK_BYTES", 1)
    h, w, y, weights, n_rows = case.inputs(dtype, device)
    h[case.live :], live = 7.0, torch.arange(case.N, device=device) < case.live
    h, w = h.float(), w.float()  # whose products are of dtype
    weights[case.live :] = float("nan")

    def gradients(of, h, w):
        h, w = h.clone().requires_grad_(), w.clone().requires_grad_()
        with torch.autocast(device, dtype, enabled=dtype != torch.float32 and h.dtype != torch.float64):
            loss = of(h, w)
        return [loss.detach(), *torch.autograd.grad(loss * 0.5, (h, w))]

    def plain(h, w):
        z = (h @ w.T)[:, : case.valid_vocab]
        z = z.to(torch.promote_types(h.dtype, torch.float32))
        return (F.cross_entropy(z, y, reduction="none") * torch.where(live, weights, 0.0)).sum()

    def mine(h, w):
        return linear_cross_entropy(h, w, y, weights, valid_vocab=case.valid_vocab, n_rows=n_rows)

    sums = []
    monkeypatch.setattr(chunked, "loss_sum", lambda *a, real=chunked.loss_sum: sums.append(1) or real(*a))
    truth, theirs = gradients(plain, h.double(), w.double()), gradients(plain, h, w)
    if case.live < case.N:
        h[case.live :] = float("nan")
    size = [x[: case.live].abs().max().item() if case.live else 0 for x in (h.float() @ w.float().T, w, h)]
    noise = 3e-7 * (1 + size[0]) * 1000  # of fp32 logits, times the largest weight
    result = gradients(mine, h, w)
    assert len(sums) == (case.N > 0)
    for scale, m, t, exact in zip((case.N, size[1], size[2]), result, theirs, truth, strict=True):
        assert m.dtype == torch.float32 and not m.requires_grad
        if exact.numel():
            rounding = 2 * torch.finfo(dtype).eps * exact.abs().max()
            assert (m - exact).abs().max() <= 2 * (t - exact).abs().max() + rounding + noise * scale


def test_a_target_out_of_range_makes_a_weighted_sum_nan(device):
    _, h, w, y, *_ = case("wide", torch.float32, device)
    for bad in (-1, 500, 2**40):
        wrong, weights = y.clone(), torch.ones(len(y), device=device)
        wrong[3] = bad
        loss, dh, dw = chunked.loss_sum(h, w, wrong, weights, None, 500, torch.float32)
        assert loss.isnan() and dh[3].isnan().all() and dh[4:].isfinite().all() and dw[:500].isnan().all()
        weights[3] = 0
        _, dh, dw = chunked.loss_sum(h, w, wrong, weights, None, 500, torch.float32)
        assert dh.isfinite().all() and dw.isfinite().all()
