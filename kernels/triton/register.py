"""The Triton kernels as the CUDA backend of the ops. Triton is imported when an op first runs on a GPU.

Without Triton, before Ampere (compute capability 8.0) and for fp64 the torch references run. With TRITON_INTERPRET=1
the same code serves CPU tensors, through `interpret()`: that is how the tests prove it without a GPU.
"""

import functools
import importlib.util
import warnings

import torch

from ..cpu.library import _transformed
from ..ops.corrupt import _corrupt
from ..ops.linear_cross_entropy import lce_backward_rows, lce_backward_weight, lce_forward, lce_sum
from ..philox import MASK
from . import tiles as lce_plan

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_T = 1 << 12  # of corrupt by counts: a program holds its sequence, and longer ones spill


@functools.cache
def _hardware(device: torch.device) -> tuple[int | None, int]:
    """(card of lce_plan, multiprocessors); of a small sm_86 where the interpreter stands in for it."""
    if device.type != "cuda":
        return 86, 4
    properties = torch.cuda.get_device_properties(device)
    return lce_plan.card((properties.major, properties.minor)), properties.multi_processor_count


@functools.cache
def missing() -> str:
    """Why Triton kernels cannot run at all, or nothing."""
    if importlib.util.find_spec("triton") is None:
        from ..cuda import library as native_cuda

        why = "Triton is not installed: pip install triton (triton-windows on Windows)"
        head = "native CUDA serves the head on the GPU, " if native_cuda.backend == "native" else ""
        rest = "torch references the rest" if head else "the torch references run on the GPU"
        warnings.warn(f"tdlm_fast: {head}{rest}. {why}", stacklevel=3)
        return why
    return ""


def describe() -> str:
    """Which kernels serve the GPU, and why."""
    if not torch.cuda.is_available():
        return "no GPU here"
    found, _ = _hardware(torch.device("cuda", torch.cuda.current_device()))
    if missing() or found is None:
        return f"torch references: {missing() or 'the Triton kernels need compute capability 8.0'}"
    sums = "fp16" if lce_plan.half_sums(found) else "fp32"
    return f"Triton, tiles of sm_{found}, sums of products in {sums}"


def served() -> dict[str, str]:
    """What serves the ops of this GPU that the head's backend does not choose."""
    by = describe()
    triton = by.startswith("Triton")
    longer = f"Triton; with sampling=counts past {MAX_T} tokens a row the torch reference"
    rows = {"corrupt": longer if triton else by}
    return rows | dict.fromkeys(("rms_norm", "swiglu"), "Triton" if triton else "PyTorch")


def _serves(device: torch.device, *dtypes: torch.dtype) -> bool:
    return not missing() and _hardware(device)[0] is not None and all(d in DTYPES for d in dtypes)


def serves_rows(*tensors: torch.Tensor) -> bool:
    """Whether swiglu and rms_norm of these have Triton kernels: a GPU's tensors that no transform is at work on."""
    x, dtypes = tensors[0], {a.dtype for a in tensors}
    return x.is_cuda and x.numel() > 0 and not _transformed() and _serves(x.device, *dtypes)


def _plan(h, weight, dtype, need_dh=True) -> lce_plan.Plan | None:
    card, processors = _hardware(h.device)
    return lce_plan.fused(
        card, len(h), h.shape[1], len(weight), h.dtype, weight.dtype, dtype, processors=processors, need_dh=need_dh
    )


def _fit(h, weight, valid_vocab, *per_row):
    """The kernels trust sizes, so a direct call of the op must not get past here with others."""
    rows = any(a.shape != h.shape[:1] for a in per_row)
    if not 0 < valid_vocab <= len(weight) or h.dim() != 2 or h.shape[1:] != weight.shape[1:] or rows:
        shapes = [tuple(a.shape) for a in (h, weight, *per_row)]
        raise ValueError(f"shapes {shapes} with a vocabulary of {valid_vocab} do not fit together")


