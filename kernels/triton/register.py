"""The Triton kernels as implementations of the ops: which kernel serves which op, and when.

Triton is imported when a kernel first runs. A GPU before compute capability 8.0 (Ampere), a machine without Triton and
fp64 tensors use the next link of the chain. With TRITON_INTERPRET=1 the same code serves CPU tensors after
`register("cpu")`: that is how the tests prove it without a GPU.
"""

import functools
import importlib
import warnings

import torch

from .. import hardware
from ..dispatch import backend, implement
from ..ops.attention import tile_attention, tile_attention_backward
from ..ops.batch import draw
from ..ops.corrupt import BY_COUNT, corrupt_op
from ..ops.embedding import embedding_backward
from ..ops.gathered_cross_entropy import lce_gathered, lce_gathered_backward
from ..ops.lazy_adamw import catch_up, update_rows
from ..ops.linear_cross_entropy import lce_backward_rows, lce_backward_weight, lce_forward, lce_sum
from ..ops.next_token import next_token
from ..ops.rms_norm import add_rms_norm_backward, add_rms_norm_forward, rms_norm_backward, rms_norm_forward
from ..ops.rotary import turn
from ..ops.rows import put_rows
from ..ops.stable_sort import serves as sorts_at_once
from ..ops.stable_sort import stable_order
from ..ops.step_scalars import clip_scale, record
from ..ops.swiglu import swiglu_backward, swiglu_forward
from . import tiles

TYPES = (torch.float32, torch.bfloat16, torch.float16)


def missing() -> str:
    """Return why Triton kernels cannot run at all, "" where they can."""
    return "" if hardware.has_triton() else "Triton is not installed: pip install triton (triton-windows on Windows)"


@functools.cache
def warn(why: str) -> None:
    warnings.warn(f"tdlm_fast: no Triton kernels on this GPU, so slower ones run. {why}", stacklevel=5)


def machine(x: torch.Tensor, *_) -> str:
    """Return why no Triton kernel runs where x lies, "" where they do."""
    if why := missing():
        warn(why)
        return why
    if hardware.card(x.device).capability < (8, 0):
        return "Triton kernels need compute capability 8.0"
    return ""


def filled(x: torch.Tensor) -> str:
    """Return machine's answer, or that x is empty."""
    return machine(x) or ("" if x.numel() else "there is nothing to compute")


def typed(first: torch.Tensor, *rest: torch.Tensor | None, dtype: torch.dtype = torch.float32) -> str:
    """Return filled's answer, or that one of the tensors, or dtype, is of another type."""
    types = [dtype, *(a.dtype for a in (first, *rest) if a is not None)]
    return filled(first) or ("" if all(t in TYPES for t in types) else "it takes fp32, bf16 and fp16")


def fused(h, weight, dtype) -> str:
    too_wide = "the model is too wide for the fused form"
    return too_wide if h.shape[-1] > tiles.MAX_FUSED_WIDTH else typed(h, weight, dtype=dtype)


def chunked(h, weight, dtype) -> str:
    narrow = "the model is narrow enough for the fused form"
    return narrow if h.shape[-1] <= tiles.MAX_FUSED_WIDTH else typed(h, weight, dtype=dtype)


def gathers(h, rows, weight, targets, n_rows, valid_vocab, dtype) -> str:
    if tiles.half_sums_asked():
        return "sums in fp16 need copies in fp16"
    if weight.dtype == dtype:
        return "it is for weights that the products need in another dtype"
    return fused(h, weight, dtype) or filled(targets)


def corrupts(x0, valid, seed, step, seed_at, step_at, mask_token_id, schedule, sampling, *_) -> str:
    if sampling in BY_COUNT and x0.shape[1] > tiles.MAX_T:
        return f"sampling={sampling} takes rows of up to {tiles.MAX_T} tokens"
    return filled(x0)


def reads_rows(read, x0, *_) -> str:
    return f"it takes rows of up to {tiles.MAX_T} tokens" if x0.shape[1] > tiles.MAX_T else filled(x0)


def normalizes(x, weight, *more) -> str:
    return typed(x, weight, *more) or ("" if x.shape[-1] <= tiles.MAX_D else f"it takes rows up to {tiles.MAX_D} wide")


def gates(x) -> str:
    return typed(x) or ("it takes an even width" if x.shape[-1] % 2 else "")


