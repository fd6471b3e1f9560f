"""Compute exact likelihoods of a masked model: the chain rule along an order of unmasking.

    -log p(x0) = sum_s sum_{i in I_s} -log p(x0_i | the tokens revealed before step s)

left-to-right: I_s = {s}. A policy reveals the k masked tokens that are the most certain, given the revealed ones:

    confidence  by the probability of the most probable value
    margin      by that probability minus that of the second value
    entropy     by the entropy of the distribution, the lowest first

The choice never looks at the true values of the masked tokens, so the path is a function of x0, and the sum is the
exact likelihood of x0 under the sampler that reveals k tokens a step in that order, each drawn for itself (DUEL, Turok
et al. 2026, arXiv 2603.01367). It takes one forward pass for every k tokens of a row, where the bound takes one for
each draw, so it is computed on a subset of the rows. oracle is not a likelihood: it looks at the answer to find, among
all orders that reveal one token a step, the one with the fewest nats. No policy of one token a step can score less.
"""

import functools
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..data.dataset import Split
from ..kernels import linear_cross_entropy
from ..kernels.philox import STREAM_SAMPLE, random_words
from .likelihood import ROWS_OF_LOGITS, batches, row_lengths, scoring

# Log-probabilities this close count as equal. Where everything is masked, a model with rotary positions predicts the
# same at every place, so rounding would choose the first token to reveal.
TIE = 1e-4
LONGEST_ORACLE = 12  # tokens of a row, whose 2^12 sets of revealed tokens are all scored


def cut(split: Split, tokens: int, tokenizer) -> Split:
    """Return the split with each row cut off after that many tokens."""
    lengths = np.minimum(split.lengths, tokens)
    short = replace(split, lengths=lengths, seq_len=min(tokens, split.seq_len), words=None)
    return replace(short, bytes=_bytes(short, tokenizer))


def _bytes(split: Split, tokenizer) -> int:
    if not split.bytes:
        return 0
    size = np.array(tokenizer.token_bytes(), dtype=np.int64)
    return sum(int(size[split.tokens[s : s + n]].sum()) for s, n in zip(split.starts, split.lengths, strict=True))


def subset(split: Split, rows: int, tokenizer, *, seed: int = 0) -> Split:
    """Return a Split of that many rows of a split, drawn by the seed; all of them where it has fewer."""
    words = random_words(torch.arange(len(split)), seed=seed, step=0, stream=STREAM_SAMPLE)
    index = np.sort(torch.argsort(words, stable=True).numpy()[:rows])
    few = replace(split, lengths=split.lengths[index], starts=split.starts[index], words=None)
    return replace(few, bytes=_bytes(few, tokenizer))


@torch.no_grad()
def left_to_right(model, split: Split, *, batch_size: int = 64, precision: str = "fp32") -> Tensor:
    """Return the nats of each row, (R,) fp64, revealing one token after the other."""
    lengths = row_lengths(split)
    row = torch.repeat_interleave(torch.arange(len(split)), lengths)
    step = torch.cat([torch.arange(n) for n in lengths.tolist()])
    total = torch.zeros(len(split), dtype=torch.float64)
    place = torch.arange(split.seq_len)
    with scoring(model, precision) as device:
        for i in range(0, len(row), batch_size):
            r, s = row[i : i + batch_size], step[i : i + batch_size]
            x0, valid = split.rows(r.numpy())
            hidden = place >= s[:, None]  # padding too, which is not attended to
            xt = torch.where(hidden, model.mask_token_id, x0).to(device)
            h = model(xt, causal=False, valid=None if valid is None else valid.to(device))
            at = torch.arange(len(r))
            nll = linear_cross_entropy(h[at, s.to(device)], model.head, x0[at, s].to(device), reduction="none")
            total.index_add_(0, r, nll.double().cpu())
    return total


def certainty(log_p: Tensor, policy: str) -> Tensor:
    """Return the value (N,) by which a policy prefers places, the largest first, from log-probabilities (N, V)."""
    if policy == "confidence":
        return log_p.amax(-1)
    if policy == "margin":
        best = log_p.topk(2).values.exp()
        return best[:, 0] - best[:, 1]
    if policy != "entropy":
        raise ValueError(f"{policy!r} is not a policy; take confidence, margin or entropy")
    return (log_p.exp() * log_p).nan_to_num().sum(-1)  # minus the entropy; 0 log 0 = 0


def best_places(value: Tensor, k: int) -> Tensor:
    """Choose the k largest of value (B, T) in each row, (B, T) bool; of equals (within TIE) the leftmost.

    Places whose values differ only by rounding would otherwise be chosen by the machine. Places of -inf are never
    chosen, so a row with fewer others has fewer.
    """
    value, chosen = value.clone(), torch.zeros_like(value, dtype=torch.bool)
    row = torch.arange(len(value), device=value.device)
    for _ in range(k):
        best = value.amax(1, keepdim=True)
        pick = (value >= best - TIE).int().argmax(1)
        chosen[row, pick] |= best[:, 0] != -torch.inf  # nan is chosen, so that it is not lost
        value[row, pick] = -torch.inf
    return chosen


