"""Triton's own launch path on CPU tensors, with a driver that starts nothing.

    launches(body)   the kernels that body would start on a GPU, each with its grid and the device that is current

Binder, specialisation, cache key and options are Triton's. Compiling is left out, unless FakeGpu is asked for it: a
kernel is only counted where Triton would compile it. Kernels never run, and memory that they would write holds zeros.
Python code takes every tensor for one on a GPU. kernels/triton/launch.py, which chooses the device of a launch, is told
the index of that GPU.
"""

import contextlib
import sys
from typing import NamedTuple

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from tdlm_fast.kernels import dispatch, hardware
from tdlm_fast.kernels.triton import launch, register

CARD = hardware.Card((9, 0), 132)
REAL_DEVICE = torch.Tensor.device
DO_COMPILE = JITFunction._do_compile


class Launch(NamedTuple):
    kernel: str  # "attention.forward_kernel"
    grid: tuple[int, int, int]
    current: int  # index of the current device


def name_of(kernel: JITFunction) -> str:
    """Return "file.function" of a kernel."""
    return f"{kernel.fn.__module__.split('.')[-1]}.{kernel.fn.__name__}"


class Compiled:
    """What Triton holds of a compiled kernel and calls to launch it."""

    function, packed_metadata = 0, ()

    def __init__(self, gpu: "FakeGpu", name: str):
        self.gpu, self.name = gpu, name

    def launch_metadata(self, *args):
        return None

    def run(self, x, y, z, *args):
        self.gpu.launches.append(Launch(self.name, (x, y, z), self.gpu.current))


class FakeGpu(contextlib.ExitStack):
    """A machine whose tensors lie on the GPU of this index while device 0 is current, until the end of the block.

    compiles: kernels are compiled for CARD, by Triton's own ways, and then not loaded.
    """

    def __init__(self, index: int = 0, compiles: bool = False):
        super().__init__()
        self.index, self.current, self.compiles = index, 0, compiles
        self.launches: list[Launch] = []
        self.compiled: list[str] = []  # kernels in the order in which Triton would compile them, one for each cache key
        self.caches: set[JITFunction] = set()

    # The driver as Triton asks it. Its device is a key of Triton's caches: no other driver has met it.
    def is_active(self):
        return True

    def get_current_target(self):
        return GPUTarget("cuda", 10 * CARD.capability[0] + CARD.capability[1], 32)

    def get_current_device(self):
        return id(self), self.current

    def get_current_stream(self, device):
        return 0

    def compile(self, kernel: JITFunction, key, signature, device, constexprs, options, attrs, warmup):
        name = name_of(kernel)
        kernel.ASTSource(kernel, signature, constexprs, attrs)  # raises where they do not fit the kernel
        self.compiled.append(name)
        self.caches.add(kernel)
        if self.compiles:
            return DO_COMPILE(kernel, key, signature, device, constexprs, options, attrs, warmup)
        cache = kernel.device_caches[device][0]
        cache[key] = Compiled(self, name)
        return cache[key]

    def load(self, compiled: CompiledKernel) -> None:
        """Let a compiled kernel be launched as if it lay on the GPU."""
        compiled._run = Compiled(self, name_of(compiled.src.fn)).run

    @contextlib.contextmanager
    def device(self, device):
        """As torch.cuda.device."""
        before, self.current = self.current, torch.device(device).index
        try:
            yield
        finally:
            self.current = before

    def __enter__(self):
        active = driver._active
        driver.set_active(self)
        self.callback(setattr, driver, "_active", active)
        self.callback(self._forget)
        self._replace(JITFunction, "_do_compile", lambda kernel, *args: self.compile(kernel, *args))
        self._replace(CompiledKernel, "_init_handles", lambda compiled: self.load(compiled))
        self._replace(torch.cuda, "current_device", lambda: self.current)
        self._replace(torch.cuda, "device", self.device)
        self._replace(torch, "empty", torch.zeros)
        self._replace(torch, "empty_like", torch.zeros_like)
        self._replace(torch.Tensor, "new_empty", torch.Tensor.new_zeros)
        self.enter_context(registered_on_the_cpu())
        self.enter_context(hardware.pretend(*CARD, torch.Tensor))
        far = torch.device("cuda", self.index)
        self._replace(torch.Tensor, "device", property(lambda x: far if _asked_by_launch() else REAL_DEVICE.__get__(x)))
        return self

    def _replace(self, owner, name: str, value) -> None:
        if name in vars(owner):
            self.callback(setattr, owner, name, getattr(owner, name))
        else:  # it is inherited
            self.callback(delattr, owner, name)
        setattr(owner, name, value)

    def _forget(self) -> None:
        for kernel in self.caches:
            for device in [d for d in kernel.device_caches if isinstance(d, tuple) and d[0] == id(self)]:
                del kernel.device_caches[device]


def _asked_by_launch() -> bool:
    """Return whether the code that reads a tensor's device is kernels/triton/launch.py."""
    return sys._getframe(2).f_globals["__name__"] == launch.__name__


@contextlib.contextmanager
def registered_on_the_cpu():
    """Let the Triton kernels serve CPU tensors."""
    links = {key: list(chain) for key, chain in dispatch._links.items()}
    register.register("cpu")
    try:
        yield
    finally:
        for key, chain in dispatch._links.items():
            chain[:] = links.get(key, [])
            dispatch._arrange(key)


def launches(body, index: int = 0) -> list[Launch]:
    """Return what body() launches where its tensors lie on the GPU of this index."""
    with FakeGpu(index) as gpu:
        body()
    return gpu.launches
