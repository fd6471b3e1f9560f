"""Samplers against the exact law of what they write: V = 3, T = 4, every state enumerated.

`law` walks the distribution over states through the steps of a sampler by its definition; chi-square compares it with
what the sampler writes.
"""

import itertools
import math

import pytest
import torch
from conftest import sharp_model, split_of

from tdlm_fast.evaluation import exact_likelihood
from tdlm_fast.sampling.diffusion import masked_counts
from tdlm_fast.sampling.options import METHODS, UNMASKING

from .conftest import CODE, MASK, STATES, TEXTS, Rigged, T, V, arbitrary, batch, fits, written

pytestmark = pytest.mark.slow


def joint(seed=0):
    """(p (81,), model): the true conditionals of a joint distribution p over itertools.product(range(3), repeat=4)."""
    p = torch.randn(V**T, generator=torch.Generator().manual_seed(seed)).mul(1.2).softmax(0)
    full, logits = torch.tensor(list(itertools.product(range(V), repeat=T))), torch.zeros(len(STATES), T, V)
    for code, state in enumerate(torch.tensor(STATES)):
        fits = (state == MASK) | (state == full)  # (81, T)
        for i in range(T):
            others = fits.index_fill(1, torch.tensor(i), True).all(1)
            logits[code, i] = torch.zeros(V).index_add_(0, full[:, i], p * others)
    return p, Rigged(logits.log())


def spread(places):
    """{state: probability} of places that are independent, each a list of V + 1 probabilities."""
    out = {}
    for state in itertools.product(range(V + 1), repeat=T):
        p = math.prod(places[i][v] for i, v in enumerate(state))
        if p:
            out[state] = p
    return out


def law(model, steps, step_of):
    """(81,) the law of finished texts: step_of(s, state, P) is {next state: probability}, P (T, V) its conditionals."""
    now = {(MASK,) * T: 1.0}
    for s in range(1, steps + 1):
        after = {}
        for state, p in now.items():
            for to, q in step_of(s, state, model.logits[CODE[state]].detach().double().softmax(-1)).items():
                after[to] = after.get(to, 0.0) + p * q
        now = after
    return torch.tensor([now.get(s, 0.0) for s in itertools.product(range(V), repeat=T)], dtype=torch.float64)


def ancestral(steps, share, eta=0.0):
    """Sahoo et al. 2024, and with eta ReMDM-cap, in their own symbols: alpha = 1 - m."""

    def step(s, state, P):
        at, as_ = 1 - share(1 - (s - 1) / steps), 1 - share(1 - s / steps)
        sigma = min(eta, (1 - as_) / at) if at else 0.0
        write = (as_ - (1 - sigma) * at) / (1 - at)
        return spread([
            [write * q for q in P[i].tolist()] + [1 - write] if v == MASK
            else [(1 - sigma) * (v == w) for w in range(V)] + [sigma]
            for i, v in enumerate(state)
        ])  # fmt: skip

    return step


def counted(method, counts):
    """The scheduled number of tokens a step, in the order of the method."""
    value = {
        "top": lambda p: p.max(),
        "margin": lambda p: p.sort().values[-1] - p.sort().values[-2],
        "entropy": lambda p: (p * p.log()).sum(),
    }

    def step(s, state, P):
        masked = [i for i in range(T) if state[i] == MASK]
        k, out = len(masked) - counts[s - 1], {}

        def write(places, tokens, p):
            to = tuple(tokens[places.index(i)] if i in places else v for i, v in enumerate(state))
            out[to] = out.get(to, 0.0) + p

        if method == "confidence":
            for tokens in itertools.product(range(V), repeat=len(masked)):
                p = [P[i, v].item() for i, v in zip(masked, tokens, strict=True)]
                best = sorted(range(len(masked)), key=lambda j: -p[j])[:k]
                write([masked[j] for j in best], [tokens[j] for j in best], math.prod(p))
            return out
        sets = list(itertools.combinations(masked, k))
        if method != "random":
            sets = [tuple(sorted(masked, key=lambda i: -value[method](P[i]))[:k])]
        for places in sets:
            for tokens in itertools.product(range(V), repeat=k):
                p = math.prod(P[i, v].item() for i, v in zip(places, tokens, strict=True))
                write(list(places), list(tokens), p / len(sets))
        return out

    return step


SHARE = {
    "linear": lambda t: t,
    "cosine": lambda t: math.sin(math.pi * t / 2) ** 2,
    "cosine-maskgit": lambda t: math.sin(math.pi * t / 2),
}


@pytest.mark.parametrize("steps, unmasking, eta", [
    (4, "linear", 0.0), (3, "cosine", 0.0), (4, "cosine-maskgit", 0.0), (5, "linear", 0.3), (4, "cosine", 1.0),
])  # fmt: skip
def test_ancestral_and_remasking_have_the_published_law(steps, unmasking, eta):
    model = arbitrary()
    result = written(model, steps=steps, unmasking=unmasking, remask=eta or None)
    assert fits(result.ids, law(model, steps, ancestral(steps, SHARE[unmasking], eta)))
    other = law(model, steps, ancestral(steps, SHARE[unmasking], 0.6 if eta == 0 else 0.0))
    assert not fits(result.ids, other)


