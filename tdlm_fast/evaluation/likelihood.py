"""Compute the likelihood of a split in nats per token, over every token exactly once.

    autoregressive  sum_i -log p(x0_i | <start>, x0_<i)                                               exact
    diffusion       n E_{l~U{1..n}} E_{|S|=l} [ (1/l) sum_{i in S} -log p(x0_i | x0 with S masked) ]  an upper bound

(Nie et al. 2025, Eq. 14; n is the number of tokens of the sequence.) A draw gives every sequence one l and one S, with
the l stratified over the split, and is an unbiased estimate of the whole sum. Draws are independent, so the spread of
each row over the draws gives the standard error, less what the strata save (total_variance). That has some thousand
degrees of freedom. The totals of four draws have only three, and a rule that stops on them would stop where they lie
close together by chance. All draws are functions of the seed and the row, not of the batch size.
"""

import contextlib
import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import Config, NonFinite
from ..data.dataset import Split
from ..kernels import linear_cross_entropy
from ..kernels.ops.corrupt import random_subsets
from ..kernels.philox import STREAM_SAMPLE, STREAM_TIME, random_words
from ..model import autocast
from ..objective import next_token_nll
from ..statistics import NORMAL, t_975

ROWS_OF_LOGITS = 512  # at most this many rows of logits are in memory at once
MIN_DRAWS = 4  # fewer would miss the rare low counts, which weigh most


