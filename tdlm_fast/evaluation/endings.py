"""Compute log-likelihoods of endings given their contexts: exact for autoregressive models, a bound for diffusion.

    autoregressive  sum_{i in ending} log p(x0_i | <start>, x0_<i)                                               exact
    diffusion       n E_{l~U{1..n}} E_{|S|=l} [ (1/l) sum_{i in S} log p(x0_i | x0 with S masked) ]       a lower bound

n is the number of tokens of the ending and S a set of them; the context is never masked (Nie et al. 2025, Appendix
B.5). Where the 2^n - 1 subsets of an ending are at most `samples`, all are enumerated, and the bound is computed
without noise. A longer ending takes `samples` draws whose l are spread evenly over 1..n; where n divides samples, the
expectation over l is exact.

The endings of a question share their random numbers: the offset of l, and the random words of each place, counted from
the start of the ending. So endings of one length have the same places masked in every draw, which lowers the variance
of their difference. Draws are a function of (seed, group, question) only, not of the batch, the order or --limit.

Rows of one forward pass have equal lengths, so nothing is padded, and the head sees only the tokens that bear loss.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..kernels import linear_cross_entropy
from ..kernels.ops.corrupt import random_subsets
from ..kernels.philox import STREAM_TIME, random_words
from ..objective import next_token_inputs
from .likelihood import most_probable
from .tasks import Question

MAX_SAMPLES, MAX_TOKENS = 1 << 10, 1 << 12  # the counter of the random words has no room for more


@dataclass
class Rows:
    """Hold token rows whose last n tokens are an ending, or a piece of one that is longer than the model's rows."""

    tokens: list[list[int]] = field(default_factory=list)
    n: list[int] = field(default_factory=list)
    slot: list[int] = field(default_factory=list)  # index of the ending
    draw: list[int] = field(default_factory=list)  # key of its random words: one for each piece of each question
    lengths: list[int] = field(default_factory=list)  # tokens of each ending
    cut: int = 0  # questions whose context lost tokens on the left
    pieced: int = 0  # endings longer than the model's rows, scored in pieces

    def add(self, context: list[int], ids: list[int], T: int, question: int) -> None:
        """Add an ending as rows of at most T tokens, with the random words of that question; see rows_of."""
        size = max(len(ids) if len(ids) <= T else T // 2, 1)
        self.pieced += size < len(ids)
        for piece, i in enumerate(range(0, len(ids), size)):
            last = ids[i : i + size]
            before = context + ids[:i]
            self.tokens.append(before[max(0, len(before) + len(last) - T) :] + last)
            self.n.append(len(last))
            self.slot.append(len(self.lengths))
            self.draw.append((question << 8) + piece)
        self.lengths.append(len(ids))


def pair(tokenizer, context: str, ending: str) -> tuple[list[int], list[int]]:
    """Encode a context and its ending together and return the ids of each; spaces between them belong to the ending.

    The definition of lm-evaluation-harness (api/model.py, _encode_pair).
    """
    before = tokenizer.encode(context.rstrip())
    return before, tokenizer.encode(context + ending)[len(before) :]


def rows_of(questions: list[Question], tokenizer, T: int, offset: int = 0) -> Rows:
    """Return the rows of questions, of at most T tokens; offset is the place of the first question in its group.

    A context is cut from the left until its ending fits. An ending of more than T tokens is scored in pieces of T // 2,
    each after as many of the tokens before it as fit.
    """
    rows = Rows()
    for q, question in enumerate(questions, offset):
        cut = False
        for ending in question.endings:
            context, ids = pair(tokenizer, question.context, ending)
            cut |= len(context) + len(ids) > T
            rows.add(context, ids, T, q)
        rows.cut += cut
    return rows


def _passes(rows: Rows, repeats, tokens: int, device):
    """Yield (x0 (R, L), n, slot, draw, k), all (R,) int64, at most `tokens` in R x L or one row.

    Every row comes repeats(n) times, numbered by k; all rows of a yield have the same length.
    """
    by_length: dict[int, list[int]] = {}
    for i, row in enumerate(rows.tokens):
        by_length.setdefault(len(row), []).append(i)
    for L, index in sorted(by_length.items()):
        x0 = torch.tensor([rows.tokens[i] for i in index])
        n, slot, draw = (torch.tensor([a[i] for i in index]) for a in (rows.n, rows.slot, rows.draw))
        times = repeats(n)
        r = torch.repeat_interleave(torch.arange(len(index)), times)
        k = torch.arange(len(r)) - (times.cumsum(0) - times)[r]
        size = max(1, tokens // L)
        for i in range(0, len(r), size):
            at = r[i : i + size]
            yield tuple(a.to(device) for a in (x0[at], n[at], slot[at], draw[at], k[i : i + size]))


def _exact(n: Tensor, samples: int) -> Tensor:
    """Return which endings of n tokens have all their subsets enumerated."""
    return n < (samples + 1).bit_length()  # 2^n - 1 <= samples


def draws_of(n: Tensor, samples: int) -> Tensor:
    """Return how many masked copies an ending of n tokens needs."""
    return torch.where(_exact(n, samples), (1 << n.clamp(max=30)) - 1, samples)


def masks(n: Tensor, k: Tensor, draw: Tensor, *, samples: int, seed: int, key: int) -> tuple[Tensor, Tensor, Tensor]:
    """Make draw k (R,) of endings of n (R,) tokens; return (S (R, max n) bool, weight (R,) fp64, half (R,) fp64).

    The bound is the sum of weight * (log-likelihoods of S) over the draws. Sampled draws come in two halves, +1 and -1,
    and each half estimates the bound by itself. Enumerated subsets have weight 1/(l C(n, l)) and half 0.
    """
    place = torch.arange(int(n.max()), device=n.device)
    exact = _exact(n, samples)
    listed = ((k[:, None] + 1) >> place.clamp(max=40)) & 1 == 1
    # The second half is moved by half a step, so both together are one even grid over 1..n.
    u = (random_words(draw, seed=seed, step=key, stream=STREAM_TIME) + ((k % 2) << 31)) % (1 << 32)
    count = n * (((k // 2) << 32) + u) // ((samples // 2) << 32) + 1
    index = ((draw * MAX_SAMPLES + k) * MAX_TOKENS)[:, None] + place
    drawn = random_subsets(count[:, None], place < n[:, None], index, seed=seed, step=key)
    S = torch.where(exact[:, None], listed & (place < n[:, None]), drawn)
    m, size = S.sum(1).double(), n.double()
    subsets = torch.exp(torch.lgamma(size + 1) - torch.lgamma(m + 1) - torch.lgamma(size - m + 1))
    weight = torch.where(exact, 1 / (m * subsets), size / (samples * m))
    return S, weight, torch.where(exact, 0.0, 1.0 - 2.0 * (k % 2))


@torch.no_grad()
def log_likelihoods(
    model, objective: str, rows: Rows, *, start_token_id: int, samples: int, seed: int = 0, key: int = 0,
    tokens: int = 8192, device="cpu",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return (log-likelihood of every ending, its noise), (E,) fp64 nats each.

    noise is half the difference between the estimates of the two halves of the draws. It is at least as large as the
    error of the whole, since the halves share one grid of counts, and 0 where the bound has no noise. samples is even,
    2 to 1024; key keeps groups apart; a forward pass takes `tokens` tokens.
    """
    if samples % 2 or not 2 <= samples <= MAX_SAMPLES:
        raise ValueError(f"samples is {samples}; it must be even, from 2 to {MAX_SAMPLES}")
    total = torch.zeros(2, len(rows.lengths), dtype=torch.float64, device=device)
    diffusion = objective == "diffusion"
    repeats = (lambda n: draws_of(n, samples)) if diffusion else torch.ones_like
    for x0, n, slot, draw, k in _passes(rows, repeats, tokens, device):
        bears = torch.arange(x0.shape[1], device=device) - (x0.shape[1] - n)[:, None]  # place in the ending
        if diffusion:
            S, weight, half = masks(n, k, draw, samples=samples, seed=seed, key=key)
            bears = (bears >= 0) & S.gather(1, bears.clamp(min=0))
            h = model(torch.where(bears, model.mask_token_id, x0), causal=False)
        else:
            bears, weight, half = bears >= 0, torch.ones_like(n).double(), torch.zeros_like(n)
            h = model(next_token_inputs(x0, start_token_id, None)[0], causal=True)
        nll = linear_cross_entropy(h[bears], model.head, x0[bears], reduction="none").double()
        row = torch.arange(len(n), device=device)[:, None].expand_as(bears)[bears]
        nats = torch.zeros_like(weight).index_add_(0, row, nll) * weight
        total[0].index_add_(0, slot, -nats)
        total[1].index_add_(0, slot, -nats * half)
    return total[0].cpu(), total[1].cpu()


@torch.no_grad()
def greedy(model, objective: str, rows: Rows, *, start_token_id: int, tokens: int = 8192, device="cpu") -> list[bool]:
    """Return for each ending whether the most probable tokens, one after the other, are its tokens.

    Diffusion unmasks from left to right with the rest of the ending masked, so it sees how many tokens the ending has.
    """
    right = torch.ones(len(rows.lengths), dtype=torch.bool, device=device)
    diffusion = objective == "diffusion"
    for x0, n, slot, _, k in _passes(rows, torch.clone if diffusion else torch.ones_like, tokens, device):
        place = torch.arange(x0.shape[1], device=device) - (x0.shape[1] - n)[:, None]
        if diffusion:
            bears = place == k[:, None]
            h = model(torch.where(place >= k[:, None], model.mask_token_id, x0), causal=False)
        else:
            bears = place >= 0
            h = model(next_token_inputs(x0, start_token_id, None)[0], causal=True)
        with torch.autocast(h.device.type, enabled=False):
            best = most_probable(h[bears], model.head)
        wrong = slot[:, None].expand_as(bears)[bears][best != x0[bears]]
        right[wrong] = False
    return right.tolist()
