"""The native CUDA kernels (csrc/cuda), through ctypes: the linear cross-entropy of a GPU machine without Triton.

TDLM_CUDA_BACKEND = triton | native | none chooses what serves the op on a GPU; none means the torch references. Left
out, it is Triton where that is installed and else these kernels where they were built. They need compute capability
8.0; fp64 and heads wider than 256 run as the reference.
"""

import ctypes
import functools
import importlib.util
import os
from pathlib import Path

import torch
from torch import Tensor

from ..ops.linear_cross_entropy import lce_backward_weight, lce_forward
from ..triton.register import _fit, _hardware
from ..triton.register import describe as describe_triton

BACKENDS = ("triton", "native", "none")
TYPES = (torch.float32, torch.bfloat16, torch.float16)  # as csrc/cuda/linear_cross_entropy.cu numbers them
ROWS, MAX_PARTS, MAX_WIDTH = 64, 16, 256
_ABI = 1
_PATH = Path(__file__).with_name("_native.so")
_P, _I, _L = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_ARGUMENTS = {
    "tdlm_cuda_abi": (),
    "tdlm_cuda_runs": (_I,),
    "tdlm_cuda_error": (_I,),
    "tdlm_cuda_lce_forward": (_I, _P, _I, _P, _P, _P, _P, _L, _I, _L, _I, _I, *[_P] * 6),
    "tdlm_cuda_lce_backward_weight": (_I, _P, _I, _P, _P, _P, _P, _L, _I, _L, _I, _I, *[_P] * 4),
}


def load(path: Path) -> tuple[ctypes.CDLL | None, str]:
    """(the library, "") or (None, why not)."""
    if not path.exists():
        return None, "the CUDA library was not built: install a CUDA toolkit (nvcc) and install tdlm_fast again"
    try:
        library = ctypes.CDLL(str(path))
        for name, types in _ARGUMENTS.items():
            getattr(library, name).argtypes = types
    except (OSError, AttributeError) as error:
        return None, f"the CUDA library does not load, install tdlm_fast again: {error}"
    if library.tdlm_cuda_abi() != _ABI:
        return None, "the CUDA library is of another version: install tdlm_fast again"
    library.tdlm_cuda_error.restype = ctypes.c_char_p
    return library, ""


_library, _why_missing = load(_PATH)


def choose(asked: str | None) -> tuple[str, str]:
    """(backend, why) for a value of TDLM_CUDA_BACKEND. Raises ValueError where it cannot be had."""
    triton = importlib.util.find_spec("triton") is not None
    if asked is None:
        if triton:
            return "triton", "Triton is installed"
        return ("none", f"no Triton, and {_why_missing}") if _why_missing else ("native", "Triton is not installed")
    missing = {"triton": "" if triton else "Triton is not installed: pip install triton", "native": _why_missing}
    if asked not in BACKENDS or missing.get(asked):
        reason = missing.get(asked) or f"it must be one of {', '.join(BACKENDS)}"
        raise ValueError(f"TDLM_CUDA_BACKEND is {asked!r}; {reason}")
    return asked, f"chosen as TDLM_CUDA_BACKEND={asked}"


backend, _why = choose(os.environ.get("TDLM_CUDA_BACKEND"))


@functools.cache
def _error(device: int) -> str:
    """Why the library cannot run on this device (its driver, its capability), or nothing."""
    error = _library.tdlm_cuda_runs(device)
    return _library.tdlm_cuda_error(error).decode() if error else ""


def describe() -> str:
    """What serves the linear cross-entropy of a GPU, and why."""
    names = {"triton": "Triton", "native": "native CUDA", "none": "torch references"}
    if not torch.cuda.is_available():
        return f"no GPU here; one would have {names[backend]}: {_why}"
    if backend == "triton":
        return describe_triton()
    if backend == "native" and (error := _error(torch.cuda.current_device())):
        return f"torch references: {error}"
    return f"{names[backend]}: {_why}"


def _serves(h: Tensor, weight: Tensor, dtype: torch.dtype) -> bool:
    types = all(t in TYPES for t in (h.dtype, weight.dtype, dtype))
    return types and h.numel() > 0 and h.shape[1] <= MAX_WIDTH and not _error(h.get_device())


