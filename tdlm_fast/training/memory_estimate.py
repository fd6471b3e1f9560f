"""Peak memory of a config's training step on a GPU, estimated without one.

The whole step of cuda_graph.py runs under fake tensors, which have shapes and lifetimes but no data. An op that would
wait for the device (.item(), nonzero, a copy from the host) cannot run. Every storage is counted from its first
appearance to its release, in the 512-byte units of PyTorch's CUDA allocator, and the head's scratch is added while the
head runs. Not counted: the scratch of other ops, fragments, and the CUDA context (some 300 to 500 MB, no allocator's).

Once the step is captured, its graph keeps its memory for itself. An evaluation then takes new memory beside it, so the
GPU needs both: the peak of the step, and what scoring a batch takes beyond the weights.
"""

import weakref
from dataclasses import replace

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakIdKeyDictionary

from .. import config as settings
from ..data import dataset
from ..data.token_cache import token_dtype
from ..data.tokenizer import sizes
from ..kernels import hardware, linear_cross_entropy
from ..kernels.triton import tiles
from ..model import autocast, build_model, resolved
from . import step
from .cuda_graph import DeviceSteps
from .optimizer import adamw

CAPABILITY, PROCESSORS = (8, 6), 46  # the GPU that the step is traced for: RTX 3070 Ti Laptop


HEAD = ("lce_forward", "lce_backward_weight", "lce_sum", "lce_gathered", "lce_gathered_backward")


def head_scratch(name: str, args: tuple) -> int:
    """Return the scratch bytes of a call of one of HEAD, beside inputs and outputs."""
    if name == "lce_gathered":  # its copies are outputs
        N, weight, dtype = len(args[3]), args[2], args[6]
        types = dtype, dtype
    elif name == "lce_gathered_backward":
        N, weight, dtype = len(args[1]), args[2], args[1].dtype
        types = dtype, dtype
    else:
        N, weight, dtype = len(args[0]), args[1], next(a for a in args if isinstance(a, torch.dtype))
        types = args[0].dtype, weight.dtype
    (V, D), card = weight.shape, tiles.card(CAPABILITY) or 86
    plan = tiles.fused(card, N, D, V, *types, dtype, processors=PROCESSORS)
    if plan is not None:
        return plan.forward_scratch if name in ("lce_forward", "lce_gathered") else plan.weight_scratch
    rows = min(tiles.stored_rows(V, dtype), N)
    chunk = rows * tiles.padded(V) * dtype.itemsize
    parts = tiles.product_parts(tiles.product(card, dtype, "towards_h"), rows, D, PROCESSORS)
    dh = 4 * (N + (parts + 1) * rows) * D  # in fp32, and the parts of a chunk that become it
    sums = {"lce_forward": dh, "lce_backward_weight": 4 * V * D, "lce_sum": dh + 4 * V * D}
    return chunk + (N + V) * D * dtype.itemsize + sums[name]


class HostTransfer(RuntimeError):
    """An op of the step moves data between host and device, which a CUDA graph cannot hold."""


class Meter(TorchDispatchMode):
    """Count the bytes of all live storages, and their peak. Raises HostTransfer where data would cross."""

    CROSSING = ("lift_fresh", "lift_fresh_copy", "_local_scalar_dense", "nonzero", "masked_select", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.sizes, self.live, self.peak, self.guarded = WeakIdKeyDictionary(), 0, 0, False

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self.sizes:
            size = -(-storage.nbytes() // 512) * 512
            self.sizes[storage] = size
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self.live -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        if self.guarded and name in self.CROSSING:
            raise HostTransfer(f"{func} moves data between the host and the device")
        if name in HEAD:
            self.peak = max(self.peak, self.live + head_scratch(name, args))
        if name == "_fused_adamw_":  # has no fake form: PyTorch would run it on real copies, of any size
            return None
        out = func(*args, **kwargs or {})
        for a in tree_iter(out):
            if isinstance(a, torch.Tensor):
                self.add(a)
        return out


def trace(config: settings.Config, *, tokens: int = 2_500_000, steps: int = 2, meter: Meter | None = None) -> Meter:
    """Run `steps` captured steps of a config on fake tensors over a split of `tokens` tokens; returns the Meter.

    Raises HostTransfer, or the error of an op without a fake form, where a step could not be captured.
    """
    config = _on_a_gpu(config)
    T, size = config.model.seq_len, config.train.batch_size
    vocabulary, rows = sizes(config.data), max(size, tokens // T)
    lengths, flat = np.full(rows, T, dtype=np.int64), np.zeros(rows * T, token_dtype(vocabulary))
    split = dataset.Split(flat, lengths, T, config.data.padded, np.arange(rows) * T, 1, None)
    # Fake tensors pass for those of the GPU, so that the ops choose as on it.
    with FakeTensorMode(), hardware.pretend(CAPABILITY, PROCESSORS), meter or Meter() as meter:
        model = build_model(config, vocabulary).train()
        for p in model.parameters():
            meter.add(p)
        loss_of = step.objective(config, vocabulary)
        runner = DeviceSteps(model, adamw(model, config.optim), loss_of, split, config, steps=4, window=8)
        meter.guarded = True
        for _ in range(steps):
            runner.body()
    return meter


def _on_a_gpu(config: settings.Config) -> settings.Config:
    """Return the config with the precision that it has there."""
    return replace(config, precision=resolved(torch.device("cuda"), config.precision))


def estimate(config: settings.Config, **kwargs) -> float:
    """Return the peak memory of a step in MB, as described at the top of the file."""
    return trace(config, **kwargs).peak / 1e6


def scoring(config: settings.Config) -> Meter:
    """Score a batch of an evaluation on fake tensors, every token masked; returns the Meter, which counts no weights.

    Evaluations mask a part of the tokens, and know how many only on the host. All of them take the most memory.
    """
    vocabulary, meter = sizes(config.data), Meter()
    with FakeTensorMode(), hardware.pretend(CAPABILITY, PROCESSORS), torch.no_grad():
        model = build_model(config, vocabulary).eval()
        with meter:
            shape = config.eval.batch_size, config.model.seq_len
            x0 = torch.empty(shape, dtype=torch.int64)
            valid = torch.empty(shape, dtype=torch.bool) if config.data.padded else None
            with autocast(x0.device, _on_a_gpu(config).precision):
                h = model(x0, causal=config.objective == "autoregressive", valid=valid).flatten(0, -2)
                linear_cross_entropy(h, model.head, x0.flatten(), reduction="none")
    return meter
