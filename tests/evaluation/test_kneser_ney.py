"""The 5-gram baseline against its formula on dictionaries, a case by hand, and the sum over the vocabulary."""

import itertools
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from conftest import split_of

from tdlm_fast.evaluation import kneser_ney as kn
from tdlm_fast.evaluation.unigram import unigram

V = 5
RNG = np.random.default_rng(0)
CHAIN = np.array([[6, 2, 1, 1, 0], [1, 5, 3, 1, 0], [1, 1, 1, 7, 0], [4, 1, 4, 1, 0], [1, 1, 1, 1, 1]], float)


def text(rows, seed, V=V):
    """Rows of 1 to 12 tokens of a Markov chain, which never makes token 4."""
    rng, p = np.random.default_rng(seed), CHAIN / CHAIN.sum(1, keepdims=True)
    out = []
    for _ in range(rows):
        row = [int(rng.integers(0, 3))]
        while len(row) < rng.integers(1, 13):
            row.append(int(rng.choice(V, p=p[row[-1]])))
        out.append(row)
    return out


def by_definition(train, order):
    """p(w | context) of the docstring's formula, from dictionaries, one token after the other."""
    grams = [set() for _ in range(order + 2)]
    raw = Counter()
    for row in train:
        line = ("<s>", *row)
        for k in range(1, order + 1):
            for i in range(len(line) - k + 1):
                raw[line[i : i + k]] += 1
                grams[k].add(line[i : i + k])
    a = {}
    for k in range(1, order + 1):
        for g in grams[k]:
            if g == ("<s>",):
                continue
            before = len({longer[0] for longer in grams[k + 1] if longer[1:] == g})
            a[g] = raw[g] if k == order or g[0] == "<s>" else before
    discount = {}
    for k in range(1, order + 1):
        n = Counter(c for g, c in a.items() if len(g) == k)
        d = kn.FALLBACK
        if n[1] and n[2] and n[3]:
            y = n[1] / (n[1] + 2 * n[2])
            d = (1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3])
            d = d if all(0 < d[c - 1] < c for c in (1, 2, 3)) else kn.FALLBACK
        discount[k] = lambda c, d=d: d[min(c, 3) - 1] if c else 0
    follow = defaultdict(dict)
    for g, c in a.items():
        follow[g[:-1]][g[-1]] = c

    def p(w, h):
        lower = p(w, h[1:]) if h else 1 / V
        if not follow[h]:
            return lower
        d, total, k = discount[len(h) + 1], sum(follow[h].values()), len(h) + 1
        assert k <= order
        c = follow[h].get(w, 0)
        return max(c - d(c), 0) / total + sum(d(x) for x in follow[h].values()) / total * lower

    return lambda w, before: p(w, ("<s>", *before)[-(order - 1) :] if order > 1 else ())


@pytest.mark.parametrize("rows, order", [(300, 5), (12, 5), (300, 2), (300, 3), (2, 4), (40, 1)])
def test_every_probability_is_that_of_the_formula(rows, order):
    train, test = text(rows, 1), [*text(20, 2), [4, 4, 0], [0, 1, 2, 3, 4]]
    p = by_definition(train, order)
    expected = [p(w, row[:i]) for row in test for i, w in enumerate(row)]
    found = kn.KneserNey(split_of(train, 12), V, order).probabilities(split_of(test, 12))
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_the_discounts_of_a_large_text_are_those_of_chen_and_goodman():
    model = kn.KneserNey(split_of(text(300, 1), 12), V)
    assert any(g.discounts != kn.FALLBACK for g in model.grams)
    counts = np.repeat([1, 2, 3, 4, 9], [40, 15, 8, 5, 3])
    y = 40 / 70
    assert kn.discounts(counts) == pytest.approx((1 - 2 * y * 15 / 40, 2 - 3 * y * 8 / 15, 3 - 4 * y * 5 / 8))
    for few in ([1, 1, 2], [2, 3], [1] + [2] * 9 + [3] * 90 + [4] * 9000, []):
        assert kn.discounts(np.array(few, dtype=int)) == kn.FALLBACK


def test_a_case_by_hand():
    """Rows "a b" and "a c" with bigrams, and the discounts 0.5, 1, 1.5.

    Bigrams: <s> a 2, a b 1, a c 1. Distinct tokens before: a 1 (<s>), b 1, c 1, so p_1 = (1 - 0.5)/3 + (1.5/3)/4 each
    for a, b, c: 0.291667, and 0.125 for the fourth. p(a | <s>) = (2 - 1)/2 + (1/2) 0.291667; p(b | a) = (1 - 0.5)/2 +
    (1/2) 0.291667; the fourth after a: (1/2) 0.125. After b nothing is known, so p_1 stays.
    """
    model = kn.KneserNey(split_of([[0, 1], [0, 2]], 2), 4, order=2)
    found = model.probabilities(split_of([[0, 1], [0, 3], [1, 2]], 2))
    one = 0.5 / 3 + 0.5 / 4
    expected = [0.5 + one / 2, 0.25 + one / 2, 0.5 + one / 2, 0.125 / 2, one / 2, one]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("rows", [2, 30, 300])
def test_probabilities_add_up_to_one_after_every_context(rows):
    """Known contexts and unknown ones, at the start of a row and past five tokens; token 4 never occurs."""
    model = kn.KneserNey(split_of(text(rows, 3), 12), V)
    contexts = [[], [4], [0, 4, 1], *map(list, itertools.product(range(V), repeat=2)), *text(30, 4)]
    for before in contexts:
        test = [[*before, w] for w in range(V)]
        p = model.probabilities(split_of(test, 13)).reshape(V, -1)[:, -1]
        assert p.sum() == pytest.approx(1, abs=1e-12) and (p > 0).all()


def test_the_baseline_is_the_mean_over_every_token_and_beats_the_unigram_model():
    train, test = split_of(text(400, 5), 12), split_of(text(100, 6), 12)
    score = kn.kneser_ney(train, test, V)
    p = kn.KneserNey(train, V).probabilities(test)
    assert score.nats_per_token == pytest.approx(-np.log(p).mean()) and score.bound == "exact"
    assert score.tokens == len(p) == test.lengths.sum()
    assert score.nats_per_token < unigram(train, test, V).nats_per_token - 0.1
    assert math.isfinite(score.nats_per_token) and torch.isfinite(torch.from_numpy(p)).all()


def test_a_text_that_is_too_long_is_counted_in_its_first_rows(monkeypatch):
    rows = [[0, 1, 2], [3, 3], [1]]
    assert kn.first_rows(split_of(rows, 4), 99).lengths.tolist() == [3, 2, 1]
    assert kn.first_rows(split_of(rows, 4), 5).lengths.tolist() == [3, 2]
    assert kn.first_rows(split_of(rows, 4), 4).lengths.tolist() == [3]
    assert kn.first_rows(split_of(rows, 4), 1).lengths.tolist() == [3]
    assert kn.first_rows(split_of(rows, 4)).words is None
