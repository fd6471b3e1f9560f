"""The published claims agree with themselves, and departures from the published experiment are named."""

import math

import pytest

from tdlm_fast import config as settings
from tdlm_fast.comparison.claims import departures, load


def test_published_figures_agree_with_themselves():
    claims = {c["id"]: c for c in load()["claims"]}
    assert claims["test"]["ratio"] == pytest.approx(611.01 / 382.74, abs=1e-4)
    assert 1 - 1 / claims["test"]["ratio"] == pytest.approx(0.374, abs=5e-4)
    assert math.log(claims["best"]["ratio"]) == pytest.approx(6.382 - 5.583, abs=1e-4)
    assert claims["time"]["ratio"] == pytest.approx(0.50 / 0.48, abs=1e-4)


def test_what_departs_from_the_published_experiment_is_said():
    flat = settings.flatten(settings.load("configs/controls/diffusion-published.yaml"))
    flat |= {"precision": "fp32", "noise.sampling": "independent"}

    def said(corpus, digest="0", parameters=6_539_712, **changed):
        summary = {"corpus": corpus, "corpus_hash": digest, "parameters": parameters}
        return departures({"config": flat | changed, "summary": summary})

    assert said("wikitext-2") == []  # the Hub's is the raw one
    assert said("sotu", seed=7, **{"model.layers": 4}) == [
        "text sotu instead of wikitext-2-raw-v1", "model.layers 4 instead of 2",
    ]  # fmt: skip
    assert said("wikitext-2 (local)") == ["text wikitext-2 (local) instead of wikitext-2-raw-v1"]  # a folder's name
    assert said("wikitext-2", parameters=6_539_776) == ["6,539,776 parameters instead of 6,539,712"]
    tiny = settings.flatten(settings.load("configs/tiny.yaml"))
    assert said("wikitext-2 (local)", "c14fd10071ad2ee6", **tiny) == [
        "text wikitext-2-v1 (rare words are <unk>) instead of wikitext-2-raw-v1", "precision bf16 instead of fp32",
        "loss_weight elbo instead of published", "noise.sampling stratified instead of independent",
    ]  # fmt: skip
