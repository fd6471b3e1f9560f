"""The head with fp16 sums, rounded as a tensor core rounds: nearer to fp64 than bf16 products, but not exact."""

import pytest
import torch
import torch.nn.functional as F

from bench.studies import fp16_sums

pytestmark = pytest.mark.slow


def test_sums_are_rounded_after_every_eight_products():
    a = torch.full((1, 24), 1.0)
    b = torch.tensor([1024.0] * 8 + [0.5 / 8] * 8 + [0.5 / 8] * 8)[:, None]
    # 8192 holds steps of 8 in fp16: two halves are lost one by one, and would be lost together too; 3 and 5 would not.
    assert fp16_sums.product(a, b).item() == 8192
    b[8:] = 5 / 8
    assert fp16_sums.product(a, b).item() == 8192 + 8 + 8 and (a @ b).item() == 8192 + 10
    assert torch.equal(fp16_sums.product(a.expand(3, 24), b), torch.full((3, 1), 8208.0))


@pytest.mark.parametrize("n_rows", [None, 150])
def test_the_head_is_nearer_to_fp64_than_with_bf16_products(n_rows):
    g = torch.Generator().manual_seed(0)
    h, w = torch.randn(200, 64, generator=g), torch.randn(3001, 64, generator=g) * 0.05
    y, weights = torch.randint(0, 3001, (200,), generator=g), torch.rand(200, generator=g) * 3
    live = weights * (torch.arange(200) < (200 if n_rows is None else n_rows))

    def answers(of, h, w):
        h, w = h.clone().requires_grad_(), w.clone().requires_grad_()
        loss = of(h, w)
        return [loss.detach(), *torch.autograd.grad(loss, (h, w))]

    def plain(h, w):
        return (F.cross_entropy((h @ w.T).to(torch.promote_types(h.dtype, torch.float32)), y, reduction="none")
                * live).sum()  # fmt: skip

    def ours(h, w):
        count = None if n_rows is None else torch.tensor(n_rows)
        return fp16_sums.linear_cross_entropy(h, w, y, weights, n_rows=count)

    truth = answers(plain, h.double(), w.double())
    for mine, bf16, exact in zip(answers(ours, h, w), answers(plain, h.bfloat16(), w.bfloat16()), truth, strict=True):
        error, theirs = ((a - exact).norm() / exact.norm() for a in (mine, bf16))
        assert 1e-8 < error < 0.3 * theirs, (error, theirs)
