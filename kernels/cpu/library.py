"""The native CPU kernels (csrc/cpu), through ctypes: which run here, and their registration with the ops.

TDLM_CPU_ISA = avx512_bf16 | avx512 | avx2 | portable forces the kernels of one instruction set, none the torch
references. Left out, the best that the CPU has is taken. What the kernels do not serve (fp64, fp16) runs as the
reference too.
"""

import ctypes
import functools
import os
from pathlib import Path

import torch
from torch import Tensor

from ..ops.attention import _rows_first, _threshold, rotation, tile_attention, tile_attention_backward
from ..ops.corrupt import SAMPLINGS, _corrupt
from ..ops.linear_cross_entropy import _count, lce_backward_weight, lce_forward, lce_sum
from ..ops.rms_norm import rms_norm_backward, rms_norm_forward
from ..ops.swiglu import swiglu_backward, swiglu_forward
from ..philox import MASK
from ..schedules import table

ISAS = ("portable", "avx2", "avx512", "avx512_bf16")  # worst first, as csrc/cpu/library.cpp numbers them
_ABI = 4
_PATH = Path(__file__).with_name("_native.so")
_P, _I, _L = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_ARGUMENTS = {
    "tdlm_abi": (),
    "tdlm_has": (_I,),
    "tdlm_use_threads_of": (_P,),
    "tdlm_lce_forward": (_I, _I, _P, _I, _P, _I, _I, _P, _L, _L, _L, _P, _P, _P),
    "tdlm_lce_backward_weight": (_I, _I, _P, _I, _P, _I, _I, _P, _L, _L, _L, _P, _P, _P),
    "tdlm_lce_sum": (_I, _I, _P, _I, _P, _I, _I, _P, _L, _L, _L, *[_P] * 5),
    "tdlm_rows": (_I, _I, _I, *[_P] * 5, _L, _L, _L, ctypes.c_float),
    "tdlm_attention": (_I, _I, _I, _I, _I, _P, _P, *[_L] * 4, *[_P] * 4, ctypes.c_int32, ctypes.c_float),
    "tdlm_corrupt": (_P, _P, _L, _L, ctypes.c_uint32, ctypes.c_uint32, _L, _P, _P, _I, _L, _L, *[_P] * 7),
}


def _load() -> tuple[ctypes.CDLL | None, str]:
    if not _PATH.exists():
        return None, "the library was not built: install a C++17 compiler and install tdlm_fast again"
    try:
        library = ctypes.CDLL(str(_PATH))
        for name, types in _ARGUMENTS.items():
            getattr(library, name).argtypes = types
    except (OSError, AttributeError) as error:
        return None, f"the library does not load, install tdlm_fast again: {error}"
    if library.tdlm_abi() != _ABI:
        return None, "the library is of another version: install tdlm_fast again"
    library.tdlm_corrupt.restype = _L
    try:  # where torch runs on OpenMP, its threads are ours too
        torch_cpu = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"))
        library.tdlm_use_threads_of(ctypes.cast(torch_cpu.GOMP_parallel, _P))
    except (OSError, AttributeError):
        pass
    return library, ""


_library, _why_missing = _load()
_isa: str | None = None
_why = ""


def available() -> list[str]:
    """The instruction sets that this build and this CPU have kernels for, best first."""
    return [] if _library is None else [n for i, n in reversed(list(enumerate(ISAS))) if _library.tdlm_has(i)]


def use(isa: str | None) -> None:
    """Run the kernels of one instruction set from here on: "none" for the references, None for the best.

    Raises ValueError for a name that is not known or not available.
    """
    global _isa, _why
    have = available()
    if isa is None:
        _isa = have[0] if have else None
        _why = f"the best of {', '.join(have)}" if have else _why_missing
    elif isa == "none" or isa in have:
        _isa, _why = (None if isa == "none" else isa), f"chosen as TDLM_CPU_ISA={isa}"
    else:
        reason = _why_missing or f"this CPU has {', '.join(have)}"
        raise ValueError(f"TDLM_CPU_ISA is {isa!r}; it must be one of {', '.join(ISAS)}, none, and {reason}")


