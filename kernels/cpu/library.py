"""The native CPU kernels (csrc/cpu), loaded through ctypes, and which instruction set's kernels run.

TDLM_CPU_ISA = avx512_bf16 | avx512 | avx2 | portable chooses the kernels of one instruction set, none the torch
references. By default the best set that the CPU has is taken.
"""

import ctypes
import os
from pathlib import Path
from typing import Any

import torch

from ..dispatch import backend, chosen

ISAS = ("portable", "avx2", "avx512", "avx512_bf16")  # worst first, as csrc/cpu/library.cpp numbers them
BAD_TARGET, NO_MEMORY = 1, 2  # errors of csrc/cpu/library.cpp
_ABI = 5
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
    """Return (the library, "") or (None, why not)."""
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
    try:  # where torch runs on OpenMP, the kernels run on its threads
        torch_cpu = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"))
        library.tdlm_use_threads_of(ctypes.cast(torch_cpu.GOMP_parallel, _P))
    except (OSError, AttributeError):
        pass
    return library, ""


handle: Any
handle, _missing = _load()
isa: str | None = None  # whose kernels run, None where the references do
why = ""  # isa is what it is


def missing() -> str:
    """Return why this machine has no CPU kernels, "" where it has."""
    return _missing


def serves(*types: torch.dtype) -> str:
    """Return why no kernel can run on tensors of these types, "" where one can."""
    if isa is None:
        return why
    return "" if all(t in (torch.float32, torch.bfloat16) for t in types) else "it takes fp32 and bf16"


def call(name: str, *arguments) -> int:
    """Call a function of the library for the instruction set and the threads in use. Return 0 or BAD_TARGET.

    A tensor is passed as the address of its data.
    """
    values = (a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments)
    error = getattr(handle, name)(ISAS.index(isa), torch.get_num_threads(), *values)
    if error == NO_MEMORY:
        raise MemoryError("no memory for the scratch of the CPU kernels")
    if error not in (0, BAD_TARGET):
        raise ValueError(name)
    return error


def available() -> list[str]:
    """Return the instruction sets that this build and this CPU have kernels for, best first."""
    return [] if handle is None else [n for i, n in reversed(list(enumerate(ISAS))) if handle.tdlm_has(i)]


def use(name: str | None) -> None:
    """Run the kernels of one instruction set from here on: "none" for the references, None for the best.

    Raises ValueError for a name that is unknown or not available.
    """
    global isa, why
    have = available()
    if name is None:
        isa, why = (have[0], f"the best of {', '.join(have)}") if have else (None, _missing)
    elif name == "none" or name in have:
        isa, why = (None if name == "none" else name), f"chosen as TDLM_CPU_ISA={name}"
    else:
        reason = _missing or f"this CPU has {', '.join(have)}"
        raise ValueError(f"TDLM_CPU_ISA is {name!r}; it must be one of {', '.join(ISAS)}, none, and {reason}")


def describe() -> str:
    """Return which CPU kernels are in use, and why."""
    if chosen("cpu") == "reference":
        return "torch references: chosen as the backend"
    return f"{isa or 'torch references'}: {why}"


use(os.environ.get("TDLM_CPU_ISA") or None)
backend("cpu", missing)
