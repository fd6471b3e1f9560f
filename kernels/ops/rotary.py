"""Rotary position embedding (Su et al. 2021): pairs (i, i + K/2) of a head turn by position * 10000^(-2i/K).

    a = position * 10000^(-2i/K),   y_i = x_i cos a - x_(i+K/2) sin a,   y_(i+K/2) = x_(i+K/2) cos a + x_i sin a

The gradient turns back: it is the same with -a. On a GPU queries and keys are turned in one launch, with cosines and
sines from a table, in fp32 and rounded once.
"""

import functools

import torch
from torch import Tensor

from .. import hardware
from ..dispatch import op, server


def rotation(T: int, K: int, device, first: int = 0) -> Tensor:
    """Return (T, K) fp32: the K / 2 cosines of each position from `first` on, then its sines."""
    half = K // 2
    rate = 10000.0 ** (-torch.arange(half, device=device) / half)
    angle = torch.arange(first, first + T, device=device)[:, None] * rate
    return torch.cat([angle.cos(), angle.sin()], -1)


@functools.cache  # for ever: a captured graph reads the table at its address
def _kept(T: int, K: int, device: torch.device) -> Tensor:
    return rotation(T, K, device)


def kept_rotation(T: int, K: int, device: torch.device) -> Tensor:
    """Return rotation(T, K), kept on the device. The tables of all lengths take at most twice the room of the last."""
    return _kept(max(16, 1 << (T - 1).bit_length()), K, device)[:T]


def rotate(x: Tensor, first: int = 0, back: bool = False) -> Tensor:
    """Return x (B, H, T, K) turned by its positions, which start at `first`; turned back, the inverse, with back."""
    cos, sin = rotation(x.shape[-2], x.shape[-1], x.device, first).to(x.dtype).chunk(2, -1)
    sin = -sin if back else sin
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def empty_rows_first(q: Tensor) -> Tensor:
    """Return an empty (B, H, T, K) in the memory order (B, T, H, K), which the output projection reads."""
    B, H, T, K = q.shape
    return q.new_empty(B, T, H, K).transpose(1, 2)


def check_shapes(q: Tensor, k: Tensor) -> None:
    """Raise ValueError where q and k are not of one shape (B, H, T, K) and dtype with an even K."""
    if q.dim() != 4 or q.shape != k.shape or q.dtype != k.dtype or q.shape[-1] % 2:
        shapes = [(tuple(a.shape), a.dtype) for a in (q, k)]
        raise ValueError(f"q and k are {shapes}; they must have one dtype and one shape (B, H, T, K) with an even K")


@op("tdlm::rotary", fake=lambda q, k, back: (empty_rows_first(q), empty_rows_first(k)))
def turn(q: Tensor, k: Tensor, back: bool) -> tuple[Tensor, Tensor]:
    """q and k, (B, H, T, K) each, turned by their positions, or back."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    q, k = (empty_rows_first(a).copy_(rotate(a.to(wide), back=back)) for a in (q, k))
    return q, k


def _setup(ctx, inputs, output):
    ctx.back = inputs[2]


turn.register_autograd(lambda ctx, dq, dk: (*turn(dq, dk, not ctx.back), None), setup_context=_setup)


def rotate_both(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Return rotate(q), rotate(k): (B, H, T, K) each."""
    if not hardware.is_transformed() and server(turn, q, k, False):
        return turn(q, k, False)
    return rotate(q), rotate(k)
