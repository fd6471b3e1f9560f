"""The embedding on a GPU: a step updates only the rows that its batch reads, and the other rows wait.

    begin    before the step: every SETTLE_EVERY steps all rows catch up, so that no row waits longer
    catch_up before the forward pass: the rows that the batch reads take the steps that they missed
    update   after the backward pass: these rows take this step
    settle   all rows take the steps that they missed

The bits are those of updating every row at every step (kernels/ops/lazy_adamw.py). Code that reads the weights outside
a training step must find them settled. So hooks settle before a forward pass in eval mode, and before the state of the
model or the optimizer is saved or loaded.
"""

import torch
from torch import Tensor

from ..kernels.dispatch import server
from ..kernels.ops import lazy_adamw

SETTLE_EVERY = 32  # bounds the loop of a row that was not read for long, on which the forward pass waits


def can_wait(model, optimizer) -> bool:
    """Return whether rows of the embedding may wait: a kernel serves them, and rows without a token have no gradient.

    The gradient of a tied head fills the table.
    """
    table = model.embedding.weight
    decays = any(g["weight_decay"] and any(p is table for p in g["params"]) for g in optimizer.param_groups)
    return not model.tied and not decays and server(lazy_adamw.catch_up, *[table.detach()] * 3) is not None


class LazyRows:
    """Update the table model.embedding.weight for a DeviceAdamW, which updates the other parameters.

    steps: how many steps the optimizer will have taken at most. train_step () int64 counts the steps of training on the
    device. always: rows that any step may read, beside those of its batch.
    """

    def __init__(self, model, optimizer, steps: int, train_step: Tensor, always: list[int]):
        table = self.table = model.embedding.weight
        self.optimizer, self.train_step, self.stale = optimizer, train_step, True
        self.group = next(g for g in optimizer.param_groups if any(p is table for p in g["params"]))
        beta1, beta2 = self.group["betas"]
        self.constants = beta1, beta2, self.group["eps"]
        self.always = torch.tensor(always).to(table.device)
        self.last = optimizer.steps().to(torch.int32).expand(len(table)).clone()
        self.mark = torch.zeros_like(self.last)
        self.scalars = lazy_adamw.corrections(steps, beta1, beta2, table)
        model.register_forward_pre_hook(lambda module, _: None if module.training else self.settle())
        model.register_state_dict_pre_hook(lambda *_: self.settle())
        model.register_load_state_dict_pre_hook(lambda *_: self.settle())
        optimizer.register_state_dict_pre_hook(lambda _: self.settle())

    def begin(self, step: int) -> None:
        """Settle if it is time, outside the CUDA graph of the step; from here on rows may wait."""
        if step % SETTLE_EVERY == 0:
            self.settle()
        self.stale = True

    def catch_up(self, tokens: Tensor) -> None:
        """Prepare the rows of these tokens for being read and updated."""
        lazy_adamw.catch_up(*self._tensors(), tokens, self.always, *self.constants)

    def update(self, scale: Tensor, skip: Tensor) -> None:
        """Update the rows that catch_up prepared by grad / scale, if skip is 0."""
        lr = self.group["lr"]
        lazy_adamw.update_rows(*self._tensors(), self.table.grad, lr, scale, skip, *self.constants)

    def settle(self) -> None:
        """Take all rows to the step of the optimizer. The host does not wait."""
        if self.stale:
            lazy_adamw.catch_up(*self._tensors(), None, self.always, *self.constants)
            self.stale = False

    def _tensors(self) -> tuple[Tensor, ...]:
        state, steps = self.optimizer.state[self.table], self.optimizer.steps()
        moments = state["exp_avg"], state["exp_avg_sq"]
        return self.table.detach(), *moments, self.last, self.mark, self.scalars, steps, self.train_step
