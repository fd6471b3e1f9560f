"""What an autoregressive model reads and predicts in rows with padding, in one launch on a GPU.

    shifted_b = <start>, read_b0, read_b1, ...;   seen_b = 1, valid_b0, valid_b1, ...
    order: the places of real tokens, then those of padding, each in order;   targets = x0 there

Padding moves behind the real tokens, where a row count leaves it out of the head.
"""

import torch
from torch import Tensor

from ..dispatch import op


def _shifted(a: Tensor, first: int) -> Tensor:
    return torch.cat([torch.full_like(a[:, :1], first), a[:, :-1]], 1)


def next_token_inputs(x0: Tensor, start_token_id: int, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return what is read to predict x0 (B, T): (inputs (B, T), which of them are real tokens, None for all)."""
    # Position i reads token i - 1, so its key counts where token i - 1 does; the start always does.
    return _shifted(x0, start_token_id), None if valid is None else _shifted(valid, True)


def empty_outputs(read, x0, valid, start_token_id):
    row = x0.new_empty(x0.numel())
    return torch.empty_like(x0), torch.empty_like(valid), row, torch.empty_like(row), x0.new_empty(())


@op("tdlm::next_token", fake=empty_outputs)
def next_token(
    read: Tensor, x0: Tensor, valid: Tensor, start_token_id: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """shifted (B, T), seen (B, T) bool, order and targets (B T,) int64, and the number of real tokens, () int64.

    read and x0 (B, T) int64 are what is read and what is predicted, valid (B, T) bool is False at padding.
    """
    order = torch.argsort(~valid.flatten(), stable=True)
    return _shifted(read, start_token_id), _shifted(valid, True), order, x0.flatten()[order], valid.sum()
