"""Samplers against the exact law of what they write: V = 3, T = 4, every state enumerated.

A rigged model holds the logits of each of the 4^4 partly masked states in a table. `law` walks the distribution over
states through the steps of a sampler by its definition; chi-square compares it with what the sampler writes.
"""

import itertools
import math

import pytest
import torch
from conftest import sharp_model, split_of

from tdlm_fast.evaluation import exact_likelihood
from tdlm_fast.sampling import draws
from tdlm_fast.sampling.diffusion import masked_counts
from tdlm_fast.sampling.draws import draw, filtered
from tdlm_fast.sampling.generate import generate_batch, generate_ids
from tdlm_fast.sampling.options import METHODS, UNMASKING

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


def written(model, texts=TEXTS, tokens=T, **kw):
    return generate_batch(
        model, "diffusion", [], [], tokens=tokens, seq_len=T, start_token_id=0, number=texts, **kw
    )  # fmt: skip


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
    found = written(model, steps=steps, unmasking=unmasking, remask=eta)
    assert fits(found.ids, law(model, steps, ancestral(steps, SHARE[unmasking], eta)))
    other = law(model, steps, ancestral(steps, SHARE[unmasking], 0.6 if eta == 0 else 0.0))
    assert not fits(found.ids, other)


@pytest.mark.parametrize("method", METHODS[1:])
@pytest.mark.parametrize("steps", [2, 4])
def test_counted_methods_have_the_law_of_their_order(method, steps):
    seed, counts = {2: (39, [2, 0]), 4: (1, [3, 2, 1, 0])}[steps]  # seeds for which no two orders have one law
    model = arbitrary(seed)
    laws = {m: law(model, steps, counted(m, counts)) for m in METHODS[1:]}
    found = written(model, steps=steps, method=method)
    assert (found.evaluations, found.rows) == (steps, steps * TEXTS)
    assert [m for m, p in laws.items() if fits(found.ids, p)] == [method]


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
        kw = dict(steps=steps, remask=eta, unmasking="cosine", tell=lambda x, to=shown: to.append(x == MASK))
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
    p = torch.exp(-exact_likelihood.confidence(model, split_of(rows, 4)))
    assert fits(written(model, method="top").ids, p)


def test_autoregressive_texts_have_the_chain_rules_law():
    model, p = sharp_model(3), []
    for text in itertools.product(range(V), repeat=T):
        with torch.no_grad():
            z = model(torch.tensor([[0, *text[:-1]]]), causal=True)[0] @ model.head.T
        p.append(z.double().softmax(-1)[range(T), list(text)].prod())
    kw = dict(tokens=T, seq_len=8, start_token_id=0, number=TEXTS)
    assert fits(generate_batch(model, "autoregressive", [], [], **kw).ids, torch.stack(p))