def _certainty_and_nll(h: Tensor, head: Tensor, targets: Tensor, policy: str) -> tuple[Tensor, Tensor]:
    """Return the certainty of each row of h by a policy, and -log p of its target, (N,) fp32 each."""
    sure, nll = [], []
    with torch.autocast(h.device.type, enabled=False):
        for i in range(0, len(h), ROWS_OF_LOGITS):
            log_p = (h[i : i + ROWS_OF_LOGITS].float() @ head.float().T).log_softmax(-1)
            sure.append(certainty(log_p, policy))
            nll.append(-log_p.gather(1, targets[i : i + ROWS_OF_LOGITS, None])[:, 0])
    return torch.cat(sure), torch.cat(nll)


@torch.no_grad()
def by_certainty(
    model, split: Split, *, policy: str = "confidence", at_once: int = 1, batch_size: int = 64, precision: str = "fp32"
) -> Tensor:
    """Return the nats of each row, (R,) fp64, revealing the most certain tokens first, at_once a step.

    Of equals (TIE) the leftmost is first. Tokens of one step are independent given those before it.
    """
    parts = []
    with scoring(model, precision) as device:
        for _, x0, valid in batches(split, batch_size, device):
            masked = torch.ones_like(x0, dtype=torch.bool) if valid is None else valid.clone()
            total = torch.zeros(len(x0), dtype=torch.float64, device=device)
            for _ in range(-(-int(masked.sum(1).max()) // at_once)):
                h = model(torch.where(masked, model.mask_token_id, x0), causal=False, valid=valid)[masked]
                sure, nll = (torch.full(x0.shape, -torch.inf, device=device) for _ in range(2))
                sure[masked], nll[masked] = _certainty_and_nll(h, model.head, x0[masked], policy)
                revealed = best_places(sure, at_once)
                total += torch.where(revealed, nll, 0.0).double().sum(1)
                masked &= ~revealed
            parts.append(total.cpu())
    return torch.cat(parts)


def _revealed(tokens: int) -> Tensor:
    """Return every set of revealed places but the whole, (2^tokens - 1, tokens) bool: row s holds the bits of s."""
    sets = torch.arange(2**tokens - 1)
    return (sets[:, None] >> torch.arange(tokens) & 1).bool()


@torch.no_grad()
def oracle(model, split: Split, *, batch_size: int = 64, precision: str = "fp32") -> Tensor:
    """Return the nats of each row, (R,) fp64, along the order that has the fewest. Not a likelihood: it sees the row.

    With f(S) the fewest nats of the tokens outside of S once those of S are revealed: f(S) = min over i outside of S of
    -log p(x0_i | S) + f(S + i), and f of all tokens is 0 (Held and Karp 1962). All 2^n sets of a row of n tokens take a
    forward pass. Raises ValueError where a row has more than LONGEST_ORACLE tokens.
    """
    if int(split.lengths.max()) > LONGEST_ORACLE:
        raise ValueError(
            f"the best order of {int(split.lengths.max())} tokens takes too long; {LONGEST_ORACLE} at most"
        )
    best = []
    with scoring(model, precision) as device:
        for r, n in enumerate(split.lengths.tolist()):
            x0, valid = split.rows(np.array([r]), device)
            known, nll = _revealed(n), []
            for part in known.split(batch_size):
                hidden = torch.ones(len(part), x0.shape[1], dtype=torch.bool, device=device)
                hidden[:, :n] = ~part.to(device)
                real = None if valid is None else valid.expand(len(part), -1)
                h = model(torch.where(hidden, model.mask_token_id, x0), causal=False, valid=real)[:, :n]
                targets = x0[:, :n].expand(len(part), -1).flatten()
                each = linear_cross_entropy(h.flatten(0, 1), model.head, targets, reduction="none")
                nll.append(each.view(len(part), n).double().cpu())
            best.append(_fewest(torch.cat(nll), known))
    return torch.tensor(best, dtype=torch.float64)


def _fewest(nll: Tensor, known: Tensor) -> float:
    """Return f of the empty set, from nll (2^n - 1, n), the nats of each token given each set, and the sets."""
    n = known.shape[1]
    left = torch.where(known, torch.inf, nll).tolist()  # a revealed token is not revealed again
    f = [0.0] * 2**n
    for s in range(2**n - 2, -1, -1):
        f[s] = min(left[s][i] + f[s | 1 << i] for i in range(n) if not s >> i & 1)
    return f[0]


ORDERS = {
    "left-to-right": left_to_right,
    "confidence": functools.partial(by_certainty, policy="confidence"),
    "margin": functools.partial(by_certainty, policy="margin"),
    "entropy": functools.partial(by_certainty, policy="entropy"),
    "confidence, 4 at a time": functools.partial(by_certainty, policy="confidence", at_once=4),
}


def mean_and_stderr(nats: Tensor, tokens: Tensor) -> tuple[float, float]:
    """Return nats per token from the nats and tokens (R,) of rows, and its standard error as a quotient of sums."""
    nats, tokens = nats.double(), tokens.double()
    mean = nats.sum() / tokens.sum()
    R = len(nats)
    if R < 2:
        return mean.item(), float("inf")
    rest = nats - mean * tokens
    return mean.item(), ((rest**2).sum() * R / (R - 1)).sqrt().item() / tokens.sum().item()
