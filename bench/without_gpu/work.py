"""Bytes and products of every call of a training step on a GPU, found without one.

The step runs under fake tensors, as launches.py counts it. A call is charged the bytes of the tensors that it takes and
returns, each once, as if no cache held them and the call were one kernel. Of the embedding that AdamW updates by rows
it is charged as many rows as the batch has tokens, as if all were different.
"""

import contextlib
from collections import Counter
from unittest import mock

import torch
from torch.utils._pytree import tree_iter

from bench.without_gpu import launches
from tdlm_fast.training import memory_estimate

WRITTEN_ONLY = ("copy_", "zero_", "fill_", "bernoulli_")  # the tensors that they change are not read
LAZY = ("tdlm::catch_up", "tdlm::update_rows")
GATHERED = ("embedding", "index_select", "index", "gather", "draw")  # they read as many bytes as they write


def _tensors(tree) -> list[torch.Tensor]:
    return [a for a in tree_iter(tree) if isinstance(a, torch.Tensor)]


def _bytes(a: torch.Tensor) -> int:
    """Bytes of its storage that a tensor shows; an expanded dimension counts once."""
    n = 1
    for size, stride in zip(a.shape, a.stride(), strict=True):
        n *= size if stride else 1
    return n * a.itemsize


def traffic(func, args, kwargs, out) -> int:
    """Return the bytes that a call reads and writes, each tensor once."""
    name, schema = func._schema.name.split("::")[1], func._schema
    named = [*zip(schema.arguments, args, strict=False)]
    named += [(a, kwargs[a.name]) for a in schema.arguments if a.name in kwargs]
    read, changed = [], []
    for argument, value in named:
        mutated = argument.alias_info is not None and argument.alias_info.is_write
        only = mutated and (argument.is_out or any(name.endswith(w) for w in WRITTEN_ONLY))
        read += [] if only else _tensors(value)
        changed += _tensors(value) if mutated else []
    # The head's casts and partial sums, written and read again.
    written_and_read = 2 * memory_estimate.head_scratch(name, args) if name in memory_estimate.HEAD else 0
    made = [a for a in _tensors(out) if not any(a is c for c in changed)]
    written = sum(map(_bytes, made + changed))
    if name in GATHERED:
        return 2 * written
    return written + written_and_read + sum(map(_bytes, {id(a): a for a in read}.values()))


def rows_traffic(name: str, args, rows: int) -> int:
    """Return the bytes of catch_up or update_rows, ops of lazy_adamw, for so many rows of the table."""
    p, mark, more = args[0], args[4], args[8]  # tokens, or the gradient, whose rows are read
    per_row = 6 * p.shape[1] * p.itemsize  # p, m and v, read and written
    if name == "catch_up":
        return rows * per_row + _bytes(more)
    return rows * (per_row + p.shape[1] * more.itemsize) + _bytes(mark)


def flop(func, args) -> int:
    """Return the flop of a call's products; the head's count all its rows, whether they bear loss or not."""
    name = func._schema.name.split("::")[1]
    if name in memory_estimate.HEAD:
        N, weight = (len(args[3]), args[2]) if name.startswith("lce_gathered") else (len(args[0]), args[1])
        products = 3 if name == "lce_sum" else 1 if name == "lce_forward" and not args[6] else 2
        return products * 2 * N * weight.numel()
    if name == "mm":
        (m, k), n = args[0].shape, args[1].shape[1]
        return 2 * m * k * n
    if name in ("tile_attention", "tile_attention_backward"):  # whole tiles, causal or not
        B, H, T, K = args[0].shape
        return (2 if name == "tile_attention" else 5) * 2 * B * H * T * T * K
    return 0


class Work(launches.Launches):
    """Keep the launching calls of the last step: (part, op, launches, bytes, flop)."""

    def __init__(self):
        super().__init__()
        self.calls, self.rows = [], 0  # rows of the embedding that the step reads, at most

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not self.found:
            self.calls = []
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if n := launches.launches(func, args, kwargs):
            name = func._schema.name.removeprefix("aten::")
            if name == "tdlm::catch_up":
                self.rows = min(len(args[0]), args[8].numel() + len(args[9]))
            if name in LAZY:
                moved = rows_traffic(name.removeprefix("tdlm::"), args, self.rows)
            else:
                moved = traffic(func, args, kwargs, out)
            self.calls.append((self.part, name, n, moved, flop(func, args)))
        return out


@contextlib.contextmanager
def on_card(card: int, multiprocessors: int):
    """Trace as on this card (its compute capability) while inside."""
    with (
        mock.patch.object(memory_estimate, "CAPABILITY", divmod(card, 10)),
        mock.patch.object(memory_estimate, "PROCESSORS", multiprocessors),
    ):
        yield


HEAD = tuple(f"tdlm::{name}" for name in memory_estimate.HEAD)
# PyTorch's own ops that a GPU runs as the trace does; attention and dropout decompose differently there.
LIMITED = ("mm", "cat", "embedding", "index_select", "_foreach_copy_", "_fused_adamw_")


def limits(config, device: torch.device, rates: dict, live: float, tokens: int) -> dict[str, float]:
    """{op: the least milliseconds per step on a GPU} for our ops and the LIMITED ops of a config's step.

    rates: measured {"flops", "bytes"} per second. live: share of rows that bear loss. tokens: of the training split.
    """
    gpu = torch.cuda.get_device_properties(device)
    with on_card(10 * gpu.major + gpu.minor, gpu.multi_processor_count):
        meter = Work()
        memory_estimate.trace(config, tokens=tokens, steps=1, meter=meter)
    figures = Counter()
    for _, op, _, moved, made in meter.calls:
        share = live if op in HEAD else 1
        if "::" in op or op in LIMITED:
            name = op if "::" in op else f"aten::{op}"
            figures[name] += max(moved / rates["bytes"], share * made / rates["flops"]) * 1e3
    return dict(figures)