def test_top_k_top_p_and_temperature_shape_what_is_written():
    model = Rigged(torch.tensor([2.0, 1.0, 0.0]).expand(len(STATES), T, V).clone())  # 0.665, 0.245, 0.090
    for kw, logits in (
        (dict(temperature=0.5), [4.0, 2.0, 0.0]), (dict(temperature=3), [2 / 3, 1 / 3, 0.0]),
        (dict(top_k=2), [2.0, 1.0, -math.inf]), (dict(top_p=0.9), [2.0, 1.0, -math.inf]),
        (dict(top_p=0.6), [0.0, -math.inf, -math.inf]), (dict(temperature=0), [0.0, -math.inf, -math.inf]),
        (dict(top_p=0.92), [2.0, 1.0, 0.0]),
    ):  # fmt: skip
        q = torch.tensor(logits).double().softmax(0)
        p = torch.stack([q[list(x)].prod() for x in itertools.product(range(V), repeat=T)])
        for method, steps in (("ancestral", 2), ("margin", 2), ("confidence", 1)):
            assert fits(written(model, steps=steps, method=method, **kw).ids, p), (kw, method)
    z = filtered(torch.tensor([[2.0, 1.0, 0.0, -1.0]]), 0.5, 0, 1.0)
    assert z.dtype == torch.float64
    u = torch.rand(40000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    share = draw(z.expand(40000, 4), u).bincount(minlength=4) / 40000
    assert (share - z[0].softmax(0)).abs().max() < 0.01


@pytest.mark.parametrize("method", METHODS[2:])
@pytest.mark.parametrize("sharpened", [dict(temperature=0), dict(top_k=1), dict(temperature=0.01)])
def test_certainty_is_that_of_temperature_1(method, sharpened):
    """Sharpened to one token all places would be equally certain, and the order would be from left to right."""
    value = {"margin": lambda p: p[-1] - p[-2], "entropy": lambda p: (p * p.log()).sum()}
    orders = []
    for seed in range(12):
        model, shown, state, expected = arbitrary(seed), [], [MASK] * T, []
        written(model, texts=1, method=method, **sharpened, tell=lambda x, to=shown: to.append(x[0].tolist()))
        for _ in range(T):
            P = model.logits[CODE[tuple(state)]].detach().double().softmax(-1)
            masked = [i for i in range(T) if state[i] == MASK]
            best = max(masked, key=lambda i: value.get(method, lambda p: p[-1])(P[i].sort().values))
            state[best] = int(P[best].argmax())
            expected.append(list(state))
            orders.append(best)
        assert shown == expected, seed
    assert orders[:T] != list(range(T)) and len(set(orders[::T])) == T  # any place may come first


@pytest.mark.parametrize("method", METHODS)
def test_a_forbidden_token_is_never_written_and_the_others_share_its_probability(method):
    model = Rigged(torch.tensor([2.0, 1.0, 0.0]).expand(len(STATES), T, V).clone())
    q = torch.tensor([-math.inf, 1.0, 0.0]).double().softmax(0)
    p = torch.stack([q[list(x)].prod() for x in itertools.product(range(V), repeat=T)])
    found = written(model, steps=1 if method == "confidence" else 3, method=method, forbidden=0)
    assert fits(found.ids, p)
    assert (written(model, texts=5, method=method, forbidden=0, temperature=0).ids == 1).all()
    assert (written(model, texts=5, method=method, temperature=0).ids == 0).all()


def test_nor_does_next_token_write_it():
    model, kw = sharp_model(11), dict(tokens=40, seq_len=64, start_token_id=10, number=20)
    assert (generate_batch(model, "autoregressive", [], [], **kw).ids == 10).any()
    assert not (generate_batch(model, "autoregressive", [], [], forbidden=10, **kw).ids == 10).any()


def test_the_nucleus_ends_where_its_mass_is_reached():
    z = filtered(torch.zeros(1, 4), 1.0, 0, 0.5)
    assert torch.isfinite(z).sum() == 2  # the mass before the third of four equal tokens is 0.5 already


@pytest.mark.parametrize("objective", ["diffusion", "autoregressive"])
def test_a_model_in_training_writes_without_dropout_and_trains_on(objective):
    model, kw = sharp_model(9), dict(tokens=8, seq_len=12, start_token_id=0)
    expected = generate_ids(model, objective, [1], [], **kw)
    assert not model.training
    assert generate_ids(model.train(), objective, [1], [], **kw) == expected and model.training


@pytest.mark.parametrize("method", METHODS[1:])
def test_more_steps_than_tokens_are_one_a_token(method):
    kw = dict(tokens=6, seq_len=8, start_token_id=0, method=method, number=2)
    found = generate_batch(sharp_model(9), "diffusion", [1], [], steps=40, **kw)
    assert found.evaluations == 6 and found.rows == 12
    blocks = generate_batch(sharp_model(9), "diffusion", [1], [], steps=40, block=3, **kw)
    assert blocks.evaluations == 6 and (found.ids < 9).all() and (blocks.ids < 9).all()


def test_gumbel_noise_keeps_its_tail():
    """u near 1 gives the large noise that lets an improbable token win; fp32 has none above 16.6."""
    u = torch.full((1, 2), 0.5, dtype=torch.float64)
    u[0, 1] = 1 - 2.0**-50
    assert draw(torch.tensor([[30.0, 0.0]]).double(), u).item() == 1  # 34.7 against 30.4
    assert torch.isfinite(torch.log(-torch.log(torch.tensor([0.0, 1.0]).double().clamp(1e-300, 1 - 1e-16)))).all()


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
    kw |= dict(tell=lambda x: seen.append((x == 19).sum(1).tolist()))
    for method, unmasking in itertools.product(METHODS[1:], UNMASKING):
        seen.clear()
        found = generate_batch(model, "diffusion", [1], [2, 3], method=method, unmasking=unmasking, **kw)
        assert seen == [[n] * 3 for n in masked_counts(12, 5, unmasking)] and found.evaluations == 5


def test_blocks_are_written_from_left_to_right():
    seen, model = [], sharp_model(19)
    kw = dict(tokens=12, seq_len=16, start_token_id=0, steps=6, block=4)
    kw |= dict(tell=lambda x: seen.append((x[0] == 19).tolist()))
    for method in METHODS:
        seen.clear()
        generate_ids(model, "diffusion", [1], [2, 3], method=method, remask=0.5 * (method == "ancestral"), **kw)
        for step, masked in enumerate(seen):
            done, current = 1 + 4 * (step // 2), 1 + 4 * (step // 2 + 1)
            assert not any(masked[:done]) and all(masked[current:13]) and not any(masked[13:])
            assert step % 2 == 0 or not any(masked[:current])


@pytest.mark.parametrize("objective, kw", [
    *[("diffusion", dict(method=m, steps=4)) for m in METHODS], ("diffusion", dict(remask=0.3, steps=9)),
    ("diffusion", dict(method="margin", temperature=0, block=5)), ("autoregressive", dict(top_p=0.9)),
])  # fmt: skip
def test_a_text_of_a_batch_is_the_text_of_its_own_seed(objective, kw, monkeypatch):
    model, suffix = sharp_model(19), [] if objective == "autoregressive" else [4]
    kw = dict(tokens=10, seq_len=16, start_token_id=0, seed=5) | kw
    alone = [generate_ids(model, objective, [1, 2], suffix, **(kw | {"seed": 5 + i})) for i in range(6)]
    for logits in (1 << 24, 19 * 13):  # in one piece, and one or two texts at a time
        monkeypatch.setattr(draws, "LOGITS", logits)
        assert generate_batch(model, objective, [1, 2], suffix, number=6, **kw).ids.tolist() == alone
    assert max(map(max, alone)) < 19
    assert len(set(map(tuple, alone))) > 1 or kw.get("temperature") == 0


@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_cached_logits_are_the_uncached_ones(positions):
    model = sharp_model(11, positions=positions, seq_len=16)
    model.requires_grad_(False)
    ids = torch.randint(0, 11, (3, 16), generator=torch.Generator().manual_seed(0))
    for first in (1, 5):
        cache = model.new_cache()
        h = [model(ids[:, :first], causal=True, cache=cache)]
        h += [model(ids[:, i : i + 1], causal=True, cache=cache) for i in range(first, 16)]
        whole = model(ids, causal=True) @ model.head.T
        torch.testing.assert_close(torch.cat(h, 1) @ model.head.T, whole, rtol=1e-5, atol=1e-5)
        assert whole.std() > 0.5
    for wrong in (dict(causal=False), dict(causal=True, valid=torch.ones(3, 2, dtype=torch.bool)), dict(causal=True)):
        with pytest.raises(ValueError, match="a cache needs"):
            model(ids[:, :2], cache=cache, **wrong)


@pytest.mark.parametrize("positions", ["rope", "learned"])
@pytest.mark.parametrize("seq_len, prompt", [(8, 3), (8, 21), (3, 4)])
def test_greedy_text_is_that_without_a_cache_also_past_seq_len(positions, seq_len, prompt):
    """The window: all where it fits, else from a multiple of seq_len // 4 on, the earliest with which it fits."""
    model, hop = sharp_model(11, positions=positions, seq_len=seq_len), max(1, seq_len // 4)
    ids, expected = [10, *torch.randint(0, 10, (prompt,), generator=torch.Generator().manual_seed(1)).tolist()], []
    kw = dict(tokens=25, seq_len=seq_len, start_token_id=10, temperature=0)
    found = generate_ids(model, "autoregressive", ids[1:], [], **kw)
    for _ in range(25):
        start = next(s for s in range(0, 99, hop) if len(ids) - s <= seq_len)
        with torch.no_grad():
            h = model(torch.tensor([ids[start:]]), causal=True)[0, -1]
        expected.append(int((h @ model.head.T).argmax()))
        ids.append(expected[-1])
    assert found == expected and len(set(found)) > 2


def test_texts_that_a_step_does_not_change_are_not_read_again():
    model, calls = arbitrary(), []
    model.register_forward_hook(lambda m, args, out: calls.append(len(args[0])))
    found = written(model, texts=50, steps=40)
    assert (found.evaluations, found.rows) == (len(calls), sum(calls)) and found.rows <= 50 * T
    one = written(arbitrary(), texts=1, steps=40)
    assert one.evaluations == one.rows <= T


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("unmasking", UNMASKING)
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_diffusion_fills_every_mask_and_keeps_the_prompt_at_both_ends(method, unmasking, steps):
    seen, kw = [], dict(tokens=7, seq_len=12, start_token_id=0, steps=steps, method=method, unmasking=unmasking)
    new = generate_ids(sharp_model(9), "diffusion", [1, 2], [3], tell=lambda x: seen.append(x.tolist()), **kw)
    assert len(new) == 7 and max(new) < 9 and new == generate_ids(sharp_model(9), "diffusion", [1, 2], [3], **kw)
    assert all(x[0][:2] == [1, 2] and x[0][9:] == [3] for x in seen) and seen[-1][0][2:9] == new


@pytest.mark.parametrize("kw, message", [
    (dict(prefix=[1] * 6), r"6 \+ 7 \+ 0 tokens; model.seq_len is 12"), (dict(block=4), "block 4 does not divide"),
    (dict(tokens=6, block=2, steps=4), "must be a multiple of the 3 blocks"), (dict(remask=1.5), "remask is 1.5"),
    (dict(remask=0.5, method="top"), "remask is 0.5 and method top"), (dict(method="best"), "known are ancestral"),
    (dict(objective="autoregressive", suffix=[1]), "before a suffix"), (dict(unmasking="sine"), "cosine-maskgit"),
])  # fmt: skip
def test_what_does_not_fit_is_named(kw, message):
    kw = dict(objective="diffusion", prefix=[], suffix=[], tokens=7, seq_len=12, start_token_id=0) | kw
    model = sharp_model(9).train()
    with pytest.raises(ValueError, match=message):
        generate_batch(model, **kw)
    assert model.training
