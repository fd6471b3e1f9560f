"""Fuse the scalar work that ends a step into two launches: what to clip by, and a line of the log.

    norm = |norms|,   scale = max((norm + 1e-6) / clip, 1),   skip = not isfinite(loss + norm),   steps += 1 - skip

PyTorch's fused AdamW divides every gradient by scale (clip_grad_norm_ multiplies by its inverse) and leaves the weights
as they are where skip is 1. So a step that is skipped does not count for its bias corrections either. Norms and the
count are fp32, the log is fp64.
"""

import torch
from torch import Tensor

from ..dispatch import op


@op("tdlm::clip_scale", fake=lambda norms, *_: tuple(norms.new_empty(()) for _ in range(3)), mutates_args=("steps",))
def clip_scale(norms: Tensor, loss: Tensor, clip: float, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return norm, scale and skip, each () fp32, of the norms (P,) fp32 of all gradients, and count the step.

    clip may be inf. steps () fp32 counts the steps of the optimizer.
    """
    norm = torch.linalg.vector_norm(norms)
    skip = (~torch.isfinite(loss + norm)).float()
    steps += 1 - skip
    return norm, ((norm + 1e-6) / clip).clamp(min=1), skip


@op("tdlm::record", fake=lambda *_: None, mutates_args=("log", "step"))
def record(log: Tensor, step: Tensor, loss: Tensor, norm: Tensor, loss_tokens: Tensor, tokens: Tensor) -> None:
    """Write line `step` mod its length of log (window, 4) fp64 and count the step, () int64, up."""
    entry = torch.stack([a.double() for a in (loss, norm, loss_tokens, tokens)])
    log.index_copy_(0, (step % len(log)).view(1), entry[None])
    step += 1
