"""The likelihood against answers that are known: enumeration, ln V, and the entropy of a Markov source."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import split_of

from tdlm_fast.config import Model as Shape
from tdlm_fast.evaluation.likelihood import draw_counts, likelihood
from tdlm_fast.evaluation.unigram import Unigram
from tdlm_fast.model import Model
from tdlm_fast.objective import OBJECTIVES

pytestmark = pytest.mark.slow


def sharp(vocab, **kw):
    torch.manual_seed(0)
    model = Model(Shape(width=16, layers=1, heads=2, inner=24, dropout=0.1, **kw), vocab=vocab)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.mul_(25)
    return model


def test_the_bound_is_its_enumeration_with_rows_of_every_length():
    model = sharp(3).eval()
    rows = [[0, 2, 1, 2], [1, 0], [2, 2, 0]]
    exact = 0.0
    with torch.no_grad():
        for row in rows:
            n, x0 = len(row), torch.tensor([row])
            for size in range(1, n + 1):
                for subset in itertools.combinations(range(n), size):
                    xt = x0.clone()
                    xt[0, list(subset)] = 3
                    nll = F.cross_entropy(model(xt, causal=False)[0] @ model.head.T, x0[0], reduction="none")
                    exact += nll[list(subset)].mean() / math.comb(n, size)
    split = split_of(rows * 300, 4)
    result = likelihood(model, split, "diffusion", start_token_id=0, max_samples=16, batch_size=450)
    assert abs(result.nats_per_token - exact / 9) < 5 * result.stderr < 0.08
    other = likelihood(model, split, "diffusion", start_token_id=0, max_samples=16, batch_size=7)
    assert other.nats_per_token == pytest.approx(result.nats_per_token, rel=1e-6)  # not a matter of batches


def test_autoregressive_is_the_chain_rule_and_padding_is_no_token():
    model, rows = sharp(5).eval(), [[0, 2, 1, 4], [1, 3]]
    total = 0.0
    with torch.no_grad():
        for row in rows:
            logits = model(torch.tensor([[0, *row[:-1]]]), causal=True)[0] @ model.head.T
            total += F.cross_entropy(logits, torch.tensor(row), reduction="sum")
    result = likelihood(model, split_of(rows, 4), "autoregressive", start_token_id=0)
    assert result.nats_per_token == pytest.approx(total.item() / 6, rel=1e-5) and result.stderr == 0


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_figure_by_hand_of_a_split_of_known_bytes_and_words(objective):
    """p = 1/2, 1/4, 1/8, 1/8: seven tokens of 1 + 2 + 3 + 1 + 1 + 2 + 3 = 13 bits, in 5 bytes and 3 words."""
    model = Unigram(torch.tensor([0.5, 0.25, 0.125, 0.125]).log())
    split = replace(split_of([[0, 1, 2, 0], [0, 1, 3]] * 40, 4), bytes=5 * 40, words=3 * 40)
    result = likelihood(model, split, objective, start_token_id=0, max_samples=100, batch_size=80)
    error = 5 * result.stderr
    assert (result.tokens, error > 0) == (7 * 40, objective == "diffusion") and error < 0.05
    nats = 13 * math.log(2) if objective == "autoregressive" else 7 * result.nats_per_token
    assert result.nats_per_token == pytest.approx(13 * math.log(2) / 7, abs=error + 1e-6)
    assert result.ppl == pytest.approx(math.exp(nats / 7)) and result.ppl == pytest.approx(2 ** (13 / 7), rel=0.05)
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / 5) and abs(result.bits_per_byte - 13 / 5) < 0.1
    assert result.word_ppl == pytest.approx(math.exp(nats / 3))
    assert result.word_ppl == pytest.approx(2 ** (13 / 3), rel=0.1)
    assert f"{result.bits_per_byte:.4f} bits/byte, word ppl {result.word_ppl:.1f} (" in str(result)
    if objective == "autoregressive":  # 6 and 5 bits after the first tokens
        assert result.after_first == pytest.approx(11 * math.log(2) / 5)
        assert str(result).endswith(f"; {result.after_first:.4f} without the first token of each row")
        single = likelihood(model, split_of([[0], [1]], 1), objective, start_token_id=0)
        assert single.after_first is None and "first" not in str(single)
    else:
        assert result.after_first is None
    few = replace(split, words=None)
    assert likelihood(model, few, objective, start_token_id=0, max_samples=4).word_ppl is None


def test_the_interval_is_t_times_the_standard_error():
    split = split_of([[0, 2, 1, 4], [1, 3]], 4)
    result = likelihood(sharp(5).eval(), split, "diffusion", start_token_id=0, max_samples=3)
    quantile = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}[result.freedom]  # of two rows and three draws
    low, high = result.interval
    assert result.stderr > 0 and result.half_width == pytest.approx(quantile * result.stderr)
    assert (high - low) / 2 == pytest.approx(result.half_width)
    assert (low + high) / 2 == pytest.approx(result.nats_per_token)
    assert result.asdict()["interval"] == [low, high]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_uniform_predictor_scores_ln_v(objective):
    model = sharp(40)
    torch.nn.init.zeros_(model.head)
    split = split_of([list(range(i % 20 + 1)) for i in range(40)], 20)
    result = likelihood(model, split, objective, start_token_id=0, max_samples=64)
    assert abs(result.nats_per_token - math.log(40)) < 5 * result.stderr + 1e-5
    assert result.ppl == pytest.approx(40, rel=0.1)


def test_counts_are_uniform_in_each_row_and_even_over_rows():
    lengths = torch.full((120,), 12)
    draws = torch.stack([draw_counts(lengths, seed=1, draw=d) for d in range(600)])
    assert torch.equal(draws[0].bincount(minlength=13)[1:], torch.full((12,), 10))
    each = torch.stack([draws[:, r].bincount(minlength=13)[1:] for r in range(120)]).double()
    chi2 = ((each - 50) ** 2 / 50).sum(1)  # 11 degrees of freedom in each row
    assert abs(chi2.mean() - 11) < 2.5


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_training_approaches_the_entropy_of_a_markov_source_from_above(objective):
    g = torch.Generator().manual_seed(0)
    chain = torch.stack([torch.tensor([0.8, 0.1, 0.05, 0.05]).roll(i) for i in range(4)])

    def source(B, T=16):
        x = torch.randint(0, 4, (B, 1), generator=g)  # the stationary distribution is uniform
        while x.shape[1] < T:
            x = torch.cat([x, torch.multinomial(chain[x[:, -1]], 1, generator=g)], 1)
        return x

    rate = -(chain[0] * chain[0].log()).sum()
    entropy = (math.log(4) + 15 * rate) / 16  # nats per token of sequences of 16
    model = Model(Shape(width=32, layers=2, heads=2, inner=64, dropout=0.0), vocab=5)
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
    for step in range(400):
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * (1 - step / 400) + 1e-5
        loss, _ = OBJECTIVES[objective](model, source(128), seed=0, step=step, start_token_id=4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = source(2000)
    split = split_of(x.tolist(), 16)
    own = -(math.log(0.25) * len(x) + chain[x[:, :-1], x[:, 1:]].log().sum().item()) / x.numel()  # of these very rows
    result = likelihood(model, split, objective, start_token_id=4, max_samples=32, batch_size=500)
    assert abs(own - entropy) < 0.02
    assert own - 4 * result.stderr - 2e-3 < result.nats_per_token < own + 0.06
