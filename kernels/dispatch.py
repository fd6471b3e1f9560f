"""Which implementation of an op runs: one chain of links for each op and device, walked at every call.

An op's body is its reference, plain PyTorch. The backends (cpu, triton, cuda) add links with `implement`; the first
link that serves a call runs it, and the reference runs where none does. Ops never import a backend.
"""

import contextlib
import os
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

ORDER = ("triton", "cuda", "cpu")  # of the links of a chain
DEVICES = ("cuda", "cpu")


class Implementation(NamedTuple):
    backend: str
    serves: Callable[..., str]  # of the op's arguments: "" where it runs this call, else why not
    run: Callable


_ops: dict = {}  # op -> (its name, its body)
_links: dict[tuple, list[Implementation]] = {}  # (op, device) -> every link
_chains: dict[tuple, list[Implementation]] = {}  # (op, device) -> the links in use, in order
_missing: dict[str, Callable[[], str]] = {"reference": lambda: ""}
_compilers: list[Callable] = []  # of backends that compile while a program runs
_chosen: dict[str, str | None] = dict.fromkeys(DEVICES)  # device -> what use_backend puts first there


def op(name: str, fake: Callable, mutates_args=()):
    """Define torch.library.custom_op(name, mutates_args), whose body is the reference.

    fake returns empty outputs of the same arguments, by which PyTorch traces the op without running it.
    """

    def define(body: Callable):
        defined = torch.library.custom_op(name, body, mutates_args=mutates_args)
        defined.register_fake(fake)
        _ops[defined] = name.removeprefix("tdlm::"), body
        return defined

    return define


def first_only(name: str, instead: str) -> None:
    """Refuse second derivatives of an op, from its backward pass.

    PyTorch would take those of a gradient that an op returns for zero, and name neither op nor way out for the others.
    """
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # tracing always records
        raise RuntimeError(f"{name} has no second derivatives; use {instead}")


def differentiate(op, backward: Callable, instead: str) -> None:
    """Take backward(dy, *inputs) for the gradients of the op's first inputs. Among the inputs tensors come first.

    Second derivatives raise RuntimeError, which names what to use instead.
    """

    def save(ctx, inputs, output):
        tensors = [a for a in inputs if a is None or isinstance(a, Tensor)]
        ctx.save_for_backward(*tensors)
        ctx.rest = inputs[len(tensors) :]

    def run(ctx, dy):
        first_only(name(op), instead)
        inputs = (*ctx.saved_tensors, *ctx.rest)
        grads = backward(dy, *inputs)
        grads = [grads] if isinstance(grads, Tensor) else grads
        return *grads, *[None] * (len(inputs) - len(grads))

    op.register_autograd(run, setup_context=save)


def reference(op) -> Callable:
    """Return the op's own body."""
    return _ops[op][1]


def name(op) -> str:
    """Return the op's name without its namespace."""
    return _ops[op][0]


def backend(name: str, missing: Callable[[], str], compile_ahead: Callable | None = None) -> None:
    """Add a backend that can be chosen; missing returns "" or why it cannot be used on this machine.

    compile_ahead(work) compiles what work() will run, where the backend compiles while a program runs.
    """
    _missing[name] = missing
    if compile_ahead is not None:
        _compilers.append(compile_ahead)


def compile_ahead(work: Callable[[], None]) -> None:
    """Compile in parallel the kernels that work() runs on a GPU. They do not run now, and their outputs are all 0."""
    for compiler in _compilers:
        compiler(work)


def implement(op, device: str, backend: str, serves: Callable[..., str], run: Callable) -> None:
    """Add a link to the chain of an op and device; run has the arguments and results of the op."""
    key = op, device
    if key not in _chains:
        _links[key], _chains[key] = [], []
        op.register_kernel(device)(_walker(_chains[key], reference(op)))
    _links[key].append(Implementation(backend, serves, run))
    _arrange(key)


def _walker(chain: list[Implementation], reference: Callable) -> Callable:
    def run(*args):
        for link in chain:
            if not link.serves(*args):
                return link.run(*args)
        return reference(*args)

    return run


def _arrange(key: tuple) -> None:
    """Put the links of a chain in order, in place: the walkers hold the list."""
    first = _chosen[key[1]]
    ordered = sorted(_links[key], key=lambda link: (link.backend != first, ORDER.index(link.backend)))
    _chains[key][:] = [] if first == "reference" else ordered


def server(op, *args) -> Implementation | None:
    """Return the link that serves this call of an op, None where the reference does."""
    first: Tensor = args[0]
    for link in _chains.get((op, "cuda" if first.is_cuda else first.device.type), ()):
        if not link.serves(*args):
            return link
    return None


def answers(op, *args) -> list[tuple[str, str]]:
    """Return (backend, its answer) of each link in use for this call, in order, and of the reference."""
    links = _chains.get((op, "cuda" if args[0].is_cuda else args[0].device.type), ())
    return [*((link.backend, link.serves(*args)) for link in links), ("reference", "")]


def available_backends() -> list[str]:
    """Return the names that use_backend takes: the backends installed here, whether or not there is a GPU for them."""
    return [name for name, missing in _missing.items() if not missing()]


def chosen(device: str) -> str | None:
    """Return the backend that was put first for a device type, None where none was."""
    return _chosen[device]


def use_backend(name: str | None, devices: tuple[str, ...] = DEVICES):
    """Put one backend first in the chain of every op, or leave only the references: "reference"; None is the default.

    An op that the backend does not serve walks the rest of its chain. The choice is one for the whole process, threads
    included, and stays; as a context manager it ends with the block. Raises ValueError for an unknown name and for a
    backend that is not installed.
    """
    if name is not None and name not in _missing:
        raise ValueError(f"backend {name!r} is unknown; it must be one of {', '.join(_missing)}")
    if name is not None and (why := _missing[name]()):
        raise ValueError(f"backend {name!r} cannot be used here: {why}")
    before = dict(_chosen)
    _choose(dict.fromkeys(devices, name))
    undo = contextlib.ExitStack()
    undo.callback(_choose, before)
    return undo


def _choose(choices: dict[str, str | None]) -> None:
    _chosen.update(choices)
    for key in _chains:
        _arrange(key)


OLD_NAMES = {"triton": "triton", "native": "cuda", "none": "reference"}  # values of TDLM_CUDA_BACKEND


def use_environment() -> None:
    """Choose what TDLM_BACKEND names, for every op; or TDLM_CUDA_BACKEND, its older name, for every op on a GPU.

    Raises ValueError for an unknown name and for a backend that this machine cannot use.
    """
    name, old = os.environ.get("TDLM_BACKEND"), os.environ.get("TDLM_CUDA_BACKEND")
    if not name and old and old not in OLD_NAMES:
        raise ValueError(f"TDLM_CUDA_BACKEND is {old!r}; it must be one of {', '.join(OLD_NAMES)}")
    try:
        use_backend(name or None) if name or not old else use_backend(OLD_NAMES[old], ("cuda",))
    except ValueError as error:
        raise ValueError(f"{'TDLM_BACKEND' if name else 'TDLM_CUDA_BACKEND'}: {error}") from None
