"""An exponential moving average of the weights (optim.ema), which is what is evaluated and kept as the best.

    A_k = A_{k-1} + w_k (W_k - A_{k-1}),   w_k = max(1 - ema, 10 / (9 + k))    after step k = 1, 2, …

So A_1 = W_1, and about the last k / 10 steps are averaged until 1 / (1 - ema) are reached. Polyak & Juditsky 1992;
Karras et al. 2022 (arXiv 2206.00364) average such models in this way, with a ramp at the beginning too.

The averages lie in the optimizer's state, so that a checkpoint keeps them beside AdamW's moments.
"""

import contextlib

import torch

from ..runs.checkpoint import AVERAGE


@torch.no_grad()
def update(model, optimizer, ema: float) -> None:
    """Move the averages toward the weights, after a step. Nothing waits for the device, so a CUDA graph can hold it."""
    params = list(model.parameters())
    for p in params:
        if AVERAGE not in optimizer.state[p]:
            optimizer.state[p][AVERAGE] = p.detach().clone()
    averages = [optimizer.state[p][AVERAGE] for p in params]
    weight = (10 / (9 + optimizer.state[params[0]]["step"])).clamp(min=1 - ema)
    apart = torch._foreach_sub(params, averages)
    torch._foreach_mul_(apart, weight)
    torch._foreach_add_(averages, apart)


@torch.no_grad()
def put(model, optimizer) -> list[torch.Tensor]:
    """Write the averages into the weights; return what the weights were. Do nothing where there are none."""
    params = [p for p in model.parameters() if AVERAGE in optimizer.state.get(p, {})]
    before = [p.detach().clone() for p in params]
    for p in params:
        p.copy_(optimizer.state[p][AVERAGE])
    return before


@contextlib.contextmanager
def averaged(model, optimizer):
    """Have the averages in the place of the weights while inside, where there are any."""
    before = put(model, optimizer)
    try:
        yield
    finally:
        with torch.no_grad():
            for p, weight in zip(model.parameters(), before, strict=False):  # all parameters, or none
                p.copy_(weight)
