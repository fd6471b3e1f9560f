"""The table of likelihoods of a run against each figure computed apart, and what is kept of it."""

import json
import math
from collections import Counter

import numpy as np
import pytest
from conftest import corpus_of

from tdlm_fast import statistics
from tdlm_fast import table as verb
from tdlm_fast.evaluation import exact_likelihood, likelihood, published_metric, table
from tdlm_fast.evaluation.kneser_ney import KneserNey
from tdlm_fast.runs import load
from tdlm_fast.runs.files import write_figures

pytestmark = pytest.mark.slow

SEQUENCES, DRAWS, T_4 = 5, 3, 2.776  # Student's t, 97.5 %, 4 degrees of freedom


@pytest.fixture(scope="module", params=["test", "valid"])
def made(sharp_run, request):
    """(table of a split, model of the best weights, config, tokenizer, the split, the training split)."""
    config, tokenizer, model, _ = load.load_run(sharp_run, "best", "cpu")
    splits = corpus_of(config).splits
    result = table.likelihoods(sharp_run, sequences=SEQUENCES, draws=DRAWS, device="cpu", split=request.param)
    return result, model, config, tokenizer, splits[request.param], splits["train"]


def test_the_first_row_is_the_bound_of_the_best_weights_on_that_split(made):
    result, model, config, tokenizer, split, _ = made
    row, e = result["rows"][0], config.eval
    kw = dict(seed=config.seed, start_token_id=tokenizer.start_token_id, precision=config.precision)
    bound = likelihood.likelihood(
        model, split, "diffusion", target_stderr=e.target_stderr, max_samples=e.max_samples, **kw
    )
    assert (row["name"], row["kind"], row["sequences"], row["tokens"]) == (
        "bound", "upper bound", len(split), split.lengths.sum(),
    )  # fmt: skip
    assert row["nats_per_token"] == pytest.approx(bound.nats_per_token, rel=1e-6)
    half = statistics.t_975(bound.freedom) * bound.stderr
    assert row["low"] == pytest.approx(bound.nats_per_token - half) and half > 0
    assert row["high"] == pytest.approx(bound.nats_per_token + half)
    assert row["bits_per_byte"] == pytest.approx(row["nats_per_token"] * row["tokens"] / split.bytes / math.log(2))
    assert row["ppl"] == pytest.approx(math.exp(row["nats_per_token"]))
    metric = published_metric.published_metric(model, split, "diffusion", draws=DRAWS, **kw)
    assert result["published"]["reweighted_loss"] == pytest.approx(metric.reweighted_loss, rel=1e-6)


def test_rows_of_few_sequences_are_those_of_their_sequences(made):
    result, model, config, tokenizer, split, _ = made
    few = exact_likelihood.subset(split, SEQUENCES, tokenizer, seed=config.seed)
    tokens = np.array(few.lengths, dtype=float)
    kw = dict(batch_size=3, device="cpu")
    with likelihood.scoring(model, config.precision):
        draws = [likelihood.diffusion_draw(model, few, seed=config.seed, draw=d, **kw) for d in range(DRAWS)]
    each = {"bound": np.mean([d.numpy() for d in draws], 0)}
    each |= {
        name: order(model, few, precision=config.precision).numpy() for name, order in exact_likelihood.ORDERS.items()
    }
    assert result["tokens_per_sequence"] == tokens.tolist() and list(result["per_sequence"]) == list(each)
    for row, (name, nats) in zip(result["rows"][1:-2], each.items(), strict=True):
        np.testing.assert_allclose(result["per_sequence"][name], nats, rtol=1e-4)
        mean = nats.sum() / tokens.sum()
        error = math.sqrt(((nats - mean * tokens) ** 2).sum() * 5 / 4) / tokens.sum()  # a quotient's linearisation
        assert (row["name"], row["kind"]) == (name, "upper bound" if name == "bound" else "exact")
        assert (row["sequences"], row["tokens"]) == (SEQUENCES, tokens.sum())
        expected = (mean, mean - T_4 * error, mean + T_4 * error)
        assert (row["nats_per_token"], row["low"], row["high"]) == pytest.approx(expected, rel=1e-4)
        assert error > 1e-3


def test_the_baseline_is_fitted_on_the_training_rows(made):
    result, _, _, tokenizer, split, train = made

    def tokens(s):
        return [int(t) for start, n in zip(s.starts, s.lengths, strict=True) for t in s.tokens[start : start + n]]

    seen, scored = Counter(tokens(train)), tokens(split)
    total = sum(seen.values()) + tokenizer.vocab
    expected = -sum(math.log((seen[t] + 1) / total) for t in scored) / len(scored)
    row = result["rows"][-1]
    assert (row["name"], row["kind"]) == ("unigram baseline", "exact")
    assert row["nats_per_token"] == row["low"] == row["high"] == pytest.approx(expected)