def describe() -> str:
    """Which CPU kernels are in use, and why."""
    return f"{_isa or 'torch references'}: {_why}"


def _serves(h: Tensor, weight: Tensor, dtype: torch.dtype) -> bool:
    types = (torch.float32, torch.bfloat16)
    return _isa is not None and h.shape[1] > 0 and h.dtype in types and weight.dtype in types and dtype in types


def _check(h: Tensor, weight: Tensor, V: int, *per_row: Tensor) -> None:
    """The kernels trust sizes, so a direct call of the op must not get past here with others."""
    if not 0 < V <= weight.shape[0] or h.shape[1:] != weight.shape[1:] or any(a.shape != h.shape[:1] for a in per_row):
        shapes = [tuple(a.shape) for a in (h, weight, *per_row)]
        raise ValueError(f"shapes {shapes} with a vocabulary of {V} do not fit together")


def _call(name: str, h: Tensor, weight: Tensor, targets: Tensor, n: int, V: int, dtype: torch.dtype, *more):
    bf16 = torch.bfloat16
    error = getattr(_library, name)(
        ISAS.index(_isa), torch.get_num_threads(), h.data_ptr(), h.dtype == bf16, weight.data_ptr(),
        weight.dtype == bf16, dtype == bf16, targets.data_ptr(), n, h.shape[1], V,
        *(None if a is None else a.data_ptr() for a in more),
    )  # fmt: skip
    if error == 1:
        y = targets[:n]
        raise ValueError(f"targets reach from {y.min()} to {y.max()}; they must lie in 0..{V - 1}")
    if error:
        raise (MemoryError("no memory for the scratch of the CPU kernels") if error == 2 else ValueError(f"bad {name}"))


@lce_forward.register_kernel("cpu")
def _forward(h, weight, targets, n_rows, valid_vocab, dtype, need_dh):
    if not _serves(h, weight, dtype):
        return lce_forward._init_fn(h, weight, targets, n_rows, valid_vocab, dtype, need_dh)
    _check(h, weight, valid_vocab, targets)
    h, weight, targets = h.contiguous(), weight.contiguous(), targets.long().contiguous()
    N, n = h.shape[0], max(0, _count(n_rows, h.shape[0]))
    nll, lse = h.new_zeros(N, dtype=torch.float32), h.new_zeros(N, dtype=torch.float32)
    dh = h.new_empty(N if need_dh else 0, h.shape[1])
    dh[n:] = 0
    _call("tdlm_lce_forward", h, weight, targets, n, valid_vocab, dtype, nll, lse, dh if need_dh else None)
    return nll, lse, dh


@lce_backward_weight.register_kernel("cpu")
def _backward_weight(h, weight, targets, lse, grad, n_rows, valid_vocab, dtype):
    if not _serves(h, weight, dtype):
        return lce_backward_weight._init_fn(h, weight, targets, lse, grad, n_rows, valid_vocab, dtype)
    _check(h, weight, valid_vocab, targets, lse, grad)
    h, weight, targets, lse, grad = (a.contiguous() for a in (h, weight, targets.long(), lse.float(), grad.float()))
    n, dw = max(0, _count(n_rows, h.shape[0])), torch.empty_like(weight)
    dw[valid_vocab:] = 0
    _call("tdlm_lce_backward_weight", h, weight, targets, n, valid_vocab, dtype, lse, grad, dw)
    return dw


@lce_sum.register_kernel("cpu")
def _sum(h, weight, targets, token_weights, n_rows, valid_vocab, dtype):
    if not _serves(h, weight, dtype):
        return lce_sum._init_fn(h, weight, targets, token_weights, n_rows, valid_vocab, dtype)
    _check(h, weight, valid_vocab, targets, token_weights)
    h, weight, targets, g = (a.contiguous() for a in (h, weight, targets.long(), token_weights.float()))
    n = max(0, _count(n_rows, h.shape[0]))
    nll, lse = h.new_empty(n, dtype=torch.float32), h.new_empty(n, dtype=torch.float32)
    dh, dw = torch.empty_like(h), torch.empty_like(weight)
    dh[n:], dw[valid_vocab if n else 0 :] = 0, 0
    _call("tdlm_lce_sum", h, weight, targets, n, valid_vocab, dtype, g, nll, lse, dh, dw)
    return nll.dot(g[:n]), dh, dw


