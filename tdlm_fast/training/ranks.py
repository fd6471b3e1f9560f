"""Several processes train one run: `torchrun --nproc-per-node R -m tdlm_fast.train CONFIG …`, on NCCL or gloo.

train.accumulation divides a batch into A parts. Each process takes A / R of them, one after another, and the gradients
of all parts are added up before every process takes the same step:

    process r of R      parts r A/R to (r + 1) A/R - 1,    gradient = sum over processes of the sums over their parts

Masks and batches depend on the seed and the step. So a run has the same draws with any R that divides A, also where it
is resumed with another one. Dropout depends on the part too where R is above 1. One process draws that of the second
and later parts from one sequence. Process 0 evaluates, saves and reports while the others wait.
"""

import contextlib
import datetime
import os

from .. import config as settings
from ..cli import several

LONGEST_WAIT = datetime.timedelta(days=7)  # the others wait while process 0 evaluates; a dead one is noticed at once


class Lost(settings.ConfigError):
    """Another process of this run has ended, or cannot be reached."""


class Ranks:
    """The place of this process among those of its run. By itself it is alone, and nothing is exchanged."""

    rank, size, local = 0, 1, 0

    def share(self, parts: range) -> range:
        """Return the parts of a batch that this process computes."""
        n = len(parts) // self.size
        return parts[self.rank * n : (self.rank + 1) * n]

    def device(self, name: str) -> str:
        """Return the device of this process, where a config asks for `name`."""
        return name

    def add_up(self, model, loss, loss_tokens) -> tuple:
        """Add up the gradients, the loss and the loss-bearing tokens of all processes; return the last two."""
        return loss, loss_tokens

    def agree(self, stop: bool) -> bool:
        """Return whether any process was asked to stop, to all of them alike."""
        return stop

    def told(self, value=None):
        """Return what process 0 passes in, to every process."""
        return value

    def check_equal(self, what: str, value) -> None:
        """Raise ConfigError where the value of a process differs from that of process 0."""

    @contextlib.contextmanager
    def in_turn(self):
        """Let process 0 go first, and the others once it is done."""
        if self.rank:
            self.told()
        yield
        if not self.rank:
            self.told()


ALONE = Ranks()


class Group(Ranks):
    """One of several processes."""

    def __init__(self, config: settings.Config):
        import torch
        import torch.distributed as dist

        self.dist, self.torch = dist, torch
        self.rank, self.size, self.local = (int(os.environ[k]) for k in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        parts = config.train.accumulation
        if parts % self.size:
            if self.rank:  # process 0 says it
                raise SystemExit(2)
            least = f"train.accumulation={self.size}"
            raise settings.ConfigError(
                f"train.accumulation is {parts}; {self.size} processes share that many parts of a batch, so it must be "
                f"a multiple of {self.size}, as {least}"
            )
        kind = torch.device(self.device(config.device)).type
        try:
            dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=LONGEST_WAIT)
            self.host = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
        except RuntimeError as e:
            why = (str(e).splitlines() or [type(e).__name__])[0]
            raise settings.ConfigError(f"the processes of torchrun cannot reach each other: {why}") from e

    def device(self, name: str) -> str:
        """Return cuda:LOCAL_RANK, or cpu where there is no GPU or it is asked for. Raises ConfigError."""
        count = self.torch.cuda.device_count() if name != "cpu" and self.torch.cuda.is_available() else 0
        if name == "cpu" or name == "auto" and not count:
            return "cpu"
        if name not in ("auto", "cuda"):
            raise settings.ConfigError(f"device={name}: {self.size} processes take a GPU each; use device=auto")
        if self.local >= count:
            raise settings.ConfigError(f"PyTorch sees {count} GPUs; torchrun --nproc-per-node {max(count, 1)}")
        return f"cuda:{self.local}"

    @contextlib.contextmanager
    def _together(self):
        """Raise Lost where the processes cannot exchange anything any more."""
        try:
            yield
        except RuntimeError as e:
            raise Lost("another process of this run has ended or cannot be reached") from e

    def add_up(self, model, loss, loss_tokens) -> tuple:
        torch, params = self.torch, list(model.parameters())
        for p in params:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        flat = torch.cat([p.grad.flatten() for p in params])
        sums = torch.stack([loss.double(), loss_tokens.double()])
        with self._together():
            self.dist.all_reduce(flat)
            self.dist.all_reduce(sums)
        for p, part in zip(params, flat.split([p.numel() for p in params]), strict=True):
            p.grad.copy_(part.view_as(p))
        return sums[0].to(loss.dtype), sums[1].to(loss_tokens.dtype)

    def agree(self, stop: bool) -> bool:
        asked = self.torch.tensor(int(stop))
        with self._together():
            self.dist.all_reduce(asked, op=self.dist.ReduceOp.MAX, group=self.host)
        return bool(asked.item())

    def told(self, value=None):
        held = [value]
        with self._together():
            self.dist.broadcast_object_list(held, src=0, group=self.host)
        return held[0]

    def check_equal(self, what: str, value) -> None:
        values: list = [None] * self.size
        with self._together():
            self.dist.all_gather_object(values, value, group=self.host)
        other = next((r for r, v in enumerate(values) if v != values[0]), None)
        if other is not None:
            raise settings.ConfigError(
                f"{what} of process {other} differs from that of process 0; all processes need one version of the "
                "program, one text and processors or GPUs of one kind"
            )


@contextlib.contextmanager
def joined(config: settings.Config):
    """Yield ALONE, or this process's Group where torchrun started several; leave the group at the end."""
    if not several():
        yield ALONE
        return
    group = Group(config)
    try:
        yield group
    finally:
        with contextlib.suppress(RuntimeError):
            group.dist.destroy_process_group()
