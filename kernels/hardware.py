"""Facts about the machine that ops and backends decide by: Triton, the GPU's capability, PyTorch's transforms."""

import contextlib
import functools
import importlib.util
from typing import NamedTuple

import torch
from torch._C._functorch import (  # pyright: ignore[reportMissingModuleSource]
    TransformType,
    get_interpreter_stack,
    peek_interpreter_stack,
)
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

TRITON_INSTALLED = importlib.util.find_spec("triton") is not None


class Card(NamedTuple):
    """What decides between kernels and their sizes on a GPU."""

    capability: tuple[int, int]
    multiprocessors: int


INTERPRETER = Card((8, 6), 4)  # the card that Triton's interpreter stands for, on CPU tensors
_pretended: list[Card] = []


@functools.cache
def _card_of_gpu(device: torch.device) -> Card:
    properties = torch.cuda.get_device_properties(device)
    return Card((properties.major, properties.minor), properties.multi_processor_count)


def card(device: torch.device) -> Card:
    """Return the card of a device; INTERPRETER for the CPU."""
    if _pretended:
        return _pretended[-1]
    return _card_of_gpu(device) if device.type == "cuda" else INTERPRETER


def has_triton() -> bool:
    """Return whether Triton is installed, or a card with it is pretended."""
    return TRITON_INSTALLED or bool(_pretended)


@contextlib.contextmanager
def pretend(capability: tuple[int, int], multiprocessors: int, tensors: type = FakeTensor):
    """Let Python code take the tensors of one class for tensors on such a card, with Triton, on a machine without it.

    They stay CPU tensors underneath: autograd refuses tensors of a device that PyTorch was built without.
    """
    _pretended.append(Card(capability, multiprocessors))
    tensors.is_cuda, tensors.is_cpu = True, False
    try:
        yield
    finally:
        _pretended.pop()
        del tensors.is_cuda, tensors.is_cpu


def takes_derivatives() -> bool:
    """Return whether forward-mode AD or a transform of torch.func that takes derivatives is active; vmap is none."""
    if forward_ad._current_level >= 0 or torch.compiler.is_compiling():  # a compiler cannot trace what follows
        return forward_ad._current_level >= 0
    return any(t.key() in (TransformType.Grad, TransformType.Jvp) for t in get_interpreter_stack() or ())


def is_transformed() -> bool:
    """Return whether torch.func or forward-mode AD is active: a custom op would answer it with zeros."""
    return forward_ad._current_level >= 0 or peek_interpreter_stack() is not None
