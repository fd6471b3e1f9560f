"""AdamW on a GPU: one count of steps for all parameters, in device memory.

PyTorch's fused AdamW keeps a count per parameter, adds 1 to all of them, and takes 1 back where found_inf is 1. Its
kernel only reads them. So here all parameters share one tensor, which clip_scale counts up, and a step is one launch
per group of parameters. After make_lazy the embedding is updated by rows (lazy_rows.py), and is in no group's launch.
"""

import torch
from torch import Tensor

from .lazy_rows import LazyRows, can_wait


class DeviceAdamW(torch.optim.AdamW):
    """torch.optim.AdamW(fused=True, capturable=True) with the same state, except that its counts are one tensor.

    Where grad_scale and found_inf are set before step(), the step has been counted in steps(). Without them step()
    counts itself.
    """

    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None
    lazy: LazyRows | None = None

    def make_lazy(self, model, **options) -> LazyRows | None:
        """Let rows of model.embedding wait from here on, if they can. options: those of LazyRows.

        Every step must then call the methods of what this returns, as the top of lazy_rows.py says.
        """
        if self.lazy is not None:
            self.lazy.settle()
        self.lazy = LazyRows(model, self, **options) if can_wait(model, self) else None
        return self.lazy

    @torch.no_grad()
    def steps(self) -> Tensor:
        """Return the number of steps taken, () fp32 on the device; create the moments where they are missing."""
        params = [p for group in self.param_groups for p in group["params"]]
        states = [self.state[p] for p in params]
        count = next((s["step"] for s in states if s), None)
        count = params[0].new_zeros((), dtype=torch.float32) if count is None else count
        for p, state in zip(params, states, strict=True):
            if not state:
                state |= {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            state["step"] = count  # a checkpoint's too: they are equal
        return count

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """Update all parameters that have a gradient."""
        steps = self.steps()
        if self.found_inf is None:
            steps += 1
        table = None if self.lazy is None else self.lazy.table
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None and p is not table]
            states, (beta1, beta2) = [self.state[p] for p in params], group["betas"]
            torch._fused_adamw_(
                params, [p.grad for p in params], [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states],
                [], [steps] * len(params), lr=group["lr"], beta1=beta1, beta2=beta2,
                weight_decay=group["weight_decay"], eps=group["eps"], amsgrad=False, maximize=False,
                grad_scale=self.grad_scale, found_inf=self.found_inf,
            )  # fmt: skip
        if self.lazy is not None:
            if self.grad_scale is None or self.found_inf is None:
                raise RuntimeError("an optimizer whose rows wait needs grad_scale and found_inf at every step")
            self.lazy.update(self.grad_scale, self.found_inf)
        self.grad_scale = self.found_inf = None
