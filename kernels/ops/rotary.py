"""Rotary position embedding (Su 2021): pairs (i, i + K/2) of a head turn by position * 10000^(-2i/K)."""

import functools

import torch
from torch import Tensor


def rotation(T: int, K: int, device, first: int = 0) -> Tensor:
    """Return (T, K) fp32: the K / 2 cosines of each position from `first` on, then its sines."""
    half = K // 2
    rate = 10000.0 ** (-torch.arange(half, device=device) / half)
    angle = torch.arange(first, first + T, device=device)[:, None] * rate
    return torch.cat([angle.cos(), angle.sin()], -1)


@functools.lru_cache(16)
def kept_rotation(T: int, K: int, device: torch.device) -> Tensor:
    """Return rotation(T, K), kept on the device, so that a captured graph finds it there."""
    return rotation(T, K, device)


def rotate(x: Tensor, first: int = 0, back: bool = False) -> Tensor:
    """Return x (B, H, T, K) turned by its positions, which start at `first`; turned back, the inverse, with back."""
    cos, sin = rotation(x.shape[-2], x.shape[-1], x.device, first).to(x.dtype).chunk(2, -1)
    sin = -sin if back else sin
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