@pytest.mark.parametrize("method", METHODS[1:])
@pytest.mark.parametrize("steps", [2, 4])
def test_counted_methods_have_the_law_of_their_order(method, steps):
    seed, counts = {2: (39, [2, 0]), 4: (1, [3, 2, 1, 0])}[steps]  # seeds for which no two orders have one law
    model = arbitrary(seed)
    laws = {m: law(model, steps, counted(m, counts)) for m in METHODS[1:]}
    result = written(model, steps=steps, method=method)
    assert (result.evaluations, result.rows) == (steps, steps * TEXTS)
    assert [m for m, p in laws.items() if fits(result.ids, p)] == [method]


def test_one_random_token_a_step_is_any_order_autoregression():
    """The average over the 24 orders of the chain rule; with true conditionals every order gives the joint."""
    model, p = arbitrary(2), torch.zeros(V**T, dtype=torch.float64)
    for n, text in enumerate(itertools.product(range(V), repeat=T)):
        for order in itertools.permutations(range(T)):
            state, q = [MASK] * T, 1 / 24
            for i in order:
                q *= model.logits[CODE[tuple(state)], i].detach().double().softmax(-1)[text[i]].item()
                state[i] = text[i]
            p[n] += q
    assert fits(written(model, method="random").ids, p)
    true, model = joint()
    for method in METHODS[1:]:
        if method != "confidence":  # whose order looks at what it draws
            assert fits(written(model, method=method, seed=9).ids, true.double()), method


def test_remasking_keeps_the_share_of_masks_and_with_many_steps_the_joint():
    """A remasked token is written together with others, so the joint needs eta of the order of 1 / steps."""
    true, model = joint()
    for eta in (0.0, 0.025):
        shown, steps = [], 96
        kw = dict(steps=steps, remask=eta or None, unmasking="cosine", on_step=lambda x, to=shown: to.append(x == MASK))
        ids = written(model, **kw).ids
        share = torch.stack(shown).double().mean((1, 2))
        m = torch.tensor([SHARE["cosine"](1 - s / steps) for s in range(1, steps + 1)]).double()
        assert ((share - m).abs() <= 4 * (m * (1 - m) / (TEXTS * T)).sqrt() + 1e-12).all()
        assert fits(ids, true.double())
        rewritten = sum((a & ~b).sum().item() for b, a in itertools.pairwise(shown))
        assert rewritten == 0 if eta == 0 else rewritten > TEXTS
    assert not fits(written(model, steps=32, remask=0.5).ids, true.double())
    assert not fits(written(model, steps=1).ids, true.double())  # all at once: only the marginals are right
    product = Rigged(torch.randn(1, T, V, generator=torch.Generator().manual_seed(3)).expand(len(STATES), T, V).clone())
    q = product.logits[0].detach().double().softmax(-1)
    p = torch.stack([q[range(T), list(x)].prod() for x in itertools.product(range(V), repeat=T)])
    for steps in (1, 3):  # where tokens are independent, any number of steps is exact
        assert fits(written(product, steps=steps, remask=0.9).ids, p)


def test_top_is_the_policy_whose_likelihood_orders_scores():
    model = sharp_model(3)
    rows = [list(x) for x in itertools.product(range(3), repeat=4)]
    p = torch.exp(-exact_likelihood.by_certainty(model, split_of(rows, 4)))
    assert fits(written(model, method="top").ids, p)


def test_schedules_write_the_scheduled_counts():
    assert masked_counts(64, 4, "linear") == [48, 32, 16, 0]
    assert masked_counts(10, 4, "linear") == [8, 5, 2, 0]
    assert masked_counts(100, 4, "cosine") == [85, 50, 15, 0]  # cos^2(pi / 8) = 0.854
    assert masked_counts(100, 4, "cosine-maskgit") == [92, 71, 38, 0]  # cos(pi / 8) = 0.924
    assert masked_counts(64, 32, "cosine")[:4] == [63, 62, 61, 60]  # rounding alone would write 0, 1, 0, 1
    for tokens, steps, unmasking in itertools.product((1, 7, 64), (1, 5, 64), UNMASKING):
        counts = masked_counts(tokens, min(steps, tokens), unmasking)
        assert counts[-1] == 0 and all(a > b for a, b in itertools.pairwise([tokens, *counts]))
    seen = []
    model = sharp_model(19)
    kw = dict(tokens=12, seq_len=16, start_token_id=0, number=3, steps=5)
    kw |= dict(on_step=lambda x: seen.append((x == 19).sum(1).tolist()))
    for method, unmasking in itertools.product(METHODS[1:], UNMASKING):
        seen.clear()
        result = batch(model, "diffusion", [1], [2, 3], method=method, unmasking=unmasking, **kw)
        assert seen == [[n] * 3 for n in masked_counts(12, 5, unmasking)] and result.evaluations == 5
