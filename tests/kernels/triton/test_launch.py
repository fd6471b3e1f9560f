"""The launch of a kernel: the GPU that it runs on, and what it may overlap with."""

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

pytest.importorskip("triton", reason="Triton is an extra: pip install -e .[triton]")

from tdlm_fast.kernels import hardware  # noqa: E402
from tdlm_fast.kernels.triton import launch  # noqa: E402
from tests.kernels.triton.machine import INTERPRETED, TTSEM  # noqa: E402


class OnGpu(torch.Tensor):
    """A CPU tensor that says it lies on the second GPU."""

    @property
    def device(self):
        return torch.device("cuda", 1)


class Kernel:
    def __init__(self, log):
        self.log = log

    def __getitem__(self, grid):
        return lambda *args, **options: self.log.append((grid, args, options))

    def warmup(self, *args, grid, **options):
        self.log.append("compiled")


@pytest.fixture
def current(monkeypatch):
    """The devices that were made current, the last one now."""
    devices = [torch.device("cuda", 0)]

    @contextlib.contextmanager
    def change(device):
        devices.append(device)
        yield
        devices.append(devices[0])

    monkeypatch.setattr(torch.cuda, "device", change)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: devices[-1].index)
    monkeypatch.setattr(hardware, "_card_of_gpu", lambda device: hardware.Card((9, 0), 132))
    return devices


def test_a_kernel_runs_where_its_tensors_lie(current):
    log = []
    x = torch.zeros(2).as_subclass(OnGpu)
    launch.start_kernel(Kernel(log), (3,), None, x, 7, BLOCK=4)
    ((grid, args, options),) = log
    assert grid == (3,) and args == (None, x, 7) and options["BLOCK"] == 4
    assert [d.index for d in current] == [0, 1, 0]
    current.append(torch.device("cuda", 1))
    launch.start_kernel(Kernel(log), (3,), x)
    assert [d.index for d in current] == [0, 1, 0, 1]  # it is current already


def test_kernels_overlap_from_hopper_on_unless_turned_off(current, monkeypatch):
    log, x = [], torch.zeros(2).as_subclass(OnGpu)
    for card, setting in (((9, 0), None), ((9, 0), "0"), ((8, 6), None)):
        monkeypatch.setattr(hardware, "_card_of_gpu", lambda device, card=card: hardware.Card(card, 46))
        monkeypatch.delenv("TDLM_PDL", raising=False) if setting is None else monkeypatch.setenv("TDLM_PDL", setting)
        launch.start_kernel(Kernel(log), (1,), x)
    launch.start_kernel(Kernel(log), (1,), torch.zeros(2))
    assert [(o["PDL"], o["launch_pdl"]) for *_, o in log] == [(True, True)] + [(False, False)] * 3


class Compiler(contextlib.nullcontext):
    """Stands for Triton's mode of compiling in the threads of a pool."""


def test_kernels_that_are_compiled_ahead_do_not_start_and_give_zeros(monkeypatch):
    from tdlm_fast.kernels import dispatch
    from tdlm_fast.kernels.triton import register, step_scalars

    started = []
    monkeypatch.setattr(launch.triton, "AsyncCompileMode", Compiler)
    for kernel in ("squares_kernel", "clip_kernel"):
        monkeypatch.setattr(step_scalars, kernel, Kernel(started))
    run = register._lazily("step_scalars", "clip_scale")
    grads, loss, steps = [torch.full((3,), 7.0)], torch.tensor(1.0), torch.tensor(0.0)
    outputs = []
    dispatch.compile_ahead(lambda: outputs.extend(run(loss, grads, 1.0, steps)))
    assert started == ["compiled"] * 2 and [a.item() for a in outputs] == [0, 0, 0]
    run(loss, grads, 1.0, steps)
    assert len(started) == 4 and started[-1][0] == (1,)
    assert not launch.compiles_only()


@pytest.mark.skipif(not hasattr(launch.triton, "AsyncCompileMode"), reason="this Triton has no AsyncCompileMode")
@pytest.mark.skipif(INTERPRETED or TTSEM, reason="it compiles for a GPU, and neither of these does")
def test_kernels_are_compiled_in_parallel_and_found_where_they_are_launched(monkeypatch, tmp_path):
    """By Triton's own mode and compiler, both passes of an op: the first launch compiles nothing more."""
    from tdlm_fast.kernels import swiglu
    from tdlm_fast.kernels.triton import swiglu as kernels
    from tests.kernels import fake_gpu

    both, threads = threading.Barrier(2), []

    def compiler(kernel):
        real = kernel.compile

        def run(*args, **options):
            both.wait(60)  # until the other kernel is being compiled too
            threads.append(threading.get_ident())
            return real(*args, **options)

        return run

    monkeypatch.setattr(launch.triton.knobs.cache, "dir", str(tmp_path))
    x, names = torch.randn(8, 64, requires_grad=True), ["swiglu.forward_kernel", "swiglu.backward_kernel"]
    with fake_gpu.FakeGpu(compiles=True) as gpu:
        for kernel in (kernels.forward_kernel, kernels.backward_kernel):
            assert kernel.device_caches[gpu.get_current_device()]  # Triton sets the kernel's compiler with its cache
            monkeypatch.setattr(kernel, "compile", compiler(kernel))
        launch.compile_ahead(lambda: swiglu(x).sum().backward(), threads=2)
        assert gpu.compiled == names and not gpu.launches and not x.grad.any()
        assert len(set(threads)) == 2 and threading.get_ident() not in threads
        for name in names:
            (held,) = getattr(kernels, name.split(".")[1]).device_caches[gpu.get_current_device()][0].values()
            assert held.asm["cubin"] and held.metadata.target.arch == 90 and held.name == name.split(".")[1]
        swiglu(x).sum().backward()
    assert gpu.compiled == names and [done.kernel for done in gpu.launches] == names


def test_threads_that_compile_parse_one_at_a_time(monkeypatch):
    """Python 3.11 raises SystemError where two threads are inside ast.parse."""
    inside, most = [], []

    def parse(kernel):
        inside.append(kernel)
        time.sleep(0.01)
        most.append(len(inside))
        inside.remove(kernel)
        return kernel

    def work():
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(launch.triton.JITFunction.parse, range(4))) == [0, 1, 2, 3]

    monkeypatch.setattr(launch.triton, "AsyncCompileMode", Compiler)
    monkeypatch.setattr(launch.triton.JITFunction, "parse", parse)
    launch.compile_ahead(work)
    assert most == [1] * 4 and launch.triton.JITFunction.parse is parse


def test_a_failure_while_compiling_ahead_leaves_kernels_that_start(monkeypatch):
    monkeypatch.setattr(launch.triton, "AsyncCompileMode", Compiler)
    with pytest.raises(ZeroDivisionError):
        launch.compile_ahead(lambda: 1 / 0)
    assert not launch.compiles_only()


def test_the_backward_pass_is_compiled_in_the_mode_too(monkeypatch):
    """Triton's mode holds in one thread. PyTorch runs the backward pass of a GPU in another one, unless told not to."""
    monkeypatch.setattr(launch.triton, "AsyncCompileMode", Compiler)
    inside = []
    launch.compile_ahead(lambda: inside.append(torch.autograd.is_multithreading_enabled()))
    assert inside == [False] and torch.autograd.is_multithreading_enabled()
