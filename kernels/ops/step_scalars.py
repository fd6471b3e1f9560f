"""Fuse the scalar work that ends a step: what to clip by, from all gradients, and a line of the log.

    norm = |gradients|,   scale = max((norm + 1e-6) / clip, 1),   skip = not isfinite(loss + norm),   steps += 1 - skip

PyTorch's fused AdamW divides every gradient by scale (clip_grad_norm_ multiplies by its inverse) and leaves the weights
as they are where skip is 1. So a step that is skipped does not count for its bias corrections either. Sums of squares
and the count are fp32 (fp64 for gradients in fp64), the log is fp64.
"""

import torch
from torch import Tensor

from ..dispatch import op


@op("tdlm::clip_scale", fake=lambda loss, *_: tuple(torch.empty_like(loss) for _ in range(3)), mutates_args=("steps",))
def clip_scale(loss: Tensor, grads: list[Tensor], clip: float, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return norm, scale and skip, each () fp32, of all gradients, of any shapes, and count the step.

    loss is () fp32. clip may be inf. steps () fp32 counts the steps of the optimizer.
    """
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g.to(loss.dtype)) for g in grads]))
    skip = (~torch.isfinite(loss + norm)).to(loss.dtype)
    steps += 1 - skip
    return norm, ((norm + 1e-6) / clip).clamp(min=1), skip


@op("tdlm::record", fake=lambda *_: None, mutates_args=("log", "step"))
def record(log: Tensor, step: Tensor, loss: Tensor, norm: Tensor, loss_tokens: Tensor, tokens: Tensor) -> None:
    """Write line `step` mod its length of log (window, 4) fp64 and count the step, () int64, up."""
    entry = torch.stack([a.double() for a in (loss, norm, loss_tokens, tokens)])
    log.index_copy_(0, (step % len(log)).view(1), entry[None])
    step += 1
