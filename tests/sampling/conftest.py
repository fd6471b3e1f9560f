"""A rigged model whose conditionals are a table, and the law of what is written."""

import itertools

import torch

from tdlm_fast.sampling.generate import Generated, generate_batch
from tdlm_fast.sampling.options import SamplerOptions

V, T, MASK = 3, 4, 3
STATES = list(itertools.product(range(V + 1), repeat=T))
CODE = {s: i for i, s in enumerate(STATES)}
TEXTS = 4000


class Rigged(torch.nn.Module):
    """logits (4^4, T, V) of every state; the hidden states are the logits and the head is the identity."""

    mask_token_id = MASK

    def __init__(self, logits):
        super().__init__()
        self.logits, self.head = torch.nn.Parameter(logits), torch.eye(V)

    def forward(self, tokens, *, causal):
        assert not causal
        return self.logits[(tokens * (V + 1) ** torch.arange(T - 1, -1, -1)).sum(1)]


def arbitrary(seed=0):
    """Conditionals that no joint distribution has: the order of writing matters."""
    return Rigged(1.5 * torch.randn(len(STATES), T, V, generator=torch.Generator().manual_seed(seed)))


def batch(model, objective, prefix, suffix, *, seq_len, start_token_id=0, forbidden=None, on_step=None, **options):
    kw = dict(seq_len=seq_len, start_token_id=start_token_id, forbidden=forbidden, on_step=on_step)
    return generate_batch(model, objective, prefix, suffix, SamplerOptions(**options), **kw)


def ids_of(*args, **kw) -> list[int]:
    """The new ids of one text."""
    return batch(*args, **kw).ids[0].tolist()


def written(model, texts=TEXTS, tokens=T, **kw) -> Generated:
    return batch(model, "diffusion", [], [], tokens=tokens, seq_len=T, number=texts, **kw)


def chi_square(ids, p):
    """(statistic, degrees of freedom) of texts ids (N, T) under p (81,), cells of fewer than 5 put together."""
    seen = (ids * V ** torch.arange(T - 1, -1, -1)).sum(1).bincount(minlength=V**T).double()
    expected, small = p * len(ids), p * len(ids) < 5
    assert seen[p == 0].sum() == 0
    o = torch.cat([seen[~small], seen[small].sum()[None]])
    e = torch.cat([expected[~small], expected[small].sum()[None]])
    o, e = o[e > 0], e[e > 0]
    return ((o - e) ** 2 / e).sum().item(), len(o) - 1


def fits(ids, p):
    """chi-square within four standard deviations: a right sampler fails once in some 5,000 seeds."""
    statistic, freedom = chi_square(ids, p)
    return statistic <= freedom + 4 * (2 * freedom) ** 0.5
