"""Compute exact likelihoods of a masked model: the chain rule along an order of unmasking.

    -log p(x0) = sum_s -log p(x0_{i_s} | the tokens revealed before step s)

left-to-right: i_s = s. confidence: i_s is the masked token whose most probable value has the highest probability,
given the revealed tokens. The choice never looks at the true values of the masked tokens, so the path is a function of
x0, and the sum is the exact likelihood of x0 under the sampler that reveals one token a step in that order (DUEL, Turok
et al. 2026, arXiv 2603.01367). It takes one forward pass for each token, where the bound takes one for each draw, so it
is computed on a subset of the rows.
"""

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


def subset(split: Split, rows: int, tokenizer, *, seed: int = 0) -> Split:
    """Return a Split of that many rows of a split, drawn by the seed; all of them where it has fewer."""
    words = random_words(torch.arange(len(split)), seed=seed, step=0, stream=STREAM_SAMPLE)
    index = np.sort(torch.argsort(words, stable=True).numpy()[:rows])
    lengths, starts = split.lengths[index], split.starts[index]
    size = np.array(tokenizer.token_bytes(), dtype=np.int64)
    total = sum(int(size[split.tokens[s : s + n]].sum()) for s, n in zip(starts, lengths, strict=True))
    return replace(split, lengths=lengths, starts=starts, bytes=total, words=None)


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


def _confidence_and_nll(h: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probability of the most probable token and -log p of the target, (N,) fp32 each."""
    best, nll = [], []
    with torch.autocast(h.device.type, enabled=False):
        for i in range(0, len(h), ROWS_OF_LOGITS):
            log_p = (h[i : i + ROWS_OF_LOGITS].float() @ head.float().T).log_softmax(-1)
            best.append(log_p.amax(-1))
            nll.append(-log_p.gather(1, targets[i : i + ROWS_OF_LOGITS, None])[:, 0])
    return torch.cat(best), torch.cat(nll)


@torch.no_grad()
def confidence(model, split: Split, *, batch_size: int = 64, precision: str = "fp32") -> Tensor:
    """Return the nats of each row, (R,) fp64, revealing the most certain token first; of equals (TIE) the leftmost."""
    parts = []
    with scoring(model, precision) as device:
        for _, x0, valid in batches(split, batch_size, device):
            masked = torch.ones_like(x0, dtype=torch.bool) if valid is None else valid.clone()
            total = torch.zeros(len(x0), dtype=torch.float64, device=device)
            for _ in range(int(masked.sum(1).max())):
                h = model(torch.where(masked, model.mask_token_id, x0), causal=False, valid=valid)[masked]
                best, nll = (torch.full(x0.shape, -torch.inf, device=device) for _ in range(2))
                best[masked], nll[masked] = _confidence_and_nll(h, model.head, x0[masked])
                left = masked.any(1)
                pick = (best >= best.amax(1, keepdim=True) - TIE).int().argmax(1)
                total += torch.where(left, nll.gather(1, pick[:, None])[:, 0], 0.0).double()
                masked[torch.arange(len(x0), device=device), pick] = False
            parts.append(total.cpu())
    return torch.cat(parts)


ORDERS = {"left-to-right": left_to_right, "confidence": confidence}


def mean_and_stderr(nats: Tensor, tokens: Tensor) -> tuple[float, float]:
    """Return nats per token from the nats and tokens (R,) of rows, and its standard error as a quotient of sums."""
    nats, tokens = nats.double(), tokens.double()
    mean = nats.sum() / tokens.sum()
    R = len(nats)
    if R < 2:
        return mean.item(), float("inf")
    rest = nats - mean * tokens
    return mean.item(), ((rest**2).sum() * R / (R - 1)).sqrt().item() / tokens.sum().item()
