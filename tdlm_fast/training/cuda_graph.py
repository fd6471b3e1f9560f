"""Run the whole optimizer step on the device, replayed as one CUDA graph.

    draw the batch, corrupt, forward, loss, backward, clip, AdamW, schedule, step += 1

Everything that changes from step to step lies in device memory: the step, the learning rate, the epoch's order of rows
and the log. So the graph is captured once, and a step costs the host one launch. Dropout follows the device's
generator. It is seeded by (seed, step) before every step, and a replay reads it, so eager and captured steps draw the
same bits. The same body runs eagerly, captured, and under fake tensors; the last is how tests show that nothing in it
waits for the device.
"""

import traceback
import warnings
from collections import deque
from pathlib import Path

import torch
from torch import Tensor

from ..config import Config
from ..data import batches, dataset
from ..kernels.dispatch import compile_ahead
from ..kernels.ops.batch import draw
from ..kernels.ops.step_scalars import record
from .device_adamw import DeviceAdamW
from .optimizer import learning_rate
from .ranks import ALONE, Ranks
from .step import EagerSteps, backward, update

WARM_UP = 3  # eager steps before the capture: they create the optimizer's state and compile the kernels


class DeviceData:
    """A training split on the device. batch(step) returns the rows of data.batches.batch for that step."""

    def __init__(self, split: dataset.Split, seed: int, batch_size: int, device):
        n = batches.usable(split)
        # PyTorch cannot gather uint16 on every device: the bits travel as signed integers of the same size.
        self.mask = 2 ** (8 * split.tokens.itemsize) - 1
        signed = split.tokens.view(f"int{8 * split.tokens.itemsize}")
        self.tokens = torch.from_numpy(signed.copy()).to(device)
        self.starts = torch.from_numpy(split.starts[:n].copy()).to(device)
        self.lengths = torch.from_numpy(split.lengths[:n].copy()).to(device)
        self.padded, self.seq_len, self.batch_size, self.seed = split.padded, split.seq_len, batch_size, seed
        self.steps_per_epoch = batches.steps_per_epoch(split, batch_size)
        self.order = torch.zeros(n, dtype=torch.int64, device=device)
        self.epoch = -1

    def begin(self, step: int) -> None:
        """Write the row order of the epoch that holds `step`: outside the graph, once per epoch."""
        epoch = step // self.steps_per_epoch
        if epoch != self.epoch:
            self.order.copy_(batches.permutation(len(self.order), self.seed, epoch, self.order.device))
            self.epoch = epoch

    def batch(self, step: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return x0 (B, T) int64 and valid (B, T) bool (None where rows are full) of `step`, () int64 on the device."""
        x0, valid = draw(
            self.tokens, self.starts, self.lengths, self.order, step, self.batch_size, self.steps_per_epoch,
            self.seq_len, self.mask, self.padded,
        )  # fmt: skip
        return x0, valid if self.padded else None


class DeviceSteps:
    """Train on the batches in order: run(step) starts a step, counted from 0, and read() returns outcomes.

    mode "auto" captures after WARM_UP steps. `why` holds the reason for eager steps, "" for captured ones.
    """

    ranks = ALONE

    def among(self, ranks: Ranks) -> "DeviceSteps":
        """Take the steps as one of several processes, one by one; return this runner."""
        self.ranks = ranks
        if ranks.size > 1:  # the parts draw their dropout from seeds of their own, which a replay cannot set
            self.why = self.why or f"{ranks.size} processes train this run"
        return self

    def __init__(
        self, model, optimizer, loss_of, split: dataset.Split, config: Config, *, steps: int, first: int = 0,
        mode: str = "auto", window: int = 64,
    ):  # fmt: skip
        self.model, self.optimizer, self.loss_of, self.config = model, optimizer, loss_of, config
        device = self.device = next(model.parameters()).device
        self.data = DeviceData(split, config.seed, config.train.batch_size, device)
        # Fused AdamW reads a learning rate of fp32 from the GPU; on the CPU fp64 keeps the eager step's bits.
        dtype = torch.float32 if device.type == "cuda" else torch.float64
        rates = [learning_rate(s, steps, config.optim) for s in range(steps)]
        self.rates = torch.tensor(rates, dtype=dtype).to(device)
        self.lr = torch.zeros((), dtype=dtype, device=device)
        self.step = torch.full((), first, dtype=torch.int64, device=device)
        self.log = torch.zeros(window, 4, dtype=torch.float64, device=device)
        self.scaled = []  # learning rates that are a multiple of it
        for group in optimizer.param_groups:
            group["lr"] = self.lr
            if "rate" in group:
                group["lr"] = torch.zeros_like(self.lr)
                self.scaled.append((group["lr"], group["rate"]))
        self.lazy = None
        if isinstance(optimizer, DeviceAdamW) and not config.optim.ema:  # an average reads every row at every step
            always = [model.mask_token_id, loss_of.keywords["start_token_id"]]
            self.lazy = optimizer.make_lazy(model, steps=steps, train_step=self.step, always=always)
        self.why = "train.capture=off" if mode == "off" else "" if device.type == "cuda" else "CUDA graphs need a GPU"
        self.graph, self.warm, self.unread = None, 0, deque()
        self.stream, self.generator = None, torch.default_generator
        if device.type == "cuda":
            self.stream, self.generator = torch.cuda.Stream(device), torch.cuda.default_generators[device.index]

    def body(self) -> None:
        """One step that reads and writes only device memory."""
        torch.index_select(self.rates, 0, self.step.view(1), out=self.lr.view(1))
        for rate, factor in self.scaled:
            torch.mul(self.lr, factor, out=rate)
        x0, valid = self.data.batch(self.step)
        if self.lazy is not None:
            self.lazy.catch_up(x0)
        loss, loss_tokens, n = backward(self.model, self.loss_of, x0, valid, self.config, self.step, self.ranks)
        loss, loss_tokens = self.ranks.add_up(self.model, loss, loss_tokens)
        norm = update(self.model, self.optimizer, loss, self.config)
        record(self.log, self.step, loss, norm, loss_tokens, n)

    def run(self, step: int) -> None:
        """Start step `step`; it may still run on the device when this returns."""
        self.data.begin(step)
        if self.warm == 0 and self.stream is not None:
            self._compile_ahead(self.stream)
        if self.lazy is not None:
            self.lazy.begin(step)
        self.generator.manual_seed((self.config.seed << 32) + step)
        if self.graph is None and not self.why and self.warm >= WARM_UP:
            self._capture()
        if self.graph is not None:
            self.graph.replay()
        elif self.stream is None:
            self.body()
        else:  # gradients accumulate on the stream that the capture will use
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self.stream):
                self.body()
            torch.cuda.current_stream(self.device).wait_stream(self.stream)
        self.warm += 1

    def _compile_ahead(self, stream) -> None:
        """Compile in parallel what a step needs up to its gradients, which are thrown away."""

        def gradients():
            x0, valid = self.data.batch(self.step)
            backward(self.model, self.loss_of, x0, valid, self.config, self.step, self.ranks)

        stream.wait_stream(torch.cuda.current_stream(self.device))
        try:
            with torch.cuda.stream(stream):  # whose memory the steps use
                compile_ahead(gradients)
        except Exception as error:  # the first step compiles what is missing, and raises what cannot be done without
            warnings.warn(f"kernels are compiled one by one: {_first_error(error)}", stacklevel=2)
        self.optimizer.zero_grad(set_to_none=True)

    def _capture(self) -> None:
        before = self.generator.clone_state()
        stream = None if self.stream is None else torch.cuda.current_stream(self.device)
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self.stream):
                self.body()
        except Exception as error:  # what an op or a driver cannot do during a capture may work outside
            self.why = f"the step cannot be captured: {_first_error(error)}; train.capture=off does not try"
            self.optimizer.zero_grad(set_to_none=True)
            if stream is not None:  # the end of a failed capture leaves its stream current, and the generator marked
                torch.cuda.set_stream(stream)
                self.generator.graphsafe_set_state(before)
        else:
            self.graph = graph

    def mark(self, first: int, end: int) -> None:
        """Copy the outcomes of steps first to end to the host, after the steps that have started."""
        if end - first > len(self.log):
            raise ValueError(f"{end - first} steps are more than the log of {len(self.log)} holds")
        host = self.log.to("cpu", non_blocking=True, copy=True)  # into pinned memory
        arrived = None
        if self.stream is not None:
            arrived = torch.cuda.Event()
            arrived.record(torch.cuda.current_stream(self.device))
        self.unread.append((first, end, host, arrived))

    def read(self, keep: int = 0) -> list[tuple[int, list[dict]]]:
        """Return (first step, outcomes from there) of all marks except the last `keep`, oldest first.

        It waits only for what it returns. With keep=1 that is the window before the last, which has usually arrived.
        """
        windows = []
        while len(self.unread) > keep:
            first, end, host, arrived = self.unread.popleft()
            if arrived is not None:
                arrived.synchronize()
            windows.append((first, [_outcome(*host[s % len(host)].tolist()) for s in range(first, end)]))
        return windows


def _first_error(error: BaseException) -> str:
    """Describe the error that came first, and where. The end of a broken capture raises one more on top of it."""
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    text = str(error).strip() or repr(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return text.splitlines()[0] + place


def _outcome(loss: float, grad_norm: float, loss_tokens: float, tokens: float) -> dict:
    return {"loss": loss, "grad_norm": grad_norm, "loss_tokens": int(loss_tokens), "tokens": int(tokens)}


def start(model, optimizer, loss_of, split: dataset.Split, config: Config, *, steps: int, first: int):
    """Return the runner of a config's steps from `first` on: DeviceSteps on a GPU, else EagerSteps."""
    if next(model.parameters()).is_cuda:
        return DeviceSteps(
            model, optimizer, loss_of, split, config, steps=steps, first=first, mode=config.train.capture,
            window=config.train.log_every,
        )  # fmt: skip
    return EagerSteps(model, optimizer, loss_of, split, config, steps=steps)
