"""bench/without_gpu/launches.py says what our ops launch: here they start their kernels, which are counted, not run.

test_bounds.py runs the kernels of the same calls.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.race.cases import Attention, Gate, Lce, Norm
from bench.without_gpu import launches
from tdlm_fast.kernels import dispatch, hardware
from tdlm_fast.kernels.triton import linear_cross_entropy, linear_cross_entropy_chunked, register
from tdlm_fast.training import memory_estimate
from tests.kernels.triton.machine import INTERPRETED

if not INTERPRETED:
    pytest.skip("counts the launches of Triton's interpreter", allow_module_level=True)

from triton.runtime.interpreter import GridExecutor

OPS = {dispatch.name(op): op for op, *_ in register.KERNELS}
F32, F16 = torch.float32, torch.float16


class Counter(TorchDispatchMode):
    n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func._schema.name.startswith("tdlm::"):  # what is within one of ours is counted there
            self.n += launches.launches(func, args, kwargs or {})
        return func(*args, **kwargs or {})


def counted(monkeypatch, run) -> int:
    counter = Counter()

    def start(*args, **kwargs):
        counter.n += 1

    monkeypatch.setattr(GridExecutor, "__call__", start)
    run()  # fills the tables that are kept
    counter.n = 0
    with counter:
        run()
    return counter.n


def lce(h_dtype, w_dtype, dtype):
    h, w, y, g, n = Lce("", 40, 32, 300, n_rows=21).inputs(h_dtype)
    w, lse = w.to(w_dtype), torch.ones(40)
    return (h, w, y, n, 300, dtype, True), (h, w, y, lse, g, n, 300, dtype)


def calls():
    """(op, arguments) of every op of ours in the step."""
    for types in ((F32, F32, F32), (F32, F32, F16), (F16, F32, F16), (F16, F16, F16)):
        forward, weight = lce(*types)
        yield "lce_forward", forward
        yield "lce_backward_weight", weight
        yield "lce_backward_weight", (*weight[:5], None, *weight[6:])
    h, w, y, g, n = Lce("", 40, 32, 300, n_rows=21).inputs(F32)
    for rows, count in ((torch.randperm(50)[:40], n), (None, None)):
        yield "lce_gathered", (h.repeat(2, 1)[:50] if count is not None else h, rows, w, y, count, 300, F16)
        yield "lce_gathered_backward", (h, h.half(), w.half(), y, torch.ones(40), g, rows, count, 50, 310, F32)
    wide, w, y, g, n = Lce("", 140, 528, 140, n_rows=130).inputs(F32)
    for count in (n, None):
        yield "lce_sum", (wide, w, y, g, count, 140, F32)
    rows, n = torch.randperm(40), torch.tensor(21)
    yield "lce_backward_rows", (torch.randn(40, 32), torch.ones(40), n)
    x0 = torch.randint(0, 9, (3, 17))
    yield "next_token", (x0, x0, x0 > 2, 1)
    yield "put_rows", (torch.randn(40, 32), rows, n, 50)
    yield "corrupt", (x0, x0 > 2, 1, 0, None, torch.tensor(2), 9, "linear", "stratified", 0, 3)
    (q, k, v), dout, valid = Attention("", 2, 2, 16, 16, padding=0.3).inputs(F16)
    rest = (valid, None, torch.tensor([1, 2]), True, 0.1, True)
    yield "tile_attention", (q, k, v, *rest)
    yield "tile_attention_backward", (dout, q, k, v, *rest)
    yield "rotary", (q, k, False)
    (x, w, a), (dy, ds) = Norm("", 40, 32, add=True).inputs(F32)
    yield "rms_norm", (x, w, 1e-6)
    yield "rms_norm_backward", (dy, x, w, 1e-6)
    yield "add_rms_norm", (x, a.half(), w, 1e-6, F16)
    for weight in (w, w.expand(5, -1)):
        yield "add_rms_norm_backward", (dy.half(), ds, x, weight, 1e-6, F16)
    x, dy = Gate("", 40, 32).inputs(F16)
    yield "swiglu", (x,)
    yield "swiglu_backward", (dy, x)
    tokens = torch.randint(0, 9, (40,))
    yield "stable_order", (tokens, 9)
    yield "embedding_backward", (torch.randn(40, 16), tokens, 9)
    starts = torch.arange(4)
    yield "draw", (tokens.short(), starts, starts + 2, starts, torch.tensor(1), 2, 2, 6, 65535, True)
    for n in (1, 3, 70):
        yield "clip_scale", (torch.tensor(1.0), [torch.ones(5)] * n, 1.0, torch.tensor(1.0))
    table, seen = torch.randn(9, 16), torch.zeros(9, dtype=torch.int32)
    table = table, table.clone(), table.abs(), seen, seen.clone(), torch.ones(5, 3), torch.tensor(1.0), torch.tensor(1)
    one = torch.tensor(1.0)
    yield "catch_up", (*table, tokens, torch.tensor([8]), 0.9, 0.95, 1e-8)
    yield "catch_up", (*table, None, torch.tensor([8]), 0.9, 0.95, 1e-8)
    yield "update_rows", (*table, torch.randn(9, 16), one, one, one, 0.9, 0.95, 1e-8)
    one = torch.tensor(1)
    yield "record", (torch.zeros(3, 4, dtype=torch.float64), one, one.float(), one.float(), one, one)


def run(op, args):
    """Run what serves the call, without the op's own dispatch."""
    link = dispatch.server(OPS[op], *args)
    assert link.backend == "triton"
    return link.run(*args)


@pytest.mark.parametrize("op, args", [pytest.param(*c, id=f"{c[0]} {i}") for i, c in enumerate(calls())])
def test_every_op_launches_what_the_table_says(op, args, monkeypatch):
    for module in (linear_cross_entropy, linear_cross_entropy_chunked):  # the tensors here are on the CPU
        monkeypatch.setattr(module, "lse_dtype", lambda h: torch.float32)
    with hardware.pretend(memory_estimate.CAPABILITY, memory_estimate.PROCESSORS):  # the card that the count is for
        assert counted(monkeypatch, lambda: run(op, args)) == launches.OURS[op](*args)


def test_all_of_ours_are_here():
    assert {op for op, *_ in calls()} == set(launches.OURS)
