"""Score the 5-gram baseline: interpolated Kneser-Ney with modified discounts (Chen and Goodman 1998, section 4.1.6).

    p_k(w | h) = max(a(h w) - D(a(h w)), 0) / a(h .)  +  g(h) p_{k-1}(w | h without its first token)
    g(h)       = sum_w min(D(a(h w)), a(h w)) / a(h .)         p_0(w) = 1 / V

a is the count of the k-gram in the training rows for k = 5, and for k-grams that begin a row; for other k below 5 it is
the number of distinct tokens that stand before it. D has a value for counts of 1, 2, and 3 or more, from the numbers of
k-grams that have counts of 1 to 4. A context that does not occur leaves p_{k-1}. The context of a token is what stands
before it in its row, with a start token first, as for a model. A model that does not score better has learnt no more
than short phrases.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from ..data.dataset import Split
from .likelihood import Likelihood, exact
from .unigram import scored_tokens

ORDER = 5
MOST_TOKENS = 20_000_000  # of the training rows; the rows after them are left out
FALLBACK = (0.5, 1.0, 1.5)  # discounts where the counts of counts give none (as in KenLM)


@dataclass(frozen=True)
class Grams:
    """The k-grams of the training rows for one k, by key = (id of the first k - 1 tokens) (V + 1) + last token."""

    keys: np.ndarray  # (G,) int64; the id of a k-gram is its place here
    counts: np.ndarray  # (G,) a, int64
    totals: np.ndarray  # (contexts,) a(h .), 0 where nothing follows
    rest: np.ndarray  # (contexts,) g(h)
    discounts: tuple[float, float, float]


def _text(split: Split, start: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows one after the other with a start token before each, (N + R,) int64, and the place in the row."""
    lengths = split.lengths.astype(np.int64)
    first = np.cumsum(lengths) - lengths + np.arange(len(lengths))  # where a row begins
    place = np.arange(lengths.sum() + len(lengths)) - np.repeat(first, lengths + 1)
    tokens = np.full(len(place), start, dtype=np.int64)
    tokens[place > 0] = scored_tokens(split)
    return tokens, place


def discounts(counts: np.ndarray) -> tuple[float, float, float]:
    """Return D for counts of 1, 2, and 3 or more, or FALLBACK where they are not within 0 and the count."""
    n = [int((counts == c).sum()) for c in (1, 2, 3, 4)]
    if 0 in n[:3]:
        return FALLBACK
    y = n[0] / (n[0] + 2 * n[1])
    d = (1 - 2 * y * n[1] / n[0], 2 - 3 * y * n[2] / n[1], 3 - 4 * y * n[3] / n[2])
    return d if all(0 < d[c - 1] < c for c in (1, 2, 3)) else FALLBACK


def _discount(counts: np.ndarray, d: tuple[float, float, float]) -> np.ndarray:
    return np.array([0.0, *d])[np.minimum(counts, 3)]


class KneserNey:
    """An n-gram model of the rows of a training split, over a vocabulary of V tokens."""

    def __init__(self, train: Split, vocab: int, order: int = ORDER):
        self.vocab, self.size = vocab, vocab + 1  # a start token that no text holds is the last
        tokens, place = _text(train, vocab)
        ids, found = [tokens], [(np.arange(self.size), np.bincount(tokens[place > 0], minlength=self.size))]
        for k in range(2, order + 1):  # ids: of the k-gram that ends at each place, -1 where its row begins later
            key = np.where(place >= k - 1, np.roll(ids[-1], 1) * self.size + tokens, -1)
            keys, inverse, raw = np.unique(key, return_inverse=True, return_counts=True)
            if len(keys) == 1:  # no row is that long
                break
            ids.append(inverse.reshape(-1) - 1)  # the first key is -1, of the start tokens
            found.append((keys[1:], raw[1:]))
        self.grams: list[Grams] = []
        for k, (keys, raw) in enumerate(found, 1):
            counts = raw if k == len(found) else self._distinct(ids[k], ids[k - 1], raw, k)
            self.grams.append(self._with_totals(keys, counts, k))

    @staticmethod
    def _distinct(longer: np.ndarray, shorter: np.ndarray, raw: np.ndarray, k: int) -> np.ndarray:
        """Return a of the k-grams: how many distinct tokens stand before each, or its count where it begins a row."""
        _, one = np.unique(longer, return_index=True)  # a place of each distinct (k + 1)-gram
        before = np.bincount(shorter[one[longer[one] >= 0]], minlength=len(raw))
        return before if k == 1 else np.where(before > 0, before, raw)

    def _with_totals(self, keys: np.ndarray, counts: np.ndarray, k: int) -> Grams:
        context = keys // self.size if k > 1 else np.zeros(len(keys), np.int64)
        contexts, d = len(self.grams[-1].keys) if k > 1 else 1, discounts(counts)
        totals = np.bincount(context, counts, contexts)
        left = np.bincount(context, np.minimum(_discount(counts, d), counts), contexts)
        return Grams(keys, counts, totals, left / np.maximum(totals, 1), d)

    def probabilities(self, split: Split) -> np.ndarray:
        """Return p of each token of the rows, (N,) fp64, row after row."""
        tokens, place = _text(split, self.vocab)
        p, context = np.full(len(tokens), 1 / self.vocab), np.zeros(len(tokens), np.int64)
        for k, g in enumerate(self.grams, 1):  # context: the (k - 1)-gram before each token, -1 where unknown
            key = context * self.size + tokens
            at = np.minimum(np.searchsorted(g.keys, key), len(g.keys) - 1)
            known = (g.keys[at] == key) & (context >= 0)
            count, h = np.where(known, g.counts[at], 0), np.maximum(context, 0)
            total = np.where(context >= 0, g.totals[h], 0)
            share = np.maximum(count - _discount(count, g.discounts), 0) / np.maximum(total, 1)
            p = np.where(total > 0, share + g.rest[h] * p, p)
            context = np.where(place > k - 1, np.roll(np.where(known, at, -1), 1), -1)
        return p[place > 0]


def first_rows(train: Split, most: int = MOST_TOKENS) -> Split:
    """Return the first rows of a split that hold at most that many tokens, all where they are fewer."""
    rows = max(1, int(np.searchsorted(np.cumsum(train.lengths), most, side="right")))
    return replace(train, lengths=train.lengths[:rows], starts=train.starts[:rows], words=None)


def kneser_ney(train: Split, split: Split, vocab: int) -> Likelihood:
    """Return the exact likelihood of a split under the baseline, counted on at most MOST_TOKENS training tokens."""
    p = KneserNey(first_rows(train), vocab).probabilities(split)
    return exact(-torch.from_numpy(p).log(), split)