@_corrupt.register_kernel("cpu")
def _corrupt_natively(
    x0, valid, seed, step, seed_at, step_at, mask_token_id, schedule, sampling, row_offset, batch_rows
):
    seed, step = seed if seed_at is None else int(seed_at), step if step_at is None else int(step_at)
    if _isa is None or sampling == "counts":
        rest = (mask_token_id, schedule, sampling, row_offset, batch_rows)
        return _corrupt._init_fn(x0, valid, seed, step, None, None, *rest)
    if x0.dtype != torch.int64 or valid is not None and (valid.shape != x0.shape or valid.dtype != torch.bool):
        raise ValueError("x0 must be (B, T) int64, and valid must be (B, T) bool")
    (B, T), x0 = x0.shape, x0.contiguous()
    if not 0 <= row_offset <= batch_rows - B:
        raise ValueError(f"rows {row_offset} to {row_offset + B} lie outside batch_rows = {batch_rows}")
    valid = None if valid is None else valid.contiguous()
    xt, masked = torch.empty_like(x0), torch.empty_like(x0, dtype=torch.bool)
    weights = torch.empty_like(x0, dtype=torch.float32)
    rows, targets = x0.new_empty(B * T), x0.new_empty(B * T)
    t, row_weights = weights.new_empty(B), weights.new_empty(B * T)
    threshold, weight = table(schedule)
    n = _library.tdlm_corrupt(
        x0.data_ptr(), None if valid is None else valid.data_ptr(), B, T, seed & MASK, step & MASK, mask_token_id,
        threshold.data_ptr(), weight.data_ptr(), SAMPLINGS.index(sampling), row_offset, batch_rows,
        *(a.data_ptr() for a in (xt, masked, weights, t, rows, targets, row_weights)),
    )  # fmt: skip
    return [xt, masked, weights, t, rows, targets, row_weights, torch.tensor(n)]


@functools.lru_cache(8)
def _rotation(T: int, K: int) -> Tensor:
    return rotation(T, K, "cpu")


def serves_attention(q: Tensor) -> bool:
    """Whether q (B, H, T, K) has kernels here; others take PyTorch's attention."""
    return _isa is not None and q.dtype in (torch.float32, torch.bfloat16) and q.numel() > 0


def _attend(inputs: tuple, out: Tensor, grads: tuple) -> None:
    """Fill out, or, where there are grads to fill, read it as the gradient of the output."""
    q, k, v, valid, segments, key, causal, dropout_p, rope = inputs
    B, H, T, K = q.shape
    if not (q.shape == k.shape == v.shape == out.shape and q.dtype == k.dtype == v.dtype == out.dtype):
        raise ValueError(f"q, k, v have shapes {[tuple(a.shape) for a in (q, k, v)]} or types that differ")
    if any(a is not None and a.shape != (B, T) for a in (valid, segments)):
        raise ValueError(f"valid and segments must be (B, T) = {(B, T)}")
    if rope and K % 2:
        raise ValueError(f"rope turns pairs; the head size {K} must be even")
    tensors = [a if a.stride(-1) == 1 else a.contiguous() for a in (q, k, v, out)] + list(grads)
    valid = None if valid is None else valid.bool().contiguous()
    segments = None if segments is None else segments.long().contiguous()
    turns = _rotation(T, K) if rope else None
    words = (ctypes.c_uint32 * 2)(*key.tolist()) if dropout_p else None
    error = _library.tdlm_attention(
        ISAS.index(_isa), torch.get_num_threads(), bool(grads), q.dtype == torch.bfloat16, causal,
        (_P * 7)(*(a.data_ptr() for a in tensors)), (_L * 21)(*(s for a in tensors for s in a.stride()[:3])),
        B, H, T, K, None if valid is None else valid.data_ptr(), None if segments is None else segments.data_ptr(),
        None if turns is None else turns.data_ptr(), words, _threshold(dropout_p), 1 / (1 - dropout_p),
    )  # fmt: skip
    if error:
        raise MemoryError("no memory for the scratch of the CPU kernels") if error == 2 else ValueError("bad attention")


