"""The linear cross-entropy of csrc/cuda, for compute capability 8.0 and newer and heads up to 256 wide."""

import torch
from torch import Tensor

from .. import hardware
from ..dispatch import implement
from ..ops.linear_cross_entropy import check_shapes, lce_backward_weight, lce_forward, live_only
from . import library

TYPES = (torch.float32, torch.bfloat16, torch.float16)  # as csrc/cuda/linear_cross_entropy.cu numbers them
ROWS, MAX_PARTS, MAX_WIDTH = 64, 16, 256


def serves(h: Tensor, weight: Tensor, dtype: torch.dtype) -> str:
    """Return "" where the kernels run this call, else why not."""
    if why := library.missing() or library.device_error(h.get_device()):
        return why
    if any(t not in TYPES for t in (h.dtype, weight.dtype, dtype)):
        return "it takes fp32, bf16 and fp16"
    return "" if h.numel() and h.shape[1] <= MAX_WIDTH else f"it takes rows up to {MAX_WIDTH} wide"


def _call(name: str, h: Tensor, weight: Tensor, targets: Tensor, n_rows: Tensor | None, V: int, parts: int,
          out: Tensor, *more: Tensor | None) -> None:  # fmt: skip
    """Launch on the current stream of h's device; on the CPU only the tests' emulator runs, and it has none."""
    stream = torch.cuda.current_stream(h.device).cuda_stream if h.is_cuda else None
    n_rows = None if n_rows is None else n_rows.to(h.device, torch.int64)
    tensors = (None if a is None else a.data_ptr() for a in (h, weight, targets, n_rows))
    with torch.cuda.device_of(h):
        error = getattr(library.handle, name)(
            h.get_device(), stream, TYPES.index(h.dtype), *tensors, *h.shape, V, parts, out.dtype == torch.float32,
            *(None if a is None else a.data_ptr() for a in more),
        )  # fmt: skip
    if error:
        raise RuntimeError(f"{name}: {library.handle.tdlm_cuda_error(error).decode()}")


def forward(h, weight, targets, n_rows, valid_vocab, dtype, need_dh):
    """A target outside the vocabulary gives NaN: to look for one would wait for the device."""
    check_shapes(h, weight, valid_vocab, targets)
    N, D = h.shape
    x, w = h.to(dtype).contiguous(), weight[:valid_vocab].to(dtype).contiguous()
    row_tiles = -(-N // ROWS)
    parts = max(1, min(MAX_PARTS, 4 * hardware.card(h.device).multiprocessors // row_tiles, -(-valid_vocab // ROWS)))
    m, total = (h.new_empty(parts, N, dtype=torch.float32) for _ in range(2))
    nll, lse = (h.new_empty(N, dtype=torch.float32) for _ in range(2))
    acc = h.new_empty(parts, N, D, dtype=torch.float32) if need_dh else None
    dh = h.new_empty(N if need_dh else 0, D, dtype=dtype if h.dtype == dtype else torch.float32)
    _call("tdlm_cuda_lce_forward", x, w, targets.long().contiguous(), n_rows, valid_vocab, parts, dh,
          m, total, acc, nll, lse, dh if need_dh else None)  # fmt: skip
    return nll, lse, dh.to(h.dtype)


def backward_weight(h, weight, targets, lse, grad, n_rows, valid_vocab, dtype):
    check_shapes(h, weight, valid_vocab, targets, lse, grad)
    N, D = h.shape
    x, w = h.to(dtype).contiguous(), weight[:valid_vocab].to(dtype).contiguous()
    lse, grad = lse.float().contiguous(), grad.float().contiguous()
    top = live_only(grad, n_rows).abs().amax() if dtype == torch.float16 else None
    processors = hardware.card(h.device).multiprocessors
    parts = max(1, min(MAX_PARTS, 2 * processors // -(-valid_vocab // ROWS), -(-N // ROWS)))
    whole = parts == 1 and weight.dtype == dtype
    dw = h.new_empty(parts, valid_vocab, D, dtype=dtype if whole else torch.float32)
    _call("tdlm_cuda_lce_backward_weight", x, w, targets.long().contiguous(), n_rows, valid_vocab, parts, dw,
          lse, grad, top, dw)  # fmt: skip
    dw = (dw[0] if parts == 1 else dw.sum(0)).to(weight.dtype)
    unused = len(weight) - valid_vocab
    return torch.cat((dw, dw.new_zeros(unused, D))) if unused else dw


implement(lce_forward, "cuda", "cuda", lambda h, w, y, n, V, dtype, need_dh: serves(h, w, dtype), forward)
implement(lce_backward_weight, "cuda", "cuda", lambda h, w, *rest: serves(h, w, rest[-1]), backward_weight)
