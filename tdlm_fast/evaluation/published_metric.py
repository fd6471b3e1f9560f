"""Compute the published metric of TDLM v1.2 exactly, to set its figures beside a likelihood. It is not a likelihood.

    exp( sum_rows w(m) sum_{i in S} -log p(x0_i | x0 with S masked)  /  sum_rows |S| )
    m ~ U(0, 1) for each row,  |S| = int(m n),  w(m) = min((1 - m) / m, 5)

The published code takes the mean over the masked tokens of a batch and averages batches by their masked tokens. That is
this quotient, whatever the batches are. A predictor whose loss is L at every token scores `uniform_factor` times L,
which is 5/6 L for long rows, where the bound (likelihood.py) gives L. An autoregressive model is scored by its own
exact -log p(x0_i | x0_<i) at the same tokens with the same weights, so that both objectives stand on one scale.
"""

import math
import sys
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import ConfigError
from ..data.dataset import Split
from ..kernels.philox import STREAM_TIME, random_words
from ..statistics import t_975
from .likelihood import Likelihood, autoregressive_nll, exact, likelihood, masked_sums, nll_sums, row_lengths, scoring

LARGEST_WEIGHT = 5.0


class NoMetric(ConfigError):
    """The draws of the published metric mask no token of these rows."""


@dataclass(frozen=True)
class Published:
    reweighted_loss: float  # mean of w(m) times nats over masked tokens: neither nats per token nor a bound
    stderr: float  # over the draws where there are several, else over the rows
    single_draw_sd: float  # standard deviation of one draw, which is what the published code reports
    published_metric: float  # exp(reweighted_loss), called perplexity in the publication
    draws: int  # those that mask a token, which are nearly all
    each: list[float]  # the reweighted loss of each draw; both objectives share the draws of a seed

    @property
    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of the reweighted loss."""
        half = self.stderr * (t_975(self.draws - 1) if self.draws > 1 else 1.96)
        return self.reweighted_loss - half, self.reweighted_loss + half

    def asdict(self) -> dict:
        return asdict(self) | {"interval": list(self.interval)}


def draw_shares(lengths: Tensor, *, seed: int, draw: int) -> tuple[Tensor, Tensor]:
    """Draw one m ~ U(0, 1) for each row; return int(m n) (R,) int64 and w(m) (R,) fp64."""
    words = random_words(torch.arange(len(lengths)), seed=seed, step=draw, stream=STREAM_TIME)
    m = (words.double() + 0.5) / 2**32
    return lengths * words >> 32, ((1 - m) / m).clamp(max=LARGEST_WEIGHT)


def uniform_factor(lengths) -> float:
    """Return E[w(m) int(m n)] / E[int(m n)] over rows of these lengths, the score of a loss of 1 at every token.

    It is at most 5/6. int(m n) = l on [l/n, (l+1)/n), and w has the antiderivative 5 m below 1/6 and
    5/6 + ln 6m - (m - 1/6) above it. Raises NoMetric where every row has one token.
    """
    below = 1 / (LARGEST_WEIGHT + 1)

    def antiderivative(m):
        return np.where(m < below, LARGEST_WEIGHT * m, LARGEST_WEIGHT * below + np.log(np.maximum(m, below) / below)
                        - (np.maximum(m, below) - below))  # fmt: skip

    top = bottom = 0.0
    for n, rows in zip(*np.unique(np.asarray(lengths), return_counts=True), strict=True):
        l = np.arange(1, n)  # noqa: E741  the papers' letter
        top += rows * float((l * (antiderivative((l + 1) / n) - antiderivative(l / n))).sum())
        bottom += rows * float(l.sum() / n)
    if not bottom:
        raise NoMetric("rows of one token are never masked by int(m n), so they have no published metric")
    return top / bottom


def published_metric(
    model, split: Split, objective: str, *, start_token_id: int, seed: int = 0, draws: int = 1, batch_size: int = 64,
    precision: str = "fp32", nll: Tensor | None = None,
) -> Published:  # fmt: skip
    """Return the published metric of a split; the published code makes one draw.

    nll (R, T) is autoregressive_nll, where it is known already. Draws that mask nothing are left out. Raises
    NoMetric where no draw masks a token.
    """
    lengths = row_lengths(split)
    if int(lengths.max()) < 2:
        uniform_factor(split.lengths)  # raises, with the reason
    tops, bottoms, squares = [], [], []
    if objective == "autoregressive" and nll is None:
        nll = autoregressive_nll(
            model, split, start_token_id=start_token_id, batch_size=batch_size, precision=precision
        )
    with scoring(model, precision) as device:
        for draw in range(draws):
            counts, weights = draw_shares(lengths, seed=seed, draw=draw)
            if not counts.any():
                continue
            kw = dict(seed=seed, draw=draw, batch_size=batch_size)
            if nll is not None:
                sums = nll_sums(nll, split, counts, **kw)
            else:
                sums = masked_sums(model, split, counts, device=device, **kw)
            top = sums.cpu() * weights
            tops.append(top.sum().item())
            bottoms.append(counts.sum().item())
            squares.append(((top - top.sum() / counts.sum() * counts) ** 2).sum().item())
    if not bottoms:
        none = f"int(m n) masks no token of {len(split)} short rows in {draws} draw{'s' * (draws > 1)}"
        raise NoMetric(f"{none}, so they have no published metric")
    value, draws = sum(tops) / sum(bottoms), len(bottoms)
    each = [a / b for a, b in zip(tops, bottoms, strict=True)]
    # One draw shows its spread over the rows, whose noise levels are independent (a quotient's linearisation).
    spread = float(np.std(each, ddof=1)) if draws > 1 else math.sqrt(squares[0]) / bottoms[0]
    return Published(value, spread / math.sqrt(draws), spread, math.exp(min(value, 700)), draws, each)


def both(
    model, split: Split, objective: str, *, draws: int, start_token_id: int, seed: int, batch_size: int,
    precision: str, **until,
) -> tuple[Likelihood, Published | None]:  # fmt: skip
    """Return the likelihood and, with draws > 0, the published metric of the same tokens where they have one.

    An autoregressive model runs once for both. until: target_stderr, min_samples and max_samples, as in `likelihood`.
    """
    kw: dict[str, Any] = dict(start_token_id=start_token_id, batch_size=batch_size, precision=precision)
    if objective == "autoregressive":
        nll = autoregressive_nll(model, split, **kw)
        score = exact(nll, split)
    else:
        nll, score = None, likelihood(model, split, objective, seed=seed, **until, **kw)
    if not draws:
        return score, None
    try:
        return score, published_metric(model, split, objective, draws=draws, seed=seed, nll=nll, **kw)
    except NoMetric as e:
        print(f"NOTE: {e}; it is left out", file=sys.stderr)
        return score, None
