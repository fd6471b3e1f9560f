"""Exact likelihoods of a masked model, and the bound against the average over orders, by enumeration."""

import itertools
import math

import numpy as np
import pytest
import torch
from conftest import enumerated_bound, sharp_model, split_of

from tdlm_fast.evaluation.exact_likelihood import (
    ORDERS,
    TIE,
    best_places,
    by_certainty,
    certainty,
    cut,
    left_to_right,
    mean_and_stderr,
    oracle,
    subset,
)  # fmt: skip
from tdlm_fast.evaluation.likelihood import likelihood
from tdlm_fast.evaluation.unigram import scored_tokens


def log_p(model, row, revealed):
    """log-probabilities (n, V) given the tokens of the row at the revealed places."""
    xt = torch.tensor([[t if i in revealed else model.mask_token_id for i, t in enumerate(row)]])
    with torch.no_grad():
        return (model(xt, causal=False)[0] @ model.head.T).log_softmax(-1)


def along(model, row, order):
    return -sum(log_p(model, row, order[:s])[i, row[i]].item() for s, i in enumerate(order))


VALUES = {
    "confidence": lambda p: p.max().item(),
    "margin": lambda p: (p.exp().sort().values[-1] - p.exp().sort().values[-2]).item(),
    "entropy": lambda p: sum(x.exp() * x for x in p).item(),
}


def by_policy(model, row, policy, at_once=1):
    """Each step by hand: the places it reveals, of equals the leftmost, and their nats given the earlier steps."""
    revealed, total = [], 0.0
    while len(revealed) < len(row):
        p = log_p(model, row, revealed)
        value = {j: VALUES[policy](p[j]) for j in range(len(row)) if j not in revealed}
        for _ in range(min(at_once, len(value))):
            i = next(j for j in value if value[j] >= max(value.values()) - TIE)
            total -= p[i, row[i]].item()
            revealed.append(i)
            del value[i]
    return total


ROWS = [[0, 2, 1, 2], [1, 0], [2, 2, 0], [1], [0, 1, 2, 0]]


def test_exact_orders_are_the_chain_rule_step_by_step():
    model, split = sharp_model(3), split_of(ROWS, 4)
    expected = [along(model, row, list(range(len(row)))) for row in ROWS]
    np.testing.assert_allclose(left_to_right(model, split, batch_size=3), expected, rtol=1e-5)
    for policy in VALUES:
        expected = [by_policy(model, row, policy) for row in ROWS]
        found = by_certainty(model, split, policy=policy, batch_size=2)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        np.testing.assert_allclose(ORDERS[policy](model, split), found, rtol=1e-5)


@pytest.mark.parametrize("at_once", [2, 3, 4, 9])
def test_several_tokens_a_step_are_given_only_earlier_steps(at_once):
    model, split = sharp_model(3), split_of(ROWS, 4)
    expected = [by_policy(model, row, "confidence", at_once) for row in ROWS]
    np.testing.assert_allclose(by_certainty(model, split, at_once=at_once, batch_size=2), expected, rtol=1e-5)
    if at_once >= 4:  # one step: every token given none
        expected = [-sum(log_p(model, row, [])[i, t].item() for i, t in enumerate(row)) for row in ROWS]
        np.testing.assert_allclose(by_certainty(model, split, at_once=at_once), expected, rtol=1e-5)
    if at_once == 4:
        np.testing.assert_allclose(ORDERS["confidence, 4 at a time"](model, split), expected, rtol=1e-5)


def test_the_policies_differ_where_their_values_do():
    p = torch.tensor([[0.5, 0.5, 0.0], [0.45, 0.275, 0.275], [0.4, 0.4, 0.2]]).log()
    first = {policy: best_places(certainty(p, policy)[None], 1).nonzero()[0, 1].item() for policy in VALUES}
    assert first == {"confidence": 0, "margin": 1, "entropy": 0}
    for policy in VALUES:
        value = [VALUES[policy](row.clamp(min=-700)) for row in p]
        np.testing.assert_allclose(certainty(p, policy), value, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="'top' is not a policy; take confidence, margin or entropy"):
        certainty(p, "top")


def test_no_place_is_chosen_twice_or_past_the_masked_ones_and_what_is_not_a_number_is_not_lost():
    value = torch.tensor([[0.1, 0.3, -torch.inf, 0.3], [-torch.inf, 0.2, -torch.inf, -torch.inf]])
    assert best_places(value, 2).tolist() == [[False, True, False, True], [False, True, False, False]]
    assert best_places(value, 4).sum(1).tolist() == [3, 1]
    assert best_places(torch.tensor([[torch.nan, 0.5]]), 1).any()
    broken = Rigged([math.nan, math.log(0.5)])
    assert not by_certainty(broken, split_of([[0, 1]], 2)).isfinite().any()


def test_the_oracle_is_the_best_of_all_orders_by_enumeration():
    model, split = sharp_model(3), split_of(ROWS, 4)
    best = [min(along(model, row, list(o)) for o in itertools.permutations(range(len(row)))) for row in ROWS]
    for batch_size in (1, 5, 64):
        np.testing.assert_allclose(oracle(model, split, batch_size=batch_size), best, rtol=1e-5)
    longer = [[0, 2, 1, 2, 0, 1, 1], [2, 0, 0, 1, 2, 1]]
    best = [min(along(model, row, list(o)) for o in itertools.permutations(range(len(row)))) for row in longer[1:]]
    found = oracle(model, split_of(longer, 7))
    assert found[1].item() == pytest.approx(best[0], rel=1e-5)
    for name, order in ORDERS.items():
        if "at a time" not in name:
            assert (oracle(model, split_of(longer, 7)) <= order(model, split_of(longer, 7)) + 1e-5).all(), name
    assert (found <= torch.tensor([enumerated_bound(model, row) for row in longer]) + 1e-5).all()


