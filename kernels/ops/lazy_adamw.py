"""AdamW of a table of which each batch reads few rows: the rows that are not read wait, and catch up later.

    m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2,   p = p - rate m / (sqrt(v) / c2 + eps)

with rate = lr / (1 - beta1^n) and c2 = sqrt(1 - beta2^n) at the optimizer's step n (Kingma & Ba 2015), and no decay. A
row whose token is not in the batch has g = 0, yet its m, v and p change. catch_up takes a row through the steps that it
missed, with the rate of each, before the row is read. So every row goes through the same operations in the same order
as if it were updated at every step, and ends with the same bits. A row whose moments are 0 does not change.

    last (V,) int32      the optimizer's steps that a row has taken
    mark (V,) int32      1 + the last training step that read a row
    scalars (S, 3)       rate, c2 and 1 - beta1^n of step n in line n; update_rows writes rate

All arithmetic is in the dtype of the table; the kernels take fp32. The step that is skipped, because the loss is not
finite, counts only as a training step: no row takes it.
"""

import torch
from torch import Tensor

from ..dispatch import op


def corrections(steps: int, beta1: float, beta2: float, table: Tensor) -> Tensor:
    """Return the scalars (steps + 1, 3) of a table and up to `steps` steps, with rates of 0."""
    lines = [(0.0, (1 - beta2**n) ** 0.5, 1 - beta1**n) for n in range(steps + 1)]
    return torch.tensor(lines, dtype=table.dtype).to(table.device)


def adamw(p, m, v, g, scalars, beta1: float, beta2: float, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return p, m and v after one step with the gradient g (a tensor or 0.0); scalars (3,) as above."""
    rate, c2, _ = scalars
    m = m * beta1 + g * (1 - beta1)
    v = v * beta2 + g * g * (1 - beta2)
    return p - rate * m / (v.sqrt() / c2 + eps), m, v


def _write(rows: Tensor, old: tuple[Tensor, ...], new: tuple[Tensor, ...]) -> None:
    for a, b in zip(old, new, strict=True):
        a.copy_(torch.where(rows[:, None], b, a))


@op("tdlm::catch_up", fake=lambda *_: None, mutates_args=("p", "m", "v", "last", "mark"))
def catch_up(
    p: Tensor, m: Tensor, v: Tensor, last: Tensor, mark: Tensor, scalars: Tensor, steps: Tensor, train_step: Tensor,
    tokens: Tensor | None, always: Tensor, beta1: float, beta2: float, eps: float,
) -> None:  # fmt: skip
    """Mark the rows of tokens (any shape, int64) and of always (K,) int64, and take them to step `steps`.

    p, m, v (V, D). steps () fp32 counts the optimizer's steps, train_step () int64 those of training. With tokens=None
    all rows catch up, and none is marked.
    """
    rows = torch.ones_like(last, dtype=torch.bool)
    if tokens is not None:
        rows = torch.zeros_like(rows).index_fill_(0, torch.cat([tokens.flatten(), always]), True)
        mark.copy_(torch.where(rows, train_step.to(mark.dtype) + 1, mark))
    done = int(steps)
    for n in range(int(last.masked_fill(~rows, done).min()) + 1, done + 1):
        _write(rows & (last < n), (p, m, v), adamw(p, m, v, 0.0, scalars[n], beta1, beta2, eps))
    last.copy_(torch.where(rows, steps.to(last.dtype), last))


@op("tdlm::update_rows", fake=lambda *_: None, mutates_args=("p", "m", "v", "last", "scalars"))
def update_rows(
    p: Tensor, m: Tensor, v: Tensor, last: Tensor, mark: Tensor, scalars: Tensor, steps: Tensor, train_step: Tensor,
    grad: Tensor, lr: Tensor, scale: Tensor, skip: Tensor, beta1: float, beta2: float, eps: float,
) -> None:  # fmt: skip
    """Update the marked rows by grad / scale, grad (V, D), as step `steps`; do nothing where skip is 1.

    The other rows of grad must be 0. lr, scale and skip are scalars on the device.
    """
    n, done = steps.long().view(1), skip == 0
    now = scalars.index_select(0, n)[0]
    now[0] = torch.where(done, lr.to(now.dtype) / now[2], now[0])
    scalars.index_copy_(0, n, now[None])
    rows = (mark == train_step + 1) & done
    _write(rows, (p, m, v), adamw(p, m, v, grad / scale, now, beta1, beta2, eps))
    last.copy_(torch.where(rows, steps.to(last.dtype), last))
