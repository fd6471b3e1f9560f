"""Batches as a function of (seed, step), without the steps before it: rows in an order keyed by (seed, epoch)."""

import functools

import numpy as np
import torch
from torch import Tensor

from ..config import ConfigError
from ..kernels.philox import STREAM_BATCH, random_words
from .dataset import Split


def steps_per_epoch(split: Split, batch_size: int) -> int:
    """Return the number of full batches in an epoch. Raises ConfigError if there is none."""
    n = usable(split) // batch_size
    if not n:
        rows = f"{usable(split)} rows of {split.seq_len} tokens"
        hint = "; data.layout=packed makes several rows of a long line" if split.padded else ""
        raise ConfigError(f"train.batch_size {batch_size} is more than the {rows} to train on{hint}")
    return n


def usable(split: Split) -> int:
    """Return the number of rows to train on. The last packed row is left out if it is not full."""
    return len(split) if split.padded else int((split.lengths == split.seq_len).sum())


def permutation(rows: int, seed: int, epoch: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the order of the rows in an epoch, (rows,) int64."""
    words = random_words(torch.arange(rows, device=device), seed=seed, step=epoch, stream=STREAM_BATCH)
    return torch.argsort(words, stable=True)


@functools.lru_cache(2)
def _permutation(rows: int, seed: int, epoch: int) -> np.ndarray:
    return permutation(rows, seed, epoch).numpy()


def batch(
    split: Split, *, seed: int, step: int, batch_size: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor | None]:
    """Return x0 (B, T) and valid (B, T) of a training step, counted from 0. They depend only on (seed, step)."""
    epoch, place = divmod(step, steps_per_epoch(split, batch_size))
    order = _permutation(usable(split), seed, epoch)
    return split.rows(order[place * batch_size : (place + 1) * batch_size], device)