def test_the_five_gram_model_is_fitted_on_the_training_rows_too(made):
    result, _, _, tokenizer, split, train = made
    p = KneserNey(train, tokenizer.vocab).probabilities(split)
    row = result["rows"][-2]
    assert (row["name"], row["kind"], row["tokens"]) == ("5-gram baseline", "exact", split.scored)
    assert row["nats_per_token"] == row["low"] == row["high"] == pytest.approx(-np.log(p).mean())
    assert row["nats_per_token"] < result["rows"][-1]["nats_per_token"]


def test_short_rows_have_an_oracle_and_are_not_kept(sharp_run, capsys):
    whole = table.likelihoods(sharp_run, sequences=2, draws=1, device="cpu")
    short = table.likelihoods(sharp_run, sequences=3, draws=2, device="cpu", cut=5)
    rows = {row["name"]: row for row in short["rows"][1:]}
    best = rows[table.ORACLE]
    assert best["kind"] == "not a likelihood" and best["tokens"] == 15 and table.ORACLE not in short["per_sequence"]
    for name in ("left-to-right", "confidence", "margin", "entropy"):
        assert best["nats_per_token"] <= rows[name]["nats_per_token"] + 1e-6
    assert short["rows"][0]["tokens"] == 5 * short["rows"][0]["sequences"]
    assert rows["bound"]["bits_per_byte"] == pytest.approx(rows["bound"]["nats_per_token"] / math.log(2))  # of bytes
    assert table.ORACLE not in [row["name"] for row in whole["rows"]]
    assert table.likelihoods(sharp_run, sequences=2, draws=1, device="cpu") == whole  # still the stored one
    assert verb.main([str(sharp_run), "--sequences", "2", "--draws", "1", "--cut", "4", "--device", "cpu"]) == 0
    assert f"{table.ORACLE} of 2 sequences" in capsys.readouterr().out
    assert verb.main([str(sharp_run), "--sequences", "2", "--cut", "1", "--device", "cpu"]) == 0  # int(m) masks none
    out, err = capsys.readouterr()
    assert "left-to-right of 2 sequences" in out and "published metric" not in out
    assert err.startswith("NOTE: rows of one token") and err.count("\n") == 1
    assert verb.main([str(sharp_run), "--cut", "-1"]) == 2 and "--cut is -1" in capsys.readouterr().err


def test_a_table_of_fewer_orders_is_made_again(sharp_run):
    """likelihoods.json of an earlier version holds left-to-right and confidence only."""
    made = table.likelihoods(sharp_run, sequences=2, draws=1, device="cpu")
    older = json.loads((sharp_run / "likelihoods.json").read_text())
    older["key"].pop("orders")
    older.pop("sha256")
    older["rows"] = older["rows"][:1]
    write_figures(sharp_run / "likelihoods.json", older)
    assert table.likelihoods(sharp_run, sequences=2, draws=1, device="cpu")["rows"] == made["rows"]


def test_one_sequence_has_no_interval_and_is_read_back(sharp_run, capsys):
    first, second = (table.likelihoods(sharp_run, sequences=1, draws=1, device="cpu") for _ in range(2))
    row = second["rows"][1]
    assert row["sequences"] == 1 and row["low"] is row["high"] is None
    assert first["rows"] == second["rows"]
    assert verb.main([str(sharp_run), "--sequences", "1"]) == 2
    assert "--sequences is 1; it must be at least 2, as one shows no interval" in capsys.readouterr().err
    assert verb.main([str(sharp_run), "--draws", "0"]) == 2 and "--draws is 0" in capsys.readouterr().err


def test_the_command_prints_every_likelihood_once(sharp_run, capsys):
    assert verb.main([str(sharp_run), "--sequences", "3", "--draws", "2", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    for name in (
        "bound",
        "left-to-right",
        "confidence",
        "margin",
        "entropy",
        "4 at a time",
        "5-gram baseline",
        "unigram baseline",
        "published metric",
        "not a likelihood",
    ):
        assert name in printed
    record = json.loads((sharp_run / "likelihoods.json").read_text())
    assert [len(record["per_sequence"][name]) for name in ("bound", "left-to-right")] == [3, 3]
    assert record["rows"][0]["nats_per_token"] > 0 and record["uniform_factor"] < 5 / 6