def puts_rows(dx, *_) -> str:
    return machine(dx) or ("" if dx.dim() == 2 and dx.numel() else "it takes the rows of a matrix")


def sorts(keys, bound) -> str:
    return machine(keys) or ("" if sorts_at_once(len(keys), bound) else "there are too many keys to compare them all")


def turns(q, k, back) -> str:
    return typed(q, k) or ("it takes pairs" if q.shape[-1] % 2 else "")


def steps_rows(p, m, v, *_) -> str:
    plain = all(a.dtype == torch.float32 and a.is_contiguous() for a in (p, m, v))
    return filled(p) or ("" if plain else "it takes contiguous tables in fp32")


HEAD, WIDE_HEAD = "linear_cross_entropy", "linear_cross_entropy_chunked"
KERNELS = (  # op, module and function of the kernel, and when it serves
    (lce_forward, HEAD, "forward", lambda h, w, y, n, V, dtype, need_dh: fused(h, w, dtype)),
    (lce_forward, WIDE_HEAD, "forward", lambda h, w, y, n, V, dtype, need_dh: chunked(h, w, dtype)),
    (lce_backward_weight, HEAD, "backward_weight", lambda h, w, *rest: fused(h, w, rest[-1])),
    (lce_backward_weight, WIDE_HEAD, "backward_weight", lambda h, w, *rest: chunked(h, w, rest[-1])),
    (lce_sum, WIDE_HEAD, "loss_sum", lambda h, w, *rest: chunked(h, w, rest[-1])),
    (lce_gathered, HEAD, "gathered_forward", gathers),
    (lce_gathered_backward, HEAD, "gathered_backward", lambda dx, x, *_: filled(dx)),
    (lce_backward_rows, HEAD, "backward_rows", lambda dh, grad, n: typed(dh, grad)),
    (corrupt_op, "corrupt", "corrupt", corrupts),
    (tile_attention, "attention", "forward", lambda q, *_: typed(q)),
    (tile_attention_backward, "attention", "backward", lambda dout, q, *_: typed(q)),
    (turn, "rotary", "turn", turns),
    (rms_norm_forward, "rms_norm", "norm", lambda x, weight, eps: normalizes(x, weight)),
    (rms_norm_backward, "rms_norm", "norm_gradients", lambda dy, x, weight, eps: normalizes(x, weight)),
    (add_rms_norm_forward, "rms_norm", "forward", lambda x, a, weight, *_: normalizes(x, weight, a)),
    (add_rms_norm_backward, "rms_norm", "backward", lambda dy, ds, s, weight, *_: normalizes(s, weight)),
    (swiglu_forward, "swiglu", "forward", gates),
    (swiglu_backward, "swiglu", "backward", lambda dy, x: gates(x)),
    (embedding_backward, "embedding", "backward", lambda dx, tokens, rows: typed(dx)),
    (put_rows, "embedding", "put_rows", puts_rows),
    (next_token, "next_token", "next_token", reads_rows),
    (draw, "batch", "draw", machine),
    (stable_order, "stable_sort", "stable_order", sorts),
    (clip_scale, "step_scalars", "clip_scale", machine),
    (record, "step_scalars", "record", machine),
    (catch_up, "lazy_adamw", "catch_up", steps_rows),
    (update_rows, "lazy_adamw", "update_rows", steps_rows),
)


def _lazily(module: str, name: str):
    """Return a call of a function whose module, and Triton with it, is imported at the first call."""

    @functools.cache
    def load():
        return importlib.import_module(f".{module}", __package__), importlib.import_module(".launch", __package__)

    def run(*args):
        kernels, launch = load()
        out = getattr(kernels, name)(*args)
        if launch.compiles_only():  # nothing was computed: what follows must not read what lay in memory before
            for a in (out,) if isinstance(out, torch.Tensor) else out or ():
                a.zero_()
        return out

    return run


def register(device: str) -> None:
    """Let the kernels serve a device type: "cuda", or "cpu" in a process of Triton's interpreter."""
    for op, module, name, serves in KERNELS:
        implement(op, device, "triton", serves, _lazily(module, name))


def _compile_ahead(work) -> None:
    if not missing():
        importlib.import_module(".launch", __package__).compile_ahead(work)


backend("triton", missing, _compile_ahead)
register("cuda")
