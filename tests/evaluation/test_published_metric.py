"""The published metric: its factor 5/6, its formula by hand, and both objectives on one scale."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import sharp_model, split_of
from torch import Tensor

from tdlm_fast.config import ConfigError, Data
from tdlm_fast.config import Model as Shape
from tdlm_fast.data import dataset, sources
from tdlm_fast.evaluation.likelihood import autoregressive_nll, likelihood
from tdlm_fast.evaluation.published_metric import both, draw_shares, published_metric, uniform_factor
from tdlm_fast.evaluation.unigram import Unigram
from tdlm_fast.model import Model
from tdlm_fast.objective import OBJECTIVES

from .conftest import SHARED


def test_the_factor_is_five_sixths_for_long_rows_and_its_integral_for_short_ones():
    assert uniform_factor([10**5]) == pytest.approx(5 / 6, abs=1e-4)
    r = (np.arange(4_000_000) + 0.5) / 4_000_000
    for lengths in ([7], [2, 31, 31]):
        masked = sum((r * n).astype(int) * np.minimum((1 - r) / r, 5) for n in lengths).mean()
        assert uniform_factor(lengths) == pytest.approx(masked / sum((r * n).astype(int) for n in lengths).mean(), 1e-4)
    with pytest.raises(ValueError, match="rows of one token"):
        uniform_factor([1, 1])


def test_draws_are_uniform_and_weighted_as_published():
    lengths = torch.full((40_000,), 8)
    counts, weights = draw_shares(lengths, seed=0, draw=0)
    share = counts.bincount(minlength=8) / len(lengths)
    assert (share - 1 / 8).abs().max() < 0.01 and counts.max() == 7  # int(m n) never masks every token
    low, high = counts == 0, counts == 7  # m < 1/8 weighs 5, m >= 7/8 at most 1/7
    assert weights[low].eq(5).all() and weights[high].max() < 1 / 7 + 1e-6
    assert not torch.equal(counts, draw_shares(lengths, seed=0, draw=1)[0])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_untrained_model_scores_five_sixths_of_ln_v_and_ln_v_under_the_likelihood(objective):
    model = Model(Shape(width=16, layers=1, heads=2, inner=24, dropout=0.1), vocab=500)
    rows = torch.randint(0, 500, (150, 96), generator=torch.Generator().manual_seed(0)).tolist()
    split, kw = split_of(rows, 96), dict(start_token_id=0, seed=0)
    metric = published_metric(model, split, objective, draws=24, **kw)
    result = likelihood(model, split, objective, max_samples=8, **kw)
    expected = uniform_factor(split.lengths) * math.log(500)
    assert abs(metric.reweighted_loss - expected) < 4 * metric.stderr < 0.5
    assert abs(expected - 5 / 6 * math.log(500)) < 0.02 * math.log(500)
    assert result.nats_per_token == pytest.approx(math.log(500), abs=0.02)
    assert metric.published_metric == pytest.approx(math.exp(metric.reweighted_loss))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_it_is_its_formula_and_both_objectives_use_the_same_draws(objective):
    model, rows = sharp_model(9), [[1, 2, 3, 4, 5, 6], [8, 7, 6], [0, 0, 1, 2], [3, 5]] * 5
    split = split_of(rows, 6)
    counts, weights = draw_shares(torch.tensor([len(r) for r in rows]), seed=3, draw=0)
    hidden = []  # the tokens that the model reads as [MASK], by running it on the diffusion side
    hook = model.register_forward_pre_hook(lambda _m, tokens: hidden.append(tokens[0] == 9))
    published_metric(model, split, "diffusion", start_token_id=0, seed=3, batch_size=7)
    hook.remove()
    masked = torch.cat(hidden)
    assert torch.equal(masked.sum(1), counts)
    top = 0.0
    with torch.no_grad():
        for row, here, w in zip(rows, masked, weights, strict=True):
            x0 = torch.tensor(row)
            here = here[: len(row)]
            if objective == "diffusion":
                logits = model(torch.where(here, 9, x0)[None], causal=False)[0] @ model.head.T
            else:
                logits = model(torch.tensor([[0, *row[:-1]]]), causal=True)[0] @ model.head.T
            top += w * F.cross_entropy(logits, x0, reduction="none")[here].sum()
    result = published_metric(model, split, objective, start_token_id=0, seed=3, batch_size=4)
    assert result.reweighted_loss == pytest.approx((top / counts.sum()).item(), rel=1e-5)


def test_the_error_of_one_draw_is_its_spread_over_draws():
    model = sharp_model(9)
    split = split_of([torch.randint(0, 9, (12,)).tolist() for _ in range(200)], 12)
    kw = dict(start_token_id=0, seed=1)
    one = published_metric(model, split, "diffusion", draws=1, **kw)
    many = published_metric(model, split, "diffusion", draws=60, **kw)
    assert 0.8 < one.stderr / many.single_draw_sd < 1.6  # the rows' spread also counts the rows' own differences
    assert many.stderr == pytest.approx(many.single_draw_sd / 60**0.5)


@pytest.mark.parametrize("draws, quantile", [(1, 1.96), (3, 4.303), (6, 2.571)])  # of Student's t: 2, 5 degrees
def test_every_figure_by_hand_where_each_token_costs_ln_v(draws, quantile):
    """sum over the draws' rows of w |S| ln V / sum of |S|: no mean of the draws' quotients; n - 1 in the spread."""
    lengths = [2, 9, 5, 3, 17, 4]
    split = split_of([list(range(n)) for n in lengths], 17)
    drawn = [draw_shares(torch.tensor(lengths), seed=8, draw=d) for d in range(draws)]
    tops = [sum(c * w for c, w in zip(*map(Tensor.tolist, d), strict=True)) * math.log(31) for d in drawn]
    bottoms = [int(counts.sum()) for counts, _ in drawn]
    value, each = sum(tops) / sum(bottoms), [a / b for a, b in zip(tops, bottoms, strict=True)]
    if draws > 1:
        assert abs(value - sum(each) / draws) > 1e-3
        spread = (sum((e - sum(each) / draws) ** 2 for e in each) / (draws - 1)) ** 0.5
    else:
        rows = zip(*map(Tensor.tolist, drawn[0]), strict=True)
        spread = sum((c * w * math.log(31) - value * c) ** 2 for c, w in rows) ** 0.5 / bottoms[0]
    for objective in OBJECTIVES:
        result = published_metric(Unigram(torch.zeros(31)), split, objective, start_token_id=0, seed=8, draws=draws)
        assert result.reweighted_loss == pytest.approx(value, rel=1e-5)
        assert result.published_metric == pytest.approx(math.exp(value), rel=1e-4)
        assert result.each == pytest.approx(each, rel=1e-5) and result.draws == draws
        assert result.single_draw_sd == pytest.approx(spread, rel=1e-4)
        assert result.stderr == pytest.approx(spread / draws**0.5, rel=1e-4)
        half = quantile * spread / draws**0.5
        assert result.interval == pytest.approx((value - half, value + half), rel=1e-4)
        assert result.asdict()["interval"] == list(result.interval)


def test_a_draw_that_masks_nothing_is_left_out():
    """A row of two tokens masks one where m >= 1/2, else none; so does each figure of the draws that are left."""
    split = split_of([[1, 2]], 2)
    drawn = [draw_shares(torch.tensor([2]), seed=3, draw=d) for d in range(6)]
    each = [weights.item() * math.log(31) for counts, weights in drawn if counts.any()]
    empty = [d for d, (counts, _) in enumerate(drawn) if not counts.any()]
    assert 2 <= len(each) <= 5 and empty[0] == 0
    mean = sum(each) / len(each)
    spread = (sum((e - mean) ** 2 for e in each) / (len(each) - 1)) ** 0.5
    for objective in OBJECTIVES:
        kw = dict(start_token_id=0, seed=3)
        result = published_metric(Unigram(torch.zeros(31)), split, objective, draws=6, **kw)
        assert result.each == pytest.approx(each, rel=1e-5) and result.draws == len(each)
        assert result.reweighted_loss == pytest.approx(mean, rel=1e-5)
        assert result.stderr == pytest.approx(spread / len(each) ** 0.5, rel=1e-4)
        with pytest.raises(ConfigError, match="no token of 1 short rows in 1 draw, so they have no"):
            published_metric(Unigram(torch.zeros(31)), split, objective, draws=1, **kw)


def test_both_is_both(monkeypatch):
    model, split = sharp_model(9), split_of([[1, 2, 3, 4], [8, 7, 6]], 4)
    kw = dict(start_token_id=0, seed=0, batch_size=2, precision="fp32")
    for objective in OBJECTIVES:
        result, metric = both(model, split, objective, draws=2, max_samples=4, **kw)
        assert result == likelihood(model, split, objective, max_samples=4, **kw)
        assert metric == published_metric(model, split, objective, draws=2, **kw)
        assert both(model, split, objective, draws=0, max_samples=4, **kw)[1] is None


def test_real_paragraphs_have_the_factor_that_was_found(tmp_path):
    if not (SHARED / "wikitext-2-raw" / "valid.txt").is_file():
        pytest.skip(f"no WikiText-2 raw under {SHARED} (set TDLM_FAST_DATA)")
    text = (SHARED / "wikitext-2-raw" / "valid.txt").read_text()
    for name in sources.SPLITS:
        (tmp_path / f"{name}.txt").write_text(text)
    corpus = dataset.load(Data(path=str(tmp_path), layout="paragraphs", cache=str(tmp_path / "cache")), 128)
    split = corpus.splits["test"]
    assert uniform_factor(split.lengths) == pytest.approx(0.824, abs=0.001)
    model = Model(Shape(width=8, layers=1, heads=1, inner=8), vocab=50257)
    few = dataset.Split(**{**vars(split), "lengths": split.lengths[:300], "starts": split.starts[:300]})
    nll = autoregressive_nll(model.eval(), few, start_token_id=50256, batch_size=64, precision="fp32")
    metric = published_metric(model, few, "autoregressive", start_token_id=50256, draws=40, nll=nll)
    assert metric.reweighted_loss == pytest.approx(uniform_factor(few.lengths) * math.log(50257), abs=0.15)


def test_rows_of_one_token_are_scored_without_the_metric(capsys):
    model, split = sharp_model(9), split_of([[1], [8]], 4)
    kw = dict(start_token_id=0, seed=0, batch_size=2, precision="fp32")
    for objective in OBJECTIVES:
        score, metric = both(model, split, objective, draws=2, max_samples=4, **kw)
        assert metric is None and score == likelihood(model, split, objective, max_samples=4, **kw)
        said = "NOTE: rows of one token are never masked by int(m n), so they have no published metric; it is left out"
        assert capsys.readouterr().err == said + "\n"