def _call(name: str, h: Tensor, weight: Tensor, targets: Tensor, n_rows: Tensor | None, V: int, parts: int,
          out: Tensor, *more: Tensor | None) -> None:  # fmt: skip
    """Launch on the current stream of h's device; on the CPU only the tests' emulator runs, and it has none."""
    stream = torch.cuda.current_stream(h.device).cuda_stream if h.is_cuda else None
    n_rows = None if n_rows is None else n_rows.to(h.device, torch.int64)
    tensors = (None if a is None else a.data_ptr() for a in (h, weight, targets, n_rows))
    with torch.cuda.device_of(h):
        error = getattr(_library, name)(
            h.get_device(), stream, TYPES.index(h.dtype), *tensors, *h.shape, V, parts, out.dtype == torch.float32,
            *(None if a is None else a.data_ptr() for a in more),
        )  # fmt: skip
    if error:
        raise RuntimeError(f"{name}: {_library.tdlm_cuda_error(error).decode()}")


def forward(h, weight, targets, n_rows, valid_vocab, dtype, need_dh):
    """lce_forward. A target outside the vocabulary gives NaN: to look for one would wait for the device."""
    if not _serves(h, weight, dtype):
        return lce_forward._init_fn(h, weight, targets, n_rows, valid_vocab, dtype, need_dh)
    _fit(h, weight, valid_vocab, targets)
    N, D = h.shape
    x, w = h.to(dtype).contiguous(), weight[:valid_vocab].to(dtype).contiguous()
    row_tiles = -(-N // ROWS)
    parts = max(1, min(MAX_PARTS, 4 * _hardware(h.device)[1] // row_tiles, -(-valid_vocab // ROWS)))
    m, total = (h.new_empty(parts, N, dtype=torch.float32) for _ in range(2))
    nll, lse = (h.new_empty(N, dtype=torch.float32) for _ in range(2))
    acc = h.new_empty(parts, N, D, dtype=torch.float32) if need_dh else None
    dh = h.new_empty(N if need_dh else 0, D, dtype=dtype if h.dtype == dtype else torch.float32)
    _call("tdlm_cuda_lce_forward", x, w, targets.long().contiguous(), n_rows, valid_vocab, parts, dh,
          m, total, acc, nll, lse, dh if need_dh else None)  # fmt: skip
    return nll, lse, dh.to(h.dtype)


def backward_weight(h, weight, targets, lse, grad, n_rows, valid_vocab, dtype):
    """lce_backward_weight."""
    if not _serves(h, weight, dtype):
        return lce_backward_weight._init_fn(h, weight, targets, lse, grad, n_rows, valid_vocab, dtype)
    _fit(h, weight, valid_vocab, targets, lse, grad)
    N, D = h.shape
    x, w = h.to(dtype).contiguous(), weight[:valid_vocab].to(dtype).contiguous()
    lse, grad = lse.float().contiguous(), grad.float().contiguous()
    top = None
    if dtype == torch.float16:  # rows past the count may hold anything
        top = grad if n_rows is None else grad.where(torch.arange(N, device=h.device) < n_rows, 0)
        top = top.abs().amax()
    parts = max(1, min(MAX_PARTS, 2 * _hardware(h.device)[1] // -(-valid_vocab // ROWS), -(-N // ROWS)))
    whole = parts == 1 and weight.dtype == dtype
    dw = h.new_empty(parts, valid_vocab, D, dtype=dtype if whole else torch.float32)
    _call("tdlm_cuda_lce_backward_weight", x, w, targets.long().contiguous(), n_rows, valid_vocab, parts, dw,
          lse, grad, top, dw)  # fmt: skip
    dw = (dw[0] if parts == 1 else dw.sum(0)).to(weight.dtype)
    unused = len(weight) - valid_vocab
    return torch.cat((dw, dw.new_zeros(unused, D))) if unused else dw


if backend == "native":
    lce_forward.register_kernel("cuda")(forward)
    lce_backward_weight.register_kernel("cuda")(backward_weight)
elif backend == "none":  # whatever was registered before
    lce_forward.register_kernel("cuda")(lce_forward._init_fn)
    lce_backward_weight.register_kernel("cuda")(lce_backward_weight._init_fn)
