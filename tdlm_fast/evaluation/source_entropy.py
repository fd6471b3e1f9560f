"""Compute what no likelihood can beat on a Markov source (data/markov.py): its entropy, and its own likelihood.

    h    = -sum_s pi(s) sum_a p(a | s) log p(a | s)             nats per letter; pi is the stationary distribution
    H(n) = -sum_w pi(w) log pi(w) + (n - m) h                   nats of n letters in a row; w the first m = min(n, k)

The letters before a row are unknown to a model, so the first k letters of each row cost their entropy under pi. H(n) is
an expectation: for a split it is off by some 0.004 nats per token, by chance. The source's own -log p of the very
letters is not. By Gibbs' inequality a model that scores lower than that does so by chance too, or has an error.
"""

import functools
from dataclasses import asdict, dataclass

import numpy as np

from ..config import Data
from ..data.dataset import Split
from ..data.markov import LETTERS, transitions

STEPS = 200  # what is left of any other distribution after them is 0.6**200, and less where the order is 1


@dataclass(frozen=True)
class Source:
    """Nats per token of a split: expected (`entropy`), and of the very tokens under the source itself."""

    entropy: float
    nats_per_token: float
    stderr: float  # of nats_per_token - entropy, in nats per token; rows count as independent

    def asdict(self) -> dict:
        return asdict(self)


@functools.cache
def stationary(order: int) -> np.ndarray:
    """Return pi of every context, (A**order,) float64, summing to 1: the distribution that a step leaves as it is."""
    p = transitions(order)
    S, A = p.shape
    pi = np.full(S, 1 / S)
    for _ in range(STEPS):
        pi = (pi[:, None] * p).reshape(A, S).sum(0)  # the oldest letter leaves the context
    return pi / pi.sum()


def _entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(p)).sum(-1)


def rate(order: int) -> float:
    """Return h, nats per letter."""
    return float(stationary(order) @ _entropy(transitions(order)))


def _starts(order: int) -> list[np.ndarray]:
    """Return pi of the first m letters of a row, (A**m,) float64 for each m from 0 to the order."""
    return [stationary(order).reshape(-1, len(LETTERS) ** (order - m)).sum(1) for m in range(order + 1)]


def row_entropies(order: int, lengths: np.ndarray) -> np.ndarray:
    """Return H(n) in nats of rows of these lengths (R,) int64, (R,) float64."""
    start = np.array([_entropy(pi) for pi in _starts(order)])
    return start[np.minimum(lengths, order)] + np.maximum(lengths - order, 0) * rate(order)


def row_nats(order: int, split: Split) -> np.ndarray:
    """Return -log p in nats of every row under the source itself, (R,) float64."""
    A, letters = len(LETTERS), split.tokens.astype(np.int64) - ord(LETTERS[0])
    context = np.zeros(len(letters), np.int64)  # of each letter: the `order` letters before it
    for back in range(1, order + 1):
        context[order:] += letters[order - back : len(letters) - back] * A ** (back - 1)
    total = np.concatenate([[0.0], np.cumsum(-np.log2(transitions(order)[context, letters]))])  # bits, all exact
    m = np.minimum(split.lengths, order)
    nats = (total[split.starts + split.lengths] - total[split.starts + m]) * np.log(2)
    for n, pi in enumerate(_starts(order)):
        rows = m == n
        place = split.starts[rows, None] + np.arange(n)
        nats[rows] -= np.log(pi[letters[place] @ A ** np.arange(n)[::-1]])
    return nats


def source(config: Data, split: Split) -> Source | None:
    """Return the entropy and the source's own likelihood of a split; None where the corpus is not a Markov source."""
    order = config.markov_order
    if not order:
        return None
    away = row_nats(order, split) - row_entropies(order, split.lengths)
    entropy = float(row_entropies(order, split.lengths).sum() / split.scored)
    stderr = float(np.sqrt((away**2).sum()) / split.scored)
    return Source(entropy, entropy + float(away.sum()) / split.scored, stderr)
