"""One call of every op of ours that a training step makes on a GPU: what smoke.py checks and the sanitizer runs."""

from collections.abc import Iterator

import torch
from torch.utils._pytree import tree_map

from bench.race.cases import Attention, Gate, Lce, Norm
from tdlm_fast.kernels import dispatch
from tdlm_fast.kernels.ops.lazy_adamw import corrections
from tdlm_fast.kernels.triton import register

OPS = {dispatch.name(op): op for op, *_ in register.KERNELS}
EXACT = ("corrupt", "draw", "next_token", "put_rows", "record", "stable_order")  # the reference's bits


def _head(dtype: torch.dtype, small: bool) -> Iterator[tuple[str, tuple]]:
    """The fused head with 16-bit hidden states and fp32 weights, as a step has them, and the stored form."""
    N, V, wide = (40, 300, 140) if small else (2048, 50257, 1024)
    h, w, y, g, n = Lce("", N, 64, V, n_rows=N // 2 + 1, scale=0.125).inputs(dtype)
    w, lse = w.float(), torch.full((N,), 11.0)
    yield "lce_forward", (h, w, y, n, V, dtype, True)
    yield "lce_backward_weight", (h, w, y, lse, g, n, V, dtype)
    yield "lce_backward_weight", (h, w, y, lse, g, None, V, dtype)
    yield "lce_backward_rows", (h, g, n)
    half = torch.float16 if dtype == torch.float32 else dtype
    order = torch.randperm(N, generator=torch.Generator().manual_seed(N))
    yield "lce_gathered", (h.float(), order, w, y, n, V, half)
    yield "lce_gathered_backward", (h.float(), h.to(half), w.to(half), y, lse, g, order, n, N, V, torch.float32)
    h, w, y, g, n = Lce("", wide, 528, wide, n_rows=wide - 10, scale=0.05, weights="ones").inputs(dtype)
    yield "lce_sum", (h, w.float(), y, g, n, wide, dtype)
    yield "lce_sum", (h, w.float(), y, g, None, wide, dtype)


def _rows(dtype: torch.dtype, N: int) -> Iterator[tuple[str, tuple]]:
    """Norms, the gate, and what moves rows."""
    (x, w, a), (dy, ds) = Norm("", N, 64, add=True).inputs(torch.float32)
    yield "rms_norm", (x.to(dtype), w, 1e-6)
    yield "rms_norm_backward", (dy.to(dtype), x.to(dtype), w, 1e-6)
    yield "add_rms_norm", (x, a.to(dtype), w, 1e-6, dtype)
    yield "add_rms_norm_backward", (dy.to(dtype), ds, x, w, 1e-6, dtype)
    x, dy = Gate("", N, 192).inputs(dtype)
    yield "swiglu", (x,)
    yield "swiglu_backward", (dy, x)
    g = torch.Generator().manual_seed(N)
    tokens, rows = torch.randint(0, 90, (N,), generator=g), torch.randperm(N, generator=g)
    yield "embedding_backward", (torch.randn(N, 64, generator=g).to(dtype), tokens, 90)
    yield "put_rows", (torch.randn(N, 64, generator=g).to(dtype), rows, torch.tensor(N // 2), N)
    yield "stable_order", (tokens, 90)


def _lazy_rows(g: torch.Generator) -> Iterator[tuple[str, tuple]]:
    """The embedding's rows at the optimizer's fifth step: some missed the steps before it."""
    V, D, constants = 90, 64, (0.9, 0.95, 1e-8)
    p, m, v = torch.randn(V, D, generator=g), *(torch.rand(V, D, generator=g) * 0.01 for _ in range(2))
    last, mark = torch.randint(0, 4, (V,), generator=g).int(), torch.full((V,), 6).int()
    scalars = corrections(9, 0.9, 0.95, p)
    scalars[:5, 0] = 1e-3
    tokens, always, step = torch.randint(0, V, (40,), generator=g), torch.tensor([V - 1]), torch.tensor(6)
    waiting = p, m, v, last, mark, scalars, torch.tensor(4.0), step
    yield "catch_up", (*waiting, tokens, always, *constants)
    yield "catch_up", (*waiting, None, always, *constants)
    mark = torch.where(torch.arange(V) % 2 == 0, 7, 3).int()
    ready = p, m, v, torch.full((V,), 4).int(), mark, scalars, torch.tensor(5.0), step
    grad = torch.randn(V, D, generator=g) * (mark == 7)[:, None]
    yield "update_rows", (*ready, grad, torch.tensor(1e-3), torch.tensor(2.0), torch.tensor(0.0), *constants)


def calls(dtype: torch.dtype, device: str, small: bool = False) -> Iterator[tuple[str, tuple]]:
    """Yield (name of an op in OPS, arguments): activations in dtype; small: sizes for an interpreter.

    Attention and the head that gathers its rows take fp16 in place of fp32, where other implementations run.
    """
    B, T = (3, 32) if small else (16, 128)
    found = [*_head(dtype, small), *_rows(dtype, 40 if small else 2048)]
    half = torch.float16 if dtype == torch.float32 else dtype
    (q, k, v), dout, valid = Attention("", B, 4, T, 16, padding=0.3).inputs(half)
    for causal in (False, True):
        rest = (valid, None, torch.tensor([1, 2]), causal, 0.1, True)
        found += [("tile_attention", (q, k, v, *rest)), ("tile_attention_backward", (dout, q, k, v, *rest))]
    found += [("rotary", (q, k, back)) for back in (False, True)]
    g = torch.Generator().manual_seed(T)
    x0, one, step = torch.randint(0, 9, (B, T), generator=g), torch.tensor(1.0), torch.tensor(1)
    for sampling in ("stratified", "counts", "exact"):
        found.append(("corrupt", (x0, valid, 1, 0, None, torch.tensor(2), 9, "linear", sampling, 0, B)))
    found.append(("next_token", (x0, x0, valid, 9)))
    lengths = torch.randint(1, T + 1, (2 * B,), generator=g)
    tokens = torch.randint(-(2**15), 2**15, (int(lengths.sum()),), generator=g).short()
    split = tokens, lengths.cumsum(0) - lengths, lengths, torch.randperm(2 * B, generator=g)
    found.append(("draw", (*split, step, B, 2, T, 65535, True)))
    grads = [torch.randn(shape, generator=g) for shape in ((), (7,), (33, 65), (4001,))]
    found.append(("clip_scale", (one, grads, 0.5, torch.tensor(3.0))))
    found.append(("record", (torch.zeros(3, 4, dtype=torch.float64), step, one, one, step, step)))
    found += _lazy_rows(g)
    for name, args in found:
        yield name, tree_map(lambda a: a.to(device, copy=True) if isinstance(a, torch.Tensor) else a, args)
