"""bench/studies/likelihood_gap.py computes the published score, in both directions, on the whole input."""

import json

import pytest
import torch
import torch.nn.functional as F
from conftest import sharp_model

from bench.studies import likelihood_gap
from tdlm_fast.config import Model as Shape
from tdlm_fast.evaluation.tasks import Question
from tdlm_fast.model import Model

TEXTS = [[3, 1, 4, 1, 5, 9, 2], [6, 5], [3, 5, 8, 9]]


@pytest.mark.parametrize("causal", [False, True])
def test_scores_are_those_of_log_softmax_over_shifted_logits(causal):
    model = sharp_model(10)
    found = likelihood_gap.scores(model, TEXTS, causal=causal)
    for i, text in enumerate(TEXTS):
        x = torch.tensor([text])
        with torch.no_grad():
            log_p = F.log_softmax(model(x, causal=causal)[0] @ model.head.T, -1)
        after = log_p[:-1].gather(1, x[0, 1:, None]).mean()
        before = log_p[1:].gather(1, x[0, :-1, None]).mean()
        same = log_p.gather(1, x[0, :, None]).mean()
        assert found[:, i].tolist() == pytest.approx([after.item(), before.item(), same.item()], rel=1e-4)


class Words:
    """A token for each word, its length."""

    vocab, start_token_id = 10, 0

    def encode(self, text):
        return [len(word) for word in text.split()]


def test_the_gap_is_right_minus_the_mean_of_the_wrong_and_the_largest_score_answers():
    model = sharp_model(10)
    questions = [Question("", "a bb ccc", (" a a", " dddd ee", " fff"), g) for g in (0, 1, 2)]
    found = likelihood_gap.gaps(model, questions, Words(), causal=True, precision="fp32", batch=2)
    texts = [Words().encode(questions[0].context + e) for e in questions[0].endings]
    a, b, c = likelihood_gap.scores(model, texts, causal=True)[0].tolist()
    next_token = found["next token"]
    assert next_token["gap"] == pytest.approx(0, abs=1e-6)  # every ending is right once
    assert next_token["score"] == pytest.approx((a + b + c) / 3, rel=1e-5)
    assert next_token["accuracy"] == pytest.approx(1 / 3)
    one = likelihood_gap.gaps(model, [questions[1]] * 4, Words(), causal=True, precision="fp32")["next token"]
    assert one["gap"] == pytest.approx(b - (a + c) / 2, rel=1e-4) and one["accuracy"] == float(b > max(a, c))
    assert one["gap_interval"] == pytest.approx([one["gap"]] * 2)  # the same question again shows no spread


def test_an_untrained_model_scores_every_text_about_ln_v():
    model = Model(Shape(width=16, layers=1, heads=2), vocab=10)
    found = likelihood_gap.scores(model.eval(), TEXTS, causal=False)
    assert (found + torch.tensor(10.0).log()).abs().max() < 0.1


def test_a_run_is_measured_before_and_after_training(trained, tmp_path, monkeypatch):
    folder, _ = trained
    questions = [Question("", "the mill", (" runs", " sleeps"), 0)] * 3
    monkeypatch.setattr(likelihood_gap, "load", lambda *a: ("", questions))
    assert likelihood_gap.main([str(folder), str(folder), "--json", str(tmp_path / "gap.json")]) == 0
    figures = json.loads((tmp_path / "gap.json").read_text())
    run = figures["diffusion"]
    assert figures["questions"] == 3 and figures["chance"] == 0.5 and run["steps"] == 2
    for name in likelihood_gap.SHIFTS:
        assert run["untrained"][name]["score"] != run["trained"][name]["score"] < 0