def test_the_oracle_of_long_rows_is_refused_and_of_twelve_tokens_not():
    model, row = sharp_model(3), [0, 1, 2, 2, 1, 0, 0, 2, 1, 1, 0, 2, 1]
    with pytest.raises(ValueError, match="the best order of 13 tokens takes too long; 12 at most"):
        oracle(model, split_of([row], 13))
    found = oracle(model, split_of([row[:12]], 12), batch_size=512)
    assert found.item() <= min(order(model, split_of([row[:12]], 12)).item() for order in list(ORDERS.values())[:4])


class Rigged(torch.nn.Module):
    """Two places of two tokens; where both are masked, token 0 has the log-probabilities given, else 1/2."""

    mask_token_id = 2

    def __init__(self, log_p):
        super().__init__()
        self.log_p, self.head = torch.tensor(log_p).double(), torch.nn.Parameter(torch.eye(2))

    def forward(self, tokens, *, causal, valid=None):
        both = torch.stack([self.log_p, torch.log1p(-self.log_p.exp())], 1).float()
        return torch.where((tokens == 2).all(1)[:, None, None], both, 0.0)


@pytest.mark.parametrize("apart, first", [(0.01, 1), (5e-4, 1), (2e-5, 0), (0.0, 0), (-0.01, 0)])
def test_only_what_rounding_could_set_apart_is_equal(apart, first):
    """The second place is more certain by that many nats; its prediction alone then differs from 1/2."""
    log_p = [math.log(0.8), math.log(0.8) + apart]
    result = by_certainty(Rigged(log_p), split_of([[0, 1]], 2)).item()  # at the second place token 1 is improbable
    expected = [-log_p[0], -math.log(1 - math.exp(log_p[1]))][first] + math.log(2)
    assert result == pytest.approx(expected, rel=1e-5)


def test_each_order_is_a_distribution():
    """Over all 3^3 sequences the probabilities add up to 1: the policy has not looked at the answer."""
    model = sharp_model(3)
    split = split_of([list(x) for x in itertools.product(range(3), repeat=3)], 3)
    for order in ORDERS.values():
        assert torch.exp(-order(model, split)).sum().item() == pytest.approx(1, abs=1e-5)


def test_the_bound_is_the_mean_over_orders_and_lies_above_the_likelihood_of_a_random_order():
    model = sharp_model(3)
    for row in ROWS:
        each = [along(model, row, list(order)) for order in itertools.permutations(range(len(row)))]
        bound = enumerated_bound(model, row)
        assert bound == pytest.approx(np.mean(each), rel=1e-5)  # any-order autoregression
        mixture = -math.log(np.mean(np.exp([-nats for nats in each])))
        assert bound >= mixture - 1e-6 and bound >= min(each) - 1e-6
    result = likelihood(model, split_of(ROWS * 200, 4), "diffusion", start_token_id=0, max_samples=16)
    mixtures = sum(
        -math.log(np.mean([math.exp(-along(model, r, list(o))) for o in itertools.permutations(range(len(r)))]))
        for r in ROWS
    )
    assert result.interval[1] >= mixtures / sum(map(len, ROWS))


def test_a_subset_keeps_rows_and_counts_their_bytes():
    class Tokenizer:
        @staticmethod
        def token_bytes():
            return [1, 2, 3]

    split = split_of(ROWS * 4, 4)
    few = subset(split, 6, Tokenizer, seed=1)
    assert len(few) == 6 and few.bytes == (scored_tokens(few) + 1).sum() and few.words is None
    assert subset(split, 99, Tokenizer).scored == split.scored
    assert not np.array_equal(few.starts, subset(split, 6, Tokenizer, seed=2).starts)


def test_rows_are_cut_off_with_their_bytes():
    class Tokenizer:
        @staticmethod
        def token_bytes():
            return [1, 2, 3]

    short = cut(split_of(ROWS, 4), 2, Tokenizer)
    assert short.lengths.tolist() == [2, 2, 2, 1, 2] and short.seq_len == 2 and short.words is None
    assert scored_tokens(short).tolist() == [0, 2, 1, 0, 2, 2, 1, 0, 1] and short.bytes == 9 + 9
    assert cut(split_of(ROWS, 4), 9, Tokenizer).seq_len == 4


def test_the_error_over_rows_by_hand():
    """Rows of one length: the standard error of a mean, with R - 1; of several, that of a quotient of sums."""
    mean, stderr = mean_and_stderr(torch.tensor([2.0, 4.0, 12.0]), torch.tensor([2, 2, 2]))
    assert mean == 3 and stderr == pytest.approx(np.std([1, 2, 6], ddof=1) / 3**0.5)
    mean, stderr = mean_and_stderr(torch.tensor([3.0, 5.0]), torch.tensor([1, 3]))
    assert mean == 2 and stderr == pytest.approx((((3 - 2) ** 2 + (5 - 6) ** 2) * 2 / 1) ** 0.5 / 4)
    assert mean_and_stderr(torch.tensor([3.0]), torch.tensor([2])) == (1.5, math.inf)


def test_the_error_over_rows_covers():
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, 60, (4000,), generator=g)
    nats = tokens * (3 + torch.randn(4000, generator=g)) + torch.randn(4000, generator=g)
    truth, inside = nats.sum() / tokens.sum(), 0
    for _ in range(400):
        pick = torch.randint(0, 4000, (40,), generator=g)
        mean, stderr = mean_and_stderr(nats[pick], tokens[pick])
        inside += abs(mean - truth) < 2.02 * stderr
    assert 0.91 < inside / 400 < 0.98
