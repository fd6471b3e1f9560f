"""The entropy of a Markov source against enumeration, and both objectives against the source."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from tdlm_fast import train
from tdlm_fast.config import Data
from tdlm_fast.data import dataset, markov
from tdlm_fast.evaluation import source_entropy
from tdlm_fast.evaluation.kneser_ney import kneser_ney
from tdlm_fast.evaluation.table import likelihoods
from tdlm_fast.evaluation.table_lines import lines
from tests.conftest import split_of

H = (2 - 1 / 64) * math.log(2)


def row_probability(order: int, row: tuple[int, ...]) -> float:
    """P of a row that starts anywhere: pi of its first letters, then one letter after the other."""
    m = min(order, len(row))
    contexts = itertools.product(range(8), repeat=order)
    pi, p = source_entropy.stationary(order), markov.transitions(order)
    probability = sum(pi[i] for i, c in enumerate(contexts) if c[:m] == row[:m])
    for i in range(m, len(row)):
        probability *= p[int("".join(map(str, row[i - order : i])), 8), row[i]]
    return probability


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_rate_is_that_of_one_context(order):
    assert source_entropy.rate(order) == pytest.approx(H, rel=1e-14)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_stationary_distribution_is_left_as_it_is(order):
    p, pi = markov.transitions(order), source_entropy.stationary(order)
    S, A = p.shape
    after = np.zeros(S)
    for state, letter in itertools.product(range(S), range(A)):
        after[(state * A + letter) % S] += pi[state] * p[state, letter]
    np.testing.assert_allclose(after, pi, rtol=1e-12)
    assert pi.sum() == pytest.approx(1, abs=1e-14) and pi.min() > 0


@pytest.mark.parametrize("order, n", [(1, 1), (1, 4), (2, 1), (2, 2), (2, 4), (3, 2), (3, 4)])
def test_the_entropy_of_a_row_is_that_of_the_enumeration(order, n):
    p = np.array([row_probability(order, row) for row in itertools.product(range(8), repeat=n)])
    assert p.sum() == pytest.approx(1)
    assert source_entropy.row_entropies(order, np.array([n]))[0] == pytest.approx(-(p * np.log(p)).sum())


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_nats_of_rows_are_those_of_their_letters(order):
    letters = [[1, 2, 3, 4, 4, 0], [7], [5, 5], [0, 6, 2], [3, 1, 7, 0]]
    split = split_of([[ord("a") + x for x in row] for row in letters], 6)
    rows = [2, 0, 4, 1, 3]  # the rows need not lie in order, as with data.unique_tokens
    split = replace(split, starts=split.starts[rows], lengths=split.lengths[rows])
    expected = [-math.log(row_probability(order, tuple(letters[i]))) for i in rows]
    np.testing.assert_allclose(source_entropy.row_nats(order, split), expected, rtol=1e-12)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """{order: (its keys, its splits)} in rows of 16."""
    cache = str(tmp_path_factory.mktemp("cache"))
    keys = {k: Data(corpus=f"markov-{k}", tokenizer="bytes", cache=cache) for k in (1, 2)}
    return {k: (data, dataset.load(data, 16).splits) for k, data in keys.items()}


@pytest.mark.parametrize("order", [1, 2])
def test_a_split_scores_its_entropy_but_for_chance(order, corpora):
    data, splits = corpora[order]
    known = {name: source_entropy.source(data, split) for name, split in splits.items()}
    away = [(s.nats_per_token - s.entropy) / s.stderr for s in known.values()]
    assert max(map(abs, away)) < 3.5, away
    assert known["train"].stderr == pytest.approx(known["test"].stderr / math.sqrt(20), rel=0.05)
    assert known["test"].stderr == pytest.approx(math.sqrt(2) * math.log(2) / math.sqrt(50_000), rel=0.15)


@pytest.mark.parametrize("order", [1, 2])
def test_counting_comes_near_the_source_and_not_below(order, corpora):
    data, splits = corpora[order]
    counted = kneser_ney(splits["train"], splits["test"], 257).nats_per_token
    assert 0 < counted - source_entropy.source(data, splits["test"]).nats_per_token < 0.03


def test_text_has_no_known_entropy():
    assert source_entropy.source(Data(corpus="sotu"), split_of([[1, 2]], 2)) is None


@pytest.mark.slow
@pytest.mark.parametrize("objective, steps, distance", [("diffusion", 300, 0.08), ("autoregressive", 200, 0.01)])
def test_both_objectives_come_near_the_source_and_not_below(objective, steps, distance, tmp_path, capsys):
    """The distance that counting letters leaves is 0.55."""
    keys = [
        "data.corpus=markov-1", f"data.cache={tmp_path / 'cache'}", "model.layers=1", "model.inner=128",
        "model.seq_len=8", f"train.max_steps={steps}", "optim.lr=1e-2", "optim.min_lr=1e-3", f"eval.every={steps}",
        "eval.samples=2", "eval.target_stderr=0", "eval.max_samples=2", "device=cpu", f"objective={objective}",
        f"run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    assert train.main(["configs/markov.yaml", *keys]) == 0
    printed = capsys.readouterr().out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for name in ("valid", "test"):
        score, known = summary[name], summary["source"][name]
        above = score["nats_per_token"] - known["nats_per_token"]
        assert -3 * score["stderr"] < above < distance
        assert f"{above:+.4f} from the source itself" in printed
        assert score["bits_per_byte"] is None and score["word_ppl"] is None
    assert "bits/byte" not in printed

    table = likelihoods(tmp_path / "run", sequences=100, draws=2, device="cpu")
    rows = [(r["name"], r["sequences"], r["nats_per_token"]) for r in table["rows"]]
    own = summary["source"]["test"]
    [whole, few] = [r for r in rows if r[0] == "the source itself"]
    assert whole[1:] == (6250, own["nats_per_token"]) and few[1] == 100
    assert ("entropy of the source", 6250, own["entropy"]) in rows
    of_few = {name: nats for name, n, nats in rows if n == 100}
    exact = of_few["left-to-right" if objective == "diffusion" else "next token"]
    assert -0.005 < exact - few[2] < distance
    assert {line[-1] for line in lines(table)[1:-1]} == {"–"}  # bits per byte
