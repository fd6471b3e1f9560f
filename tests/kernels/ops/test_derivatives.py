"""Every op answers every kind of derivative: with the right one, or with an error that names it and a way out."""

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F

from tdlm_fast import kernels
from tdlm_fast.kernels.ops.rotary import rotate

G = torch.Generator().manual_seed(3)
Q, K, V = (torch.randn(2, 2, 8, 4, generator=G) for _ in range(3))
H, W, Y = torch.randn(16, 8, generator=G), torch.randn(50, 8, generator=G), torch.arange(16) * 3
VALID = torch.arange(8) < torch.tensor([[8], [5]])


def scores(q, keep, rope=False):
    q, k = (rotate(a) if rope else a for a in (q, K.to(q.dtype)))
    p = (q @ k.mT / 2).masked_fill(~keep, -torch.inf).softmax(-1)
    return p @ V.to(q.dtype)


def joined(q, k, v):
    p = (q @ k.mT / 2).masked_fill(~CAUSAL, -torch.inf).softmax(-1)
    return (p @ v).transpose(1, 2).flatten(2)


CAUSAL = torch.ones(8, 8, dtype=torch.bool).tril()
OPS = {  # name: (ours, plain PyTorch, the input that is differentiated)
    "attention": (lambda q: kernels.attention(q, K, V, causal=True), lambda q: scores(q, CAUSAL), Q),
    "attention, rope, padding": (
        lambda q: kernels.attention(q, K, V, causal=False, valid=VALID, rope=True)[:, :, :5],
        lambda q: scores(q, VALID[:, None, None] | torch.eye(8, dtype=torch.bool), rope=True)[:, :, :5], Q,
    ),
    "self_attention": (
        lambda x: kernels.self_attention(x, 2, causal=True),
        lambda x: joined(*(a.view(2, 8, 2, 4).transpose(1, 2) for a in x.chunk(3, -1))),
        torch.randn(2, 8, 24, generator=G),
    ),
    "rms_norm": (lambda h: kernels.rms_norm(h, W[0], 1e-6), lambda h: F.rms_norm(h, (8,), W[0].to(h.dtype), 1e-6), H),
    "add_rms_norm": (
        lambda h: kernels.add_rms_norm(h, 2 * h, W[0], 1e-6)[1],
        lambda h: F.rms_norm(3 * h, (8,), W[0].to(h.dtype), 1e-6), H,
    ),
    "swiglu": (kernels.swiglu, lambda h: F.silu(h.chunk(2, -1)[0]) * h.chunk(2, -1)[1], H),
    "embedding": (lambda w: kernels.embedding(Y, w), lambda w: w[Y], W),
    "linear_cross_entropy": (
        lambda h: kernels.linear_cross_entropy(h, W, Y, reduction="none"),
        lambda h: F.cross_entropy(h @ W.T.to(h.dtype), Y, reduction="none"), H,
    ),
}  # fmt: skip


def pushed(f, x):
    """The tangent of f at x in a direction."""
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, torch.cos(x)))).tangent


def twice(f, x):
    x = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(f(x).square().sum(), x, create_graph=True)
    return torch.autograd.grad(g.sin().sum(), x)[0]


KINDS = {
    "forward mode": pushed,
    "func.jvp": lambda f, x: torch.func.jvp(f, (x,), (torch.cos(x),))[1],
    "func.grad": lambda f, x: torch.func.grad(lambda z: f(z).square().sum())(x),
    "func.vmap": lambda f, x: torch.func.vmap(f)(torch.stack([x, 2 * x])),
    "backward": lambda f, x: torch.autograd.grad(f(z := x.clone().requires_grad_()).square().sum(), z)[0],
    "second": twice,
}


@pytest.mark.filterwarnings("ignore:There is a performance drop", "ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OPS)
def test_a_derivative_is_right_or_refused_by_name(name, kind):
    ours, plain, x = OPS[name]
    expected = KINDS[kind](plain, x.double())
    try:
        actual = KINDS[kind](ours, x)
    except RuntimeError as error:
        op = "linear_cross_entropy" if "linear" in name else "swiglu" if name == "swiglu" else "attention"
        assert f"{op} has no " in str(error) and "; use " in str(error), error
        assert kind == "second" or name == "linear_cross_entropy" and kind not in ("backward", "func.vmap")
        return
    assert (actual - expected).abs().max() <= 1e-4 * (1 + expected.abs().max())
