"""Rows that catch up have the bits of rows that are updated at every step, and the steps are AdamW's."""

import pytest
import torch

from tdlm_fast.kernels.ops.lazy_adamw import catch_up, corrections, update_rows

CONSTANTS = 0.9, 0.95, 1e-8  # beta1, beta2, eps


class Table:
    """A table with its moments; every step is lazy or updates all rows, through the ops or through their references."""

    def __init__(self, shape, steps: int, dtype=torch.float32, lazy=True, ops=(catch_up, update_rows), device="cpu"):
        V, _ = shape
        g = torch.Generator().manual_seed(1)
        self.p = (torch.randn(shape, generator=g, dtype=dtype) * 0.02).to(device)
        self.m, self.v, self.lazy, self.ops = torch.zeros_like(self.p), torch.zeros_like(self.p), lazy, ops
        self.last = torch.zeros(V, dtype=torch.int32, device=device)
        self.mark, self.scalars = torch.zeros_like(self.last), corrections(steps, *CONSTANTS[:2], self.p)
        self.steps, self.train_step = torch.tensor(0.0, device=device), torch.tensor(0, device=device)
        self.always = torch.tensor([V - 1], device=device)

    def tensors(self):
        return self.p, self.m, self.v, self.last, self.mark, self.scalars, self.steps, self.train_step

    def prepare(self, tokens) -> None:
        self.ops[0](*self.tensors(), tokens if self.lazy else torch.arange(len(self.p)), self.always, *CONSTANTS)

    def update(self, grad, lr, scale, skip) -> None:
        self.steps += 1 - skip  # clip_scale does this
        self.ops[1](*self.tensors(), grad, lr, scale, skip, *CONSTANTS)
        self.train_step += 1

    def settle(self) -> None:
        self.ops[0](*self.tensors(), None, self.always, *CONSTANTS)


def batch(i: int, shape, dtype=torch.float32, device="cpu") -> tuple:
    """(tokens, gradient of their rows, learning rate, scale, skip) of a step. The upper half of the rows is rare."""
    (V, D), g = shape, torch.Generator().manual_seed(i)
    tokens = torch.randint(V // 2, (2, 2), generator=g)
    if torch.rand((), generator=g) < 0.02:
        tokens[0, 0] = torch.randint(V // 2, V - 2, (), generator=g)  # row V - 2 is never read
    grad = torch.zeros(V, D, dtype=dtype)
    read = torch.cat([tokens.flatten(), torch.tensor([V - 1])])
    grad[read] = torch.randn(len(read), D, generator=g, dtype=dtype) * 10 ** float(torch.rand((), generator=g) * 4 - 3)
    lr, scale = torch.rand((), generator=g) * 1e-2, 1 + torch.rand((), generator=g)
    skip = (torch.rand((), generator=g) < 0.05).float()
    return tuple(a.to(device) for a in (tokens, grad, lr, scale, skip))


def compare(a: Table, b: Table, shape, steps: int, settle_at: int, device="cpu") -> None:
    """Train both tables; the rows that a step reads, and all of them in the end, have the same bits."""
    for i in range(steps):
        tokens, *rest = batch(i, shape, device=device)
        for table in (a, b):
            table.prepare(tokens)
        read = torch.cat([tokens.flatten(), a.always])
        assert torch.equal(a.p[read], b.p[read])
        for table in (a, b):
            table.update(*rest)
        if i == settle_at:
            a.settle()
            assert torch.equal(a.p, b.p)
    assert a.steps == b.steps < steps and (a.last < a.steps).any()
    a.settle()
    for name in ("p", "m", "v", "last"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert torch.equal(a.scalars, b.scalars)


def test_rows_that_wait_have_the_bits_of_rows_that_do_not():
    shape, steps = (60, 8), 1000
    lazy, dense = Table(shape, steps), Table(shape, steps, lazy=False)
    compare(lazy, dense, shape, steps, settle_at=400)
    still = Table(shape, steps).p[-2]
    assert torch.equal(lazy.p[-2], still)  # it was never read


@pytest.mark.parametrize("dtype, close", [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_the_steps_are_adamws(dtype, close):
    """Not its bits: PyTorch's CPU kernel takes m + (1 - beta1) (g - m) and fused multiply-adds."""
    shape, steps = (60, 8), 1000
    ours, weight = Table(shape, steps, dtype), Table(shape, steps, dtype).p.requires_grad_()
    theirs = torch.optim.AdamW([weight], betas=CONSTANTS[:2], eps=CONSTANTS[2], weight_decay=0.0, fused=True)
    for i in range(steps):
        tokens, grad, lr, scale, skip = batch(i, shape, dtype)
        ours.prepare(tokens)
        ours.update(grad, lr, scale, skip)
        weight.grad, theirs.param_groups[0]["lr"] = grad / scale.to(dtype), float(lr)
        theirs.found_inf = skip
        theirs.step()
    ours.settle()
    state = theirs.state[weight]
    assert state["step"] == ours.steps
    for a, b in ((ours.p, weight.detach()), (ours.m, state["exp_avg"]), (ours.v, state["exp_avg_sq"])):
        assert (a - b).norm() <= close * b.norm()
        assert (a - b).abs().max() <= close * b.abs().max()
