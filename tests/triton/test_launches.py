"""bench/launches.py says what our ops launch: here they run and are counted."""

import importlib
import os

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from bench import launches
from tdlm_fast.kernels import embedding_triton, gpu
from tdlm_fast.kernels.cases import Attention, Lce

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("counts the launches of Triton's interpreter", allow_module_level=True)

from triton.runtime.interpreter import GridExecutor

A = importlib.import_module("tdlm_fast.kernels.attention")
F32, F16 = torch.float32, torch.float16


class Counter(TorchDispatchMode):
    n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func._schema.name.startswith("tdlm::"):  # what is within one of ours is counted there
            self.n += launches.launches(func, args, kwargs or {})
        return func(*args, **kwargs or {})


def counted(monkeypatch, run) -> int:
    counter, real = Counter(), GridExecutor.__call__

    def start(*args, **kwargs):
        counter.n += 1
        with _disable_current_modes():
            return real(*args, **kwargs)

    run()  # fills the tables that are kept
    monkeypatch.setattr(GridExecutor, "__call__", start)
    with counter:
        run()
    return counter.n


def lce(h_dtype, w_dtype, dtype):
    h, w, y, g, n = Lce("", 40, 32, 300, n_rows=21).inputs(h_dtype)
    w, lse = w.to(w_dtype), torch.ones(40)
    return (h, w, y, n, 300, dtype, True), (h, w, y, lse, g, n, 300, dtype)


def calls():
    """(op, what runs it, arguments) of every op of ours in the step."""
    for types in ((F32, F32, F32), (F32, F32, F16), (F16, F32, F16), (F16, F16, F16)):
        forward, weight = lce(*types)
        yield "lce_forward", gpu.forward, forward
        yield "lce_backward_weight", gpu.backward_weight, weight
        yield "lce_backward_weight", gpu.backward_weight, (*weight[:5], None, *weight[6:])
    x0 = torch.randint(0, 9, (3, 17))
    yield "corrupt_at", gpu.corrupt_at, (x0, x0 > 2, torch.tensor([1, 2]), 9, "linear", "stratified", 0, 3)
    (q, k, v), dout, valid = Attention("", 2, 2, 16, 16, padding=0.3).inputs(F16)
    rest = (valid, None, torch.tensor([1, 2]), True, 0.1)
    yield "tile_attention", A._triton_forward, (q, k, v, *rest)
    yield "tile_attention_backward", A._triton_backward, (dout, q, k, v, *rest)
    tokens = torch.randint(0, 9, (40,))
    yield "embedding_backward", embedding_triton.backward, (torch.randn(40, 16), tokens, 9)


@pytest.mark.parametrize("op, run, args", [pytest.param(*c, id=f"{c[0]} {i}") for i, c in enumerate(calls())])
def test_every_op_launches_what_the_table_says(op, run, args, monkeypatch):
    if "lce" in op:  # on the card that the count is for
        monkeypatch.setattr(gpu, "_hardware", lambda device: (86, launches.memory.PROCESSORS))
    assert counted(monkeypatch, lambda: run(*args)) == launches.OURS[op](*args)


def test_all_of_ours_are_here():
    assert {op for op, *_ in calls()} | {"rms_norm", "rms_norm_backward"} == set(launches.OURS)
