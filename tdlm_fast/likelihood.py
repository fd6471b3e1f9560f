"""Likelihood of a split, in nats per token, over every token exactly once.

    autoregressive  sum_i -log p(x0_i | <start>, x0_<i)                                               exact
    diffusion       n E_{l~U{1..n}} E_{|S|=l} [ (1/l) sum_{i in S} -log p(x0_i | x0 with S masked) ]  an upper bound

(Nie et al. 2025, Eq. 14; n the tokens of the sequence.) A draw gives every sequence one l and one S, the l stratified
over the split, and is an unbiased estimate of the whole sum; draws are independent, so their spread gives the standard
error. All draws are functions of the seed and the row, not of the batch size.
"""

import contextlib
import math
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from .data import Split
from .kernels import linear_cross_entropy
from .kernels.corrupt import random_subsets
from .kernels.philox import STREAM_SAMPLE, STREAM_TIME, random_words
from .objective import next_token_nll

MIN_DRAWS = 4  # fewer do not show their own spread


@dataclass(frozen=True)
class Likelihood:
    nats_per_token: float
    stderr: float  # of the estimate, in nats per token; 0 where it is exact
    ppl: float
    bits_per_byte: float
    word_ppl: float | None  # where the rows hold the whole text
    tokens: int
    samples: int  # noise draws a sequence
    bound: str  # "exact" or "upper bound"

    def __str__(self) -> str:
        error = f" ± {self.stderr:.4f}" if self.samples else ""
        words = f", word ppl {self.word_ppl:.1f}" if self.word_ppl else ""
        rest = f"ppl {self.ppl:.2f}, {self.bits_per_byte:.4f} bits/byte{words} ({self.bound}, {self.tokens:,} tokens)"
        return f"{self.nats_per_token:.4f}{error} nats/token, {rest}"

    def asdict(self) -> dict:
        return asdict(self)


def report(nats: float, stderr: float, split: Split, samples: int, bound: str) -> Likelihood:
    """A Likelihood from the nats of the whole split and their standard error."""
    n = split.scored
    return Likelihood(
        nats / n, stderr / n, math.exp(min(nats / n, 700)), nats / split.bytes / math.log(2),
        math.exp(min(nats / split.words, 700)) if split.words else None, n, samples, bound,
    )  # fmt: skip


def autocast(device: torch.device, precision: str):
    """Products in bf16 where the precision says so; weights stay fp32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def _batches(split: Split, batch_size: int, device):
    for i in range(0, len(split), batch_size):
        index = np.arange(i, min(i + batch_size, len(split)))
        yield torch.from_numpy(index).to(device), *split.rows(index, device)


@torch.no_grad()
def autoregressive_nats(model, split: Split, *, start_token_id: int, batch_size: int, device) -> float:
    """Nats of the split, exact."""
    total = torch.zeros((), dtype=torch.float64, device=device)
    for _, x0, valid in _batches(split, batch_size, device):
        total += next_token_nll(model, x0, start_token_id=start_token_id, valid=valid).double().sum()
    return total.item()


def draw_counts(lengths: Tensor, *, seed: int, draw: int) -> Tensor:
    """l of every row (R,) int64 in 1..length, uniform in each row and stratified over the rows in a random order."""
    row = torch.arange(len(lengths))
    rank = torch.argsort(torch.argsort(random_words(row, seed=seed, step=draw, stream=STREAM_SAMPLE), stable=True))
    u = random_words(row, seed=seed, step=draw, stream=STREAM_TIME)
    return lengths * ((rank << 32) + u) // (len(lengths) << 32) + 1


@torch.no_grad()
def diffusion_draw(model, split: Split, *, seed: int, draw: int, batch_size: int, device) -> float:
    """One unbiased estimate of the bound on the nats of the split."""
    counts = draw_counts(torch.from_numpy(np.ascontiguousarray(split.lengths)), seed=seed, draw=draw).to(device)
    total = torch.zeros((), dtype=torch.float64, device=device)
    for row, x0, valid in _batches(split, batch_size, device):
        real = torch.ones_like(x0, dtype=torch.bool) if valid is None else valid
        place = row[:, None] * split.seq_len + torch.arange(split.seq_len, device=device)
        masked = random_subsets(counts[row, None], real, place, seed=seed, step=draw)
        h = model(torch.where(masked, model.mask_token_id, x0), causal=False, valid=valid)[masked]
        weights = (real.sum(1) / counts[row])[:, None].expand_as(masked)[masked]
        nll = linear_cross_entropy(h, model.head, x0[masked], reduction="none")
        total += (nll.double() * weights).sum()
    return total.item()


def likelihood(
    model, split: Split, objective: str, *, start_token_id: int, seed: int = 0, target_stderr: float = 0.0,
    min_samples: int = MIN_DRAWS, max_samples: int = 64, batch_size: int = 64, precision: str = "fp32",
) -> Likelihood:  # fmt: skip
    """The likelihood of a split under a model of that objective; dropout is off while it runs.

    Diffusion draws until the standard error is at most target_stderr nats per token or max_samples draws are made.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        with autocast(device, precision):
            if objective == "autoregressive":
                nats = autoregressive_nats(
                    model, split, start_token_id=start_token_id, batch_size=batch_size, device=device
                )
                return report(nats, 0.0, split, 0, "exact")
            draws: list[float] = []
            while len(draws) < max(max_samples, 2):
                draws.append(
                    diffusion_draw(model, split, seed=seed, draw=len(draws), batch_size=batch_size, device=device)
                )
                if len(draws) >= max(min_samples, 2):
                    stderr = float(np.std(draws, ddof=1)) / len(draws) ** 0.5
                    if stderr / split.scored <= target_stderr:
                        break
            stderr = float(np.std(draws, ddof=1)) / len(draws) ** 0.5
            return report(float(np.mean(draws)), stderr, split, len(draws), "upper bound")
    finally:
        model.train(was_training)
