"""Score the unigram baseline, a predictor that knows how often each token occurs and sees no context.

    p(v) = (count of v in the training rows + 1) / (their tokens + V)      add-one smoothing (Laplace)

A model that does not score better has learnt only frequencies.
"""

import numpy as np
import torch
from torch import Tensor, nn

from ..data.dataset import Split
from .likelihood import Likelihood, exact


def scored_tokens(split: Split) -> np.ndarray:
    """Return the tokens of the rows, (N,) int64, one row after the other."""
    ends = np.cumsum(split.lengths)
    return split.tokens[np.arange(ends[-1]) + np.repeat(split.starts - ends + split.lengths, split.lengths)].astype(int)


def log_probabilities(train: Split, vocab: int) -> Tensor:
    """Return log p(v), (V,) fp64, from the rows of the training split."""
    counts = torch.from_numpy(np.bincount(scored_tokens(train), minlength=vocab)).double() + 1
    return (counts / counts.sum()).log()


def unigram(train: Split, split: Split, vocab: int) -> Likelihood:
    """Return the exact likelihood of a split under the baseline."""
    return exact(-log_probabilities(train, vocab)[torch.from_numpy(scored_tokens(split))], split)


class Unigram(nn.Module):
    """Give the baseline the interface of a model, to be scored by the code that scores models."""

    def __init__(self, log_p: Tensor):  # (V,)
        super().__init__()
        self.mask_token_id = len(log_p)
        self.head = nn.Parameter(log_p.float()[:, None])

    def forward(self, tokens: Tensor, *, causal: bool, valid: Tensor | None = None) -> Tensor:
        return torch.ones(*tokens.shape, 1, device=tokens.device)
