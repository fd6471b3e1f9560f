"""Draw the rows of a training step from a split that lies on the device, in one launch on a GPU.

    row_b = order[(step mod steps an epoch) B + b],   x0[b, i] = tokens[start_row + i] where i < length_row, else 0

step is read on the device, so every replay of a captured graph draws another batch.
"""

import torch
from torch import Tensor

from ..dispatch import op


def empty_outputs(tokens, starts, lengths, order, step, rows, steps_per_epoch, seq_len, mask, padded):
    shape = (rows, seq_len)
    return order.new_empty(shape), order.new_empty(shape if padded else 0, dtype=torch.bool)


@op("tdlm::draw", fake=empty_outputs)
def draw(
    tokens: Tensor, starts: Tensor, lengths: Tensor, order: Tensor, step: Tensor, rows: int, steps_per_epoch: int,
    seq_len: int, mask: int, padded: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """x0 (rows, seq_len) int64 and, of padded rows, valid (rows, seq_len) bool, else (0,).

    tokens (any,) hold unsigned bits as signed integers, which mask undoes; starts, lengths and order (R,) int64 are
    where rows begin, how long they are and in which order they come; step () int64 counts from 0.
    """
    row = order[step % steps_per_epoch * rows + torch.arange(rows, device=step.device)]
    place = torch.arange(seq_len, device=step.device)
    at = (starts[row][:, None] + place).clamp_(max=len(tokens) - 1)
    x0 = tokens[at].to(torch.int64) & mask
    valid = place < lengths[row][:, None]
    return (torch.where(valid, x0, 0), valid) if padded else (x0, valid.new_empty(0))