@dataclass(frozen=True)
class Likelihood:
    nats_per_token: float
    stderr: float  # of the estimate, in nats per token; 0 where it is exact
    ppl: float
    bits_per_byte: float | None  # where the tokens are of text
    word_ppl: float | None  # where the rows hold the whole text
    tokens: int
    samples: int  # noise draws a sequence
    bound: str  # "exact" or "upper bound"
    freedom: int = 0  # degrees of freedom of the standard error; 0 where it is exact
    missed_target: float = 0.0  # the standard error asked for, where max_samples came first; else 0
    after_first: float | None = None  # nats per token without the first token of each row; autoregressive models

    def __str__(self) -> str:
        error = f" ± {self.stderr:.4f}" if self.samples else ""
        words = f", word ppl {self.word_ppl:.1f}" if self.word_ppl else ""
        bits = f", {self.bits_per_byte:.4f} bits/byte" if self.bits_per_byte is not None else ""
        rest = f"ppl {self.ppl:.2f}{bits}{words} ({self.bound}, {self.tokens:,} tokens)"
        missed = f"; target {self.missed_target:g} not reached in {self.samples} samples" if self.missed_target else ""
        later = f"; {self.after_first:.4f} without the first token of each row" if self.after_first is not None else ""
        return f"{self.nats_per_token:.4f}{error} nats/token, {rest}{missed}{later}"

    @property
    def half_width(self) -> float:
        """Return half the 95 % interval in nats per token: Student's t with the standard error's degrees of freedom."""
        return self.stderr * t_975(self.freedom) if self.samples else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of the estimate in nats per token; a point where it is exact."""
        return self.nats_per_token - self.half_width, self.nats_per_token + self.half_width

    def asdict(self) -> dict:
        return asdict(self) | {"interval": list(self.interval)}


def report(nats: float, stderr: float, split: Split, samples: int, bound: str, freedom: int = 0) -> Likelihood:
    """Return the Likelihood of a split from its total nats and their standard error. Raises NonFinite."""
    if not math.isfinite(nats + stderr):
        raise NonFinite(f"the likelihood is not finite ({nats} nats ± {stderr}): weights or logits are nan or infinite")
    n = split.scored
    return Likelihood(
        nats / n, stderr / n, math.exp(min(nats / n, 700)), nats / split.bytes / math.log(2) if split.bytes else None,
        math.exp(min(nats / split.words, 700)) if split.words else None, n, samples, bound, freedom,
    )  # fmt: skip


def most_probable(h: Tensor, head: Tensor) -> Tensor:
    """Return the most probable token of each row of h (N, D), (N,) int64."""
    with torch.no_grad():
        return torch.cat([(part.float() @ head.float().T).argmax(-1) for part in h.split(ROWS_OF_LOGITS)])


def exact(nll: Tensor, split: Split) -> Likelihood:
    """Return the Likelihood of a split from the exact nats of its tokens, (N,) or (R, T), or rows. Raises NonFinite.

    Of (R, T) it also gives the nats per token after the first of each row, which needs a start token to be scored.
    """
    score, later = report(nll.double().sum().item(), 0.0, split, 0, "exact"), split.scored - len(split)
    if nll.shape != (len(split), split.seq_len) or not later:
        return score
    return replace(score, after_first=nll[:, 1:].double().sum().item() / later)


def batches(split: Split, batch_size: int, device):
    """Yield (row (B,), x0 (B, T), valid or None) over the rows of a split, in order."""
    for i in range(0, len(split), batch_size):
        index = np.arange(i, min(i + batch_size, len(split)))
        yield torch.from_numpy(index).to(device), *split.rows(index, device)


@torch.no_grad()
def autoregressive_nll(model, split: Split, *, start_token_id: int, batch_size: int, precision: str) -> Tensor:
    """Return the exact -log p of every token of the split, (R, T) fp32 nats, 0 at padding."""
    with scoring(model, precision) as device:
        rows = batches(split, batch_size, device)
        return torch.cat([next_token_nll(model, x0, start_token_id=start_token_id, valid=v) for _, x0, v in rows])


def strata(rows: int, *, seed: int, draw: int) -> Tensor:
    """Return a random permutation (R,) int64 of the rows: row strata[k] has stratum k of R."""
    return torch.argsort(random_words(torch.arange(rows), seed=seed, step=draw, stream=STREAM_SAMPLE), stable=True)


def draw_counts(lengths: Tensor, *, seed: int, draw: int) -> Tensor:
    """Draw l of every row, (R,) int64 in 1..length: uniform in each row, stratified over the rows in a random order."""
    rank = torch.argsort(strata(len(lengths), seed=seed, draw=draw))
    u = random_words(torch.arange(len(lengths)), seed=seed, step=draw, stream=STREAM_TIME)
    return lengths * ((rank << 32) + u) // (len(lengths) << 32) + 1


def row_lengths(split: Split) -> Tensor:
    """Return the number of tokens of each row, (R,) int64."""
    return torch.from_numpy(np.ascontiguousarray(split.lengths))


def chosen(split: Split, row: Tensor, x0: Tensor, valid: Tensor | None, counts: Tensor, *, seed: int, draw: int):
    """Draw a uniform subset of counts[row] tokens of each row, (B, T) bool, as a function of (seed, draw, row)."""
    real = torch.ones_like(x0, dtype=torch.bool) if valid is None else valid
    place = row[:, None] * split.seq_len + torch.arange(split.seq_len, device=x0.device)
    return random_subsets(counts[row, None], real, place, seed=seed, step=draw)


@torch.no_grad()
def masked_sums(model, split: Split, counts: Tensor, *, seed: int, draw: int, batch_size: int, device) -> Tensor:
    """Return sum_{i in S} -log p(x0_i | x0 with S masked) of each row, (R,) fp64, S random with counts (R,) tokens."""
    counts, total = counts.to(device), torch.zeros(len(split), dtype=torch.float64, device=device)
    for row, x0, valid in batches(split, batch_size, device):
        masked = chosen(split, row, x0, valid, counts, seed=seed, draw=draw)
        h = model(torch.where(masked, model.mask_token_id, x0), causal=False, valid=valid)[masked]
        nll = linear_cross_entropy(h, model.head, x0[masked], reduction="none")
        total.index_add_(0, row[:, None].expand_as(masked)[masked], nll.double())
    return total


@torch.no_grad()
def nll_sums(nll: Tensor, split: Split, counts: Tensor, *, seed: int, draw: int, batch_size: int) -> Tensor:
    """Return the sum of nll (R, T) over the subset that masked_sums masks in each row, (R,) fp64."""
    counts, parts = counts.to(nll.device), []
    for row, x0, valid in batches(split, batch_size, nll.device):
        here = chosen(split, row, x0, valid, counts, seed=seed, draw=draw)
        parts.append((nll[row].double() * here).sum(1))
    return torch.cat(parts)


def diffusion_draw(model, split: Split, *, seed: int, draw: int, batch_size: int, device) -> Tensor:
    """Return one unbiased estimate of the bound on the nats of every row, (R,) fp64."""
    lengths = row_lengths(split)
    counts = draw_counts(lengths, seed=seed, draw=draw)
    sums = masked_sums(model, split, counts, seed=seed, draw=draw, batch_size=batch_size, device=device)
    return sums.cpu() * lengths / counts


def total_variance(draws: Tensor, order: Tensor) -> tuple[float, int]:
    """Return (variance of the total of one draw, its degrees of freedom) from draws (D, R) fp64, D at least 2.

    order (D, R) int64 holds the R rows of each draw by stratum, from `strata`. With a_r(k) = E[y_r | stratum k] -
    E[y_r] and the strata dealt out to the rows at random (Hoeffding 1951),

        Var(sum_r y_r) = sum_r Var(y_r) - sum_k mean_{r != r'} a_r(k) a_r'(k)

    The first term is the spread of each row over its own draws, with R (D - 1) degrees of freedom. The second is
    estimated from neighbours: a row in stratum k + 1 stands for another in stratum k, as where strata are collapsed
    (Cochran 1977, 5A.12; Wolter 2007, 8.2.1). It sums the products of neighbours' deviations from their rows' means,
    which shrink a deviation by 1 - 1/D. With few rows this credits less than the strata save: 1 - 2/R of it for a
    smooth a(k). The degrees of freedom are Satterthwaite's (1946), 2 V^2 / Var(V), where the square of each row's part
    of V stands for its variance, which gives rather too few. Where fewer than D - 1 are left, the variance of the
    draws' totals is used instead.
    """
    (D, R), totals = draws.shape, draws.sum(1)
    away = draws - draws.mean(0)
    beside = away.gather(1, order)
    shared = beside[:, :-1] * beside[:, 1:] * (D / (D - 1) ** 2 * R / max(R - 1, 1))
    parts = away.square().sum(0) / (D - 1)
    parts.index_add_(0, order[:, :-1].flatten(), -shared.flatten())
    variance = parts.sum().item()
    freedom = 2 * variance**2 / max(parts.square().sum().item(), 1e-300)
    if not (variance > 0 and freedom >= D - 1):
        return totals.var().item(), D - 1
    return variance, int(min(freedom, R * (D - 1)))


@contextlib.contextmanager
def scoring(model, precision: str):
    """Switch dropout off and run products in the precision inside `with`; yields the model's device."""
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    try:
        with autocast(device, precision):
            yield device
    finally:
        model.train(was_training)


def final_scoring(config: Config, tokenizer) -> dict[str, Any]:
    """Return the keywords of `likelihood` for the evaluation that ends a run."""
    options = {k: getattr(config.eval, k) for k in ("batch_size", "target_stderr", "max_samples")}
    return options | dict(start_token_id=tokenizer.start_token_id, seed=config.seed, precision=config.precision)


def likelihood(
    model, split: Split, objective: str, *, start_token_id: int, seed: int = 0, target_stderr: float = 0.0,
    min_samples: int = MIN_DRAWS, max_samples: int = 64, batch_size: int = 64, precision: str = "fp32",
) -> Likelihood:  # fmt: skip
    """Return the likelihood of a split under a model of that objective; dropout is off while it runs.

    Diffusion is drawn until half the 95 % interval is at most 1.96 target_stderr nats per token, which with many rows
    is a standard error of target_stderr, or until max_samples draws are made. Raises NonFinite.
    """
    if objective == "autoregressive":
        kw: dict[str, Any] = dict(start_token_id=start_token_id, batch_size=batch_size, precision=precision)
        return exact(autoregressive_nll(model, split, **kw), split)
    with scoring(model, precision) as device:
        draws, order, most = [], [], max(max_samples, 2)
        while True:
            draw = len(draws)
            draws.append(diffusion_draw(model, split, seed=seed, draw=draw, batch_size=batch_size, device=device))
            order.append(strata(len(split), seed=seed, draw=draw))
            n = len(draws)
            if n < min(max(min_samples, 2), most):
                continue
            each = torch.stack(draws)
            variance, freedom = total_variance(each, torch.stack(order))
            nats, stderr = each.sum(1).mean().item(), math.sqrt(variance / n)
            score = report(nats, stderr, split, n, "upper bound", freedom)
            if score.half_width <= NORMAL * target_stderr:
                return score
            if n == most:
                return replace(score, missed_target=target_stderr)
