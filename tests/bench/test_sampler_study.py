"""The study of unmasking schedules, on curves and texts whose answer is known."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import sharp_model

from bench.docs_tables import results
from bench.docs_tables import samplers as tables
from bench.studies import samplers as bench
from tdlm_fast.sampling.diffusion import masked_counts

pytestmark = pytest.mark.slow


def test_steps_of_a_straight_curve_are_its_triangles():
    T = 12
    straight, flat = np.arange(T + 1) * 0.5, np.ones(T + 1)
    result = bench.steps_of(np.stack([straight, flat]), [8, 4, 0])
    np.testing.assert_allclose(result["pays"], [[4 * 6.0, 4 * 4.0, 4 * 2.0], [4, 4, 4]])
    # sum over j of C(12) - C(j) = 0.5 (0 + 1 + 2 + 3): the same in each step of four
    np.testing.assert_allclose(result["excess"], [[3, 3, 3], [0, 0, 0]], atol=1e-12)
    assert bench.spread(result["excess"][0]) == pytest.approx(0)
    one = bench.steps_of(straight, list(range(T - 1, -1, -1)))
    np.testing.assert_allclose(one["excess"], 0, atol=1e-12)  # one token per step loses nothing


def test_fisher_rao_steps_are_equal_under_cosine_only():
    length = {u: bench.steps_of(np.zeros(4097), masked_counts(4096, 8, u))["length"] for u in ("linear", "cosine")}
    for steps in length.values():
        assert steps.sum() == pytest.approx(math.pi * 64)  # the whole path, pi sqrt(T)
    assert bench.spread(length["cosine"]) < 0.01 and bench.spread(length["linear"]) > 0.2


def test_best_counts_are_the_best_of_all():
    rng = np.random.default_rng(0)
    curve = np.concatenate([[0.0], np.sort(rng.random(9))])
    for steps in (1, 2, 4, 9):
        every = [[*c, 0] for c in itertools.combinations(range(8, 0, -1), steps - 1)]
        least = min(bench.steps_of(curve, c)["pays"].sum() for c in every)
        result = bench.best_counts(curve, steps)
        assert result in every and bench.steps_of(curve, result)["pays"].sum() == pytest.approx(least)


def test_curves_are_the_mean_over_all_masks():
    model, x0 = sharp_model(5), torch.tensor([[0, 3, 1, 4], [2, 2, 0, 1]])
    result = bench.curves(model, x0, orders=800, seed=0, levels=99)
    for count in range(1, 5):
        each = []
        for places in itertools.combinations(range(4), count):
            xt = x0.clone()
            xt[:, places] = model.mask_token_id
            with torch.no_grad():
                logits = (model(xt, causal=False) @ model.head.T)[:, places]
            nll = F.cross_entropy(logits.flatten(0, 1), x0[:, places].flatten(), reduction="none")
            each.append(nll.view(2, count).mean(1))
        each = torch.stack(each).double()
        error = 4 * each.std(0, correction=0).numpy() / 800**0.5 + 1e-5
        assert (abs(result[:, count] - each.mean(0).numpy()) < error).all()
    assert (result[:, 0] == 0).all()
    few = bench.curves(model, x0, orders=3, seed=0, levels=2)  # 1 and 4 are measured
    np.testing.assert_allclose(few[:, 2], few[:, 1] + (few[:, 4] - few[:, 1]) / 3)


def test_entropy_counts_the_tokens_of_a_text():
    result = bench.entropy(torch.tensor([[7, 7, 7, 7], [0, 1, 2, 3], [5, 5, 0, 0]]))
    torch.testing.assert_close(result, torch.tensor([0.0, math.log(4), math.log(2)]).double())


def test_intervals_narrow_with_the_texts_and_the_report_reads_them(monkeypatch, tmp_path):
    g = np.random.default_rng(1)
    rows = np.concatenate([np.zeros((400, 1)), np.arange(1, 33) ** 0.5 + g.normal(0, 0.5, (400, 32))], 1)
    narrow, wide = (bench.difficulty(r, rows, (4,)) for r in (rows, rows[:40]))
    for a, b in zip(narrow, wide, strict=True):
        (value, low, high), (_, lower, higher) = a["excess_nats_a_text"], b["excess_nats_a_text"]
        assert low < value < high and high - low < higher - lower
    best = next(e for e in narrow if e["unmasking"] == "best")
    assert all(best["excess_nats_a_text"][0] <= e["excess_nats_a_text"][0] + 1e-9 for e in narrow)
    early = np.concatenate([np.zeros((5, 1)), np.minimum(np.arange(1, 33), 4) * np.ones((5, 1))], 1)
    chosen = next(e for e in bench.difficulty(rows, early, (4,)) if e["unmasking"] == "best")
    assert chosen["counts"] == bench.best_counts(early[0], 4) != best["counts"]  # by other texts, scored on these
    assert chosen["excess_nats_a_text"][0] > best["excess_nats_a_text"][0]
    models = [dict(objective=o, parameters=9, steps=3, test=2.5) for o in ("diffusion", "autoregressive")]
    shown = dict(nats=[3.0, 0.1], entropy=[2.0, 0.1])
    texts = [dict(method="random", steps=4, unmasking=u, evaluations_a_text=4.0, **shown) for u in ("linear", "cosine")]
    result = dict(
        corpus="text", tokens_a_text=32, texts=9, held_out_texts=400, toy=True, models=models, held_out=shown,
        autoregressive_samples=shown, samples=texts, difficulty=narrow,
    )  # fmt: skip
    (tmp_path / "samplers.json").write_text(json.dumps(result))
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    assert "| random | 4 | 4.0 | 3.000 ± 0.100, 2.00 | 3.000 ± 0.100, 2.00 |" in tables.texts()
    table = tables.steps()
    assert table.count("| 4 | ") == 4 and "Toy models" in table
    for e, low, spread in zip(narrow, (1.0, 0.5, 0.6, -0.1), (0.3, 0.1, 0.2, 9.9), strict=True):  # linear, cosine, …
        e["excess_nats_a_text"] = [low + 0.2, low, low + 0.4]  # the least two overlap; the last is not told from 0
        e["spread_of_excess"] = [spread, spread - 0.01, spread + 0.01]
    (tmp_path / "samplers.json").write_text(json.dumps(result))
    table = tables.steps()
    assert "excess most equal: cosine; least excess: none for certain." in table
    assert "0.10 (0.09 to 0.11) | 0.70 (0.50 to 0.90) |" in table and "| – | 0.10 (-0.10 to 0.30) |" in table


def test_the_whole_measurement_on_toy_runs(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "TOY", [*bench.TOY, "train.max_steps=3", "model.width=16", "model.seq_len=16"])
    runs = bench.toys(corpus, tmp_path)
    result = bench.measure(*runs, number=6, rows=4, orders=1, levels=5, device="cpu")
    assert len(result["curve"]) == 16 and {e["steps"] for e in result["difficulty"]} == {4, 8}
    counted = [e for e in result["samples"] if e["method"] == "random"]
    assert all(e["evaluations_a_text"] == e["steps"] for e in counted) and {e["steps"] for e in counted} == {4, 8, 16}
    assert all(0 < e["nats"][0] < 20 and 0 < e["entropy"][0] <= math.log(16) for e in result["samples"])
    with pytest.raises(SystemExit, match="--runs takes diffusion, autoregressive"):
        bench.measure(*runs[::-1], number=6, rows=4, orders=1, levels=5, device="cpu")
