"""The losses and gradients of a linear cross-entropy beside those of PyTorch and of fp64."""

import functools

import torch
import torch.nn.functional as F

from bench.race.cases import LCE, Lce
from tdlm_fast.kernels import linear_cross_entropy
from tests.kernels.triton.machine import ON_GPU, TTSEM

SMALL = [c for c in LCE if c.N * c.V < 200_000 or ON_GPU]
# ttsem is fast enough for some rows of the whole vocabulary, the interpreter is not.
SMALL += [Lce("few rows, whole vocabulary", 40, 64, 50257, valid_vocab=50256, n_rows=33)] * TTSEM


def answers(h, w, weights, of):
    h, w = h.clone().requires_grad_(), w.clone().requires_grad_()
    nll = of(h, w)
    return [nll.detach(), *torch.autograd.grad(nll, (h, w), weights.to(nll.dtype))]


def ours(case: Lce, dtype, device, fill=None):
    h, w, y, weights, n_rows = case.inputs(dtype, device)
    if n_rows is not None and fill is not None:
        h[case.live :] = fill
    of = functools.partial(
        linear_cross_entropy, targets=y, valid_vocab=case.valid_vocab, n_rows=n_rows, reduction="none"
    )
    return answers(h, w, weights, of)


@functools.cache
def truth_and_reference(case: Lce, dtype, device):
    h, w, y, weights, _ = case.inputs(dtype, device)
    live = torch.arange(case.N, device=device) < case.live

    def plain(h, w):
        return F.cross_entropy((h @ w.T)[:, : case.valid_vocab].to(torch.promote_types(h.dtype, torch.float32)), y,
                               reduction="none") * live  # fmt: skip

    return answers(h.double(), w.double(), weights * live, plain), answers(h, w, weights * live, plain)


def compare(case, dtype, device, fill=float("nan")):
    truth, reference = truth_and_reference(case, dtype, device)
    h, w, *_ = case.inputs(dtype, device)
    size = [x.abs().max().item() if x.numel() else 0 for x in (h.float() @ w.float().T, w, h)]
    noise = 3e-7 * (1 + size[0])  # of fp32 logits
    scales = (1, 1000 * size[1], 1000 * size[2])
    for mine, theirs, true, scale in zip(ours(case, dtype, device, fill), reference, truth, scales, strict=True):
        assert mine.dtype == theirs.dtype and mine.shape == theirs.shape
        if true.numel():
            # dh is rounded to its type twice: for an upstream gradient of 1, and for the true one.
            rounding = torch.finfo(mine.dtype).eps * true.abs().max()
            assert (mine - true).abs().max() <= 2 * (theirs - true).abs().max() + noise * scale + rounding


def case(name, dtype=torch.float32, device="cpu"):
    result = next(c for c in LCE if c.name == name)
    return result, *result.inputs(dtype, device)
