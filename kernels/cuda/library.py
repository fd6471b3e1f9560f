"""The native CUDA kernels (csrc/cuda), loaded through ctypes: for a GPU machine without Triton."""

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch

from ..dispatch import backend

_ABI = 1
PATH = Path(__file__).with_name("_native.so")
_P, _I, _L = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_ARGUMENTS = {
    "tdlm_cuda_abi": (),
    "tdlm_cuda_runs": (_I,),
    "tdlm_cuda_error": (_I,),
    "tdlm_cuda_lce_forward": (_I, _P, _I, _P, _P, _P, _P, _L, _I, _L, _I, _I, *[_P] * 6),
    "tdlm_cuda_lce_backward_weight": (_I, _P, _I, _P, _P, _P, _P, _L, _I, _L, _I, _I, *[_P] * 4),
}


def load(path: Path) -> tuple[ctypes.CDLL | None, str]:
    """Return (the library, "") or (None, why not)."""
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


handle: Any
handle, _missing = load(PATH)


def missing() -> str:
    """Return why this installation has no CUDA library, "" where it has."""
    return _missing


@functools.cache
def device_error(device: int) -> str:
    """Return why the library cannot run on a device (its driver, its capability), "" where it can."""
    error = handle.tdlm_cuda_runs(device)
    return handle.tdlm_cuda_error(error).decode() if error else ""


def describe() -> str:
    """Return whether the library is there and runs on the GPU at hand."""
    if _missing:
        return _missing
    if not torch.cuda.is_available():
        return "the CUDA library is built, and there is no GPU here"
    return device_error(torch.cuda.current_device()) or "the CUDA library is built, and runs on this GPU"


backend("cuda", missing)
