"""Start a Triton kernel: on the GPU where its tensors lie, beside the end of the kernel before it, or compile it only.

Triton starts kernels on PyTorch's current device, which need not be the one of the tensors: start_kernel changes it
for the launch.

From compute capability 9.0 on, a kernel may start while the last programs of the kernel before it still run, which
hides the microseconds of a launch (programmatic dependent launch, CUDA programming guide). So every kernel calls
overlap(PDL) before it touches memory: it waits there until the kernel before it has ended and its writes are visible,
and allows the next kernel to start and wait in turn. TDLM_PDL=0 turns this off.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .. import hardware

_compiles_only = False


@triton.jit
def overlap(PDL: tl.constexpr):
    """Wait for the kernel before this one and let the next one start, where the launch says PDL."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()


def overlaps(device: torch.device) -> bool:
    """Return whether kernels on a device may start before the one before them has ended."""
    return device.type == "cuda" and hardware.card(device).capability >= (9, 0) and os.environ.get("TDLM_PDL") != "0"


def start_kernel(kernel, grid: tuple[int, ...], *args, **options) -> None:
    """Start kernel[grid](*args, **options) on the device of its first tensor. options: constants, num_warps, …"""
    device = next(a for a in args if isinstance(a, Tensor)).device
    early = overlaps(device)
    options |= {"PDL": early, "launch_pdl": early}
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        _start(kernel, grid, args, options)
    else:
        with torch.cuda.device(device):
            _start(kernel, grid, args, options)


def _start(kernel, grid, args, options) -> None:
    if _compiles_only:
        kernel.warmup(*args, grid=grid, **options)
    else:
        kernel[grid](*args, **options)


def compiles_only() -> bool:
    """Return whether kernels are compiled now and not started."""
    return _compiles_only


def compile_ahead(work: Callable[[], None], threads: int | None = None) -> None:
    """Compile the kernels that work() starts, in parallel, without starting them: their outputs are all 0.

    The compilers of the first step take about a second a kernel, one after the other. They run outside Python's lock.
    Triton's mode is that of one thread, so the backward pass runs in this one and not in PyTorch's own.
    """
    global _compiles_only
    one_thread = torch.autograd.set_multithreading_enabled(False)
    pool = ThreadPoolExecutor(threads or os.cpu_count())
    with _one_parser_at_a_time(), pool, triton.AsyncCompileMode(pool), one_thread:
        _compiles_only = True
        try:
            work()
        finally:
            _compiles_only = False


@contextlib.contextmanager
def _one_parser_at_a_time() -> Iterator[None]:
    """Let one thread at a time parse a kernel's source, which takes milliseconds of a compiler's second.

    Python 3.11 counts the depth of ast.parse for all threads together. Where its collector of garbage lets another
    thread parse in between, ast.parse raises SystemError ("AST constructor recursion depth mismatch").
    """
    parse, lock = triton.JITFunction.parse, threading.Lock()

    def alone(self):
        with lock:
            return parse(self)

    triton.JITFunction.parse = alone
    try:
        yield
    finally:
        triton.JITFunction.parse = parse
