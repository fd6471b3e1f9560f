"""Noise schedules: the probability m(t) = 1 - alpha_t that a token is masked at time t in (0, 1].

    linear           m = t
    log-linear       m = 1 - exp(-sigma), sigma = -log(1 - t): linear in m (Sahoo 2024 with its epsilon at 0,
                     because a positive one would leave m in (1 - epsilon, 1] out of the bound)
    cosine           alpha = cos^2(pi t / 2)   (Zhang & Syed 2025)
    cosine-maskgit   m = cos(pi (1 - t) / 2)   (Chang 2022)
    polynomial       m = t^2

The weight of a masked token in the bound is m'(t) / m(t) (Sahoo 2024; Shi 2024).
"""

import functools
import math

import torch
from torch import Tensor

LEVELS = 1 << 16  # t is drawn on this grid, so that a table gives the same bits on every device

_LINEAR = (lambda t: t, torch.ones_like, lambda m: m)
_SCHEDULES = {  # m(t), m'(t) and the inverse of m
    "linear": _LINEAR,
    "log-linear": _LINEAR,
    "cosine": (
        lambda t: torch.sin(math.pi * t / 2) ** 2,
        lambda t: math.pi / 2 * torch.sin(math.pi * t),
        lambda m: 2 / math.pi * torch.asin(m.sqrt()),
    ),
    "cosine-maskgit": (
        lambda t: torch.sin(math.pi * t / 2),
        lambda t: math.pi / 2 * torch.cos(math.pi * t / 2),
        lambda m: 2 / math.pi * torch.asin(m),
    ),
    "polynomial": (lambda t: t**2, lambda t: 2 * t, lambda m: m.sqrt()),
}
SCHEDULES = tuple(_SCHEDULES)


def mask_probability(t: Tensor, schedule: str) -> Tensor:
    """m(t) of the schedule, elementwise, in t's dtype."""
    return _SCHEDULES[schedule][0](t)


@functools.cache
def table(schedule: str) -> tuple[Tensor, Tensor]:
    """Per level of t: the threshold m * 2^32 (int64) below which a word masks, and the weight m'/m (fp64)."""
    if schedule not in _SCHEDULES:
        raise ValueError(f"schedule is {schedule!r}; it must be one of {', '.join(SCHEDULES)}")
    t = (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS
    mask, slope, _ = _SCHEDULES[schedule]
    threshold = (mask(t) * 2**32).round().to(torch.int64).clamp_(min=1)
    return threshold, slope(t) / (threshold / 2**32)


def inverse(m: Tensor, schedule: str) -> Tensor:
    """t with m(t) = m, elementwise, for m in [0, 1]."""
    return _SCHEDULES[schedule][2](m)


@functools.lru_cache(maxsize=8)
def count_weights(schedule: str, T: int, padding: bool) -> Tensor:
    """Return per length n and count l of masked tokens the weight 1 / (l (m^-1(l/n) - m^-1((l-1)/n))): [n, l] fp32.

    (T + 1, T + 1) for rows with padding, else only its last row; 0 where l is not in 1..n.
    """
    n = torch.arange(0 if padding else T, T + 1, dtype=torch.float64)[:, None]
    count = torch.arange(T + 1, dtype=torch.float64)
    share = inverse((count / n).clamp(max=1), schedule) - inverse(((count - 1) / n).clamp(0, 1), schedule)
    return torch.where((count >= 1) & (count <= n), 1 / (count * share), 0.0).float()