@tile_attention.register_kernel("cpu")
def _tile_attention(q, k, v, valid, segments, key, causal, dropout_p, rope=False):
    inputs = (q, k, v, valid, segments, key, causal, dropout_p, rope)
    if not serves_attention(q):
        return tile_attention._init_fn(*inputs)
    out = _rows_first(q)
    _attend(inputs, out, ())
    return out


@tile_attention_backward.register_kernel("cpu")
def _tile_attention_backward(dout, q, k, v, valid, segments, key, causal, dropout_p, rope=False):
    inputs = (q, k, v, valid, segments, key, causal, dropout_p, rope)
    if not serves_attention(q):
        return tile_attention_backward._init_fn(dout, *inputs)
    grads = tuple(_rows_first(q) for _ in range(3))
    _attend(inputs, dout.to(q.dtype), grads)
    return grads


ROWS_OF_TASK = 256  # of the functions of rows; sums over rows are cut there, whatever the number of threads


def _transformed() -> bool:
    """Whether torch.func or forward-mode AD is at work, which a custom op would answer with zeros."""
    return torch.autograd.forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


def serves_rows(x: Tensor, weight: Tensor | None = None) -> bool:
    """Whether swiglu, or rms_norm where there is a weight, has kernels here for x (..., n)."""
    if _isa is None or not x.is_cpu or not x.numel() or _transformed():
        return False
    if weight is None:
        return x.dtype in (torch.float32, torch.bfloat16) and x.shape[-1] % 2 == 0
    return x.dtype == weight.dtype == torch.float32 and x.shape[-1] % 16 == 0 and weight.shape == x.shape[-1:]


def _rows(x: Tensor, dy: Tensor | None, y: Tensor, n: int, weight=None, dw=None, eps: float = 0.0) -> None:
    pointers = (None if a is None else a.data_ptr() for a in (x, dy, y, weight, dw))
    bf16, rows = x.dtype == torch.bfloat16, x.numel() // x.shape[-1]
    if _library.tdlm_rows(ISAS.index(_isa), torch.get_num_threads(), bf16, *pointers, rows, n, ROWS_OF_TASK, eps):
        raise MemoryError("no memory for the scratch of the CPU kernels")


@swiglu_forward.register_kernel("cpu")
def _swiglu(x):
    if not serves_rows(x):
        return swiglu_forward._init_fn(x)
    x, n = x.contiguous(), x.shape[-1] // 2
    y = x.new_empty(*x.shape[:-1], n)
    _rows(x, None, y, n)
    return y


@swiglu_backward.register_kernel("cpu")
def _swiglu_backward(dy, x):
    n = x.shape[-1] // 2
    if not serves_rows(x):
        return swiglu_backward._init_fn(dy, x)
    if dy.shape != (*x.shape[:-1], n):
        raise ValueError(f"dy has shape {tuple(dy.shape)}; it must be {(*x.shape[:-1], n)}")
    x, dx = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    _rows(x, dy.to(x.dtype).contiguous(), dx, n)
    return dx


@rms_norm_forward.register_kernel("cpu")
def _rms_norm(x, weight, eps):
    if not serves_rows(x, weight):
        return rms_norm_forward._init_fn(x, weight, eps)
    x, weight = x.contiguous(), weight.contiguous()
    y = torch.empty_like(x)
    _rows(x, None, y, len(weight), weight, None, eps)
    return y


@rms_norm_backward.register_kernel("cpu")
def _rms_norm_backward(dy, x, weight, eps):
    if not serves_rows(x, weight):
        return rms_norm_backward._init_fn(dy, x, weight, eps)
    if dy.shape != x.shape:
        raise ValueError(f"dy has shape {tuple(dy.shape)}; it must be {tuple(x.shape)}")
    x, weight, n = x.contiguous(), weight.contiguous(), len(weight)
    dx, dw = torch.empty_like(x), x.new_empty(-(-x.numel() // (n * ROWS_OF_TASK)), n)
    _rows(x, dy.float().contiguous(), dx, n, weight, dw, eps)
    return dx, dw.sum(0)


use(os.environ.get("TDLM_CPU_ISA") or None)