def forward(h, weight, targets, n_rows, valid_vocab, dtype, need_dh):
    if not h.numel() or not _serves(h.device, h.dtype, weight.dtype, dtype):
        return lce_forward._init_fn(h, weight, targets, n_rows, valid_vocab, dtype, need_dh)
    _fit(h, weight, valid_vocab, targets)
    plan = _plan(h, weight, dtype, need_dh)
    if plan is None:
        from . import linear_cross_entropy_chunked as lce_stored

        return lce_stored.forward(h, weight, targets, n_rows, valid_vocab, dtype, need_dh, _hardware(h.device))
    from . import linear_cross_entropy as lce_triton

    return lce_triton.forward(h, weight, targets, n_rows, valid_vocab, need_dh, plan)


def backward_weight(h, weight, targets, lse, grad, n_rows, valid_vocab, dtype):
    if not h.numel() or not _serves(h.device, h.dtype, weight.dtype, dtype):
        return lce_backward_weight._init_fn(h, weight, targets, lse, grad, n_rows, valid_vocab, dtype)
    _fit(h, weight, valid_vocab, targets, lse, grad)
    plan = _plan(h, weight, dtype)
    if plan is None:
        from . import linear_cross_entropy_chunked as lce_stored

        where = _hardware(h.device)
        return lce_stored.backward_weight(h, weight, targets, lse, grad, n_rows, valid_vocab, dtype, where)
    from . import linear_cross_entropy as lce_triton

    return lce_triton.backward_weight(h, weight, targets, lse, grad, n_rows, valid_vocab, plan)


def sums_in_forward(h, weight, dtype) -> bool:
    """Whether a GPU makes the loss and both gradients of a weighted sum at once, of one softmax: the stored form."""
    from ..cuda import library as native_cuda

    if native_cuda.backend != "triton":
        return False
    return h.numel() > 0 and _serves(h.device, h.dtype, weight.dtype, dtype) and _plan(h, weight, dtype) is None


def loss_sum(h, weight, targets, token_weights, n_rows, valid_vocab, dtype):
    if not sums_in_forward(h, weight, dtype):
        return lce_sum._init_fn(h, weight, targets, token_weights, n_rows, valid_vocab, dtype)
    _fit(h, weight, valid_vocab, targets, token_weights)
    from . import linear_cross_entropy_chunked as lce_stored

    where = _hardware(h.device)
    return lce_stored.loss_sum(h, weight, targets, token_weights, n_rows, valid_vocab, dtype, where)


def backward_rows(dh, grad, n_rows):
    if not dh.numel() or not _serves(dh.device, dh.dtype, grad.dtype):
        return lce_backward_rows._init_fn(dh, grad, n_rows)
    if grad.shape != dh.shape[:1]:
        raise ValueError(f"grad has shape {tuple(grad.shape)}; it must be {tuple(dh.shape[:1])}")
    from . import linear_cross_entropy as lce_triton

    return lce_triton.backward_rows(dh, grad, n_rows)


def corrupt(x0, valid, seed, step, seed_at, step_at, mask_token_id, schedule, sampling, row_offset, batch_rows):
    rest = (mask_token_id, schedule, sampling, row_offset, batch_rows)
    if not x0.numel() or sampling == "counts" and x0.shape[1] > MAX_T or not _serves(x0.device):
        return _corrupt._init_fn(x0, valid, seed, step, seed_at, step_at, *rest)
    if x0.dtype != torch.int64 or valid is not None and (valid.shape != x0.shape or valid.dtype != torch.bool):
        raise ValueError("x0 must be (B, T) int64, and valid must be (B, T) bool")
    from . import corrupt as corrupt_triton

    return corrupt_triton.corrupt(x0, valid, seed & MASK, step & MASK, seed_at, step_at, *rest)


def register(device: str) -> None:
    """Let the kernels serve a device type: "cuda", or "cpu" in a process of Triton's interpreter."""
    lce_forward.register_kernel(device)(forward)
    lce_backward_weight.register_kernel(device)(backward_weight)
    lce_backward_rows.register_kernel(device)(backward_rows)
    lce_sum.register_kernel(device)(loss_sum)
    _corrupt.register_kernel(device)(corrupt)


register("cuda")
