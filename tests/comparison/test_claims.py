"""The published claims agree with themselves, and departures from the published experiment are named."""

import math

import pytest

from tdlm_fast import config as settings
from tdlm_fast.comparison.arms import OBJECTIVES
from tdlm_fast.comparison.claims import NOT_DECIDING, deciding, departures, load


def test_published_figures_agree_with_themselves():
    claims = {c["id"]: c for c in load()["claims"]}
    assert claims["test"]["ratio"] == pytest.approx(611.01 / 382.74, abs=1e-4)
    assert 1 - 1 / claims["test"]["ratio"] == pytest.approx(0.374, abs=5e-4)
    assert math.log(claims["best"]["ratio"]) == pytest.approx(6.382 - 5.583, abs=1e-4)
    assert claims["time"]["ratio"] == pytest.approx(0.50 / 0.48, abs=1e-4)


def test_the_published_settings_are_those_of_the_config_for_every_key_that_decides_a_loss():
    published = load()["settings"]
    assert set(published) == {key for objective in OBJECTIVES for key in deciding(objective)}
    for twin in ([], ["objective=autoregressive", "loss_weight=elbo"]):
        flat = settings.flatten(settings.load("configs/published.yaml", twin))
        keys = deciding(flat["objective"])
        assert {key: published[key] for key in keys} == {key: flat[key] for key in keys}


@pytest.mark.parametrize("key", settings.fields())
def test_a_key_either_decides_a_loss_or_is_known_not_to(key):
    """A key that is added must be placed: one that decides a loss in the claim file and configs/published.yaml."""
    free = key.startswith(NOT_DECIDING)
    assert free != any(key in deciding(objective) for objective in OBJECTIVES)
    assert free == (key not in load()["settings"])


def flat_pair(config="configs/published.yaml", *keys):
    twin = ["objective=autoregressive", "loss_weight=elbo"]
    return [settings.flatten(settings.load(config, [*keys, *also])) for also in ([], twin)]


def said(pair, corpus="wikitext-2", digest="0", parameters=6_539_712):
    """The departures of a pair of configs without those that no setting can change, which every pair has."""
    summary = {"corpus": corpus, "corpus_hash": digest, "parameters": parameters}
    lines, fixed = departures(tuple({"config": c, "summary": summary} for c in pair)), load()["implementation"]
    assert lines[-len(fixed) :] == fixed and len(fixed) == 5
    return lines[: -len(fixed)]


def test_the_published_config_departs_only_in_what_no_setting_can_change():
    assert said(flat_pair()) == []  # the Hub's text is the raw one
    free = ["seed=7", "eval.samples=9", "device=cpu", "train.log_every=3", "data.path=text"]
    assert said(flat_pair("configs/published.yaml", *free)) == []


def test_a_departure_is_named_by_its_key_and_the_run_that_has_it():
    assert said(flat_pair("configs/published.yaml", "model.layers=4"), "sotu") == [
        "text sotu instead of wikitext-2-raw-v1", "model.layers 4 instead of 2",
    ]  # fmt: skip
    assert said(flat_pair(), "wikitext-2 (local)") == ["text wikitext-2 (local) instead of wikitext-2-raw-v1"]
    assert said(flat_pair(), parameters=6_539_776) == ["6,539,776 parameters instead of 6,539,712"]
    for key, value in (
        ("noise.schedule", "cosine"), ("optim.beta1", 0.8), ("optim.beta2", 0.99), ("train.accumulation", 2),
        ("model.norm_eps", 1e-6), ("data.layout", "packed"), ("optim.warmup_steps", 9), ("optim.warmup_start", 0.5),
    ):  # fmt: skip
        was = load()["settings"][key]
        assert said(flat_pair("configs/published.yaml", f"{key}={value}")) == [f"{key} {value} instead of {was}"]
    diffusion, twin = flat_pair()
    assert said((diffusion, twin | {"noise.input_masking": 0.15})) == ["noise.input_masking 0.15 instead of 0.0"]
    assert said((diffusion, twin | {"optim.beta2": 0.9})) == ["autoregressive: optim.beta2 0.9 instead of 0.95"]
    assert said((diffusion | {"model.dropout": 0.0}, twin)) == ["diffusion: model.dropout 0.0 instead of 0.1"]


def test_tiny_departs_in_its_text_precision_weight_rows_masks_norms_and_warm_up():
    assert said(flat_pair("configs/tiny.yaml"), "wikitext-2 (local)", "c14fd10071ad2ee6") == [
        "text wikitext-2-v1 (rare words are <unk>) instead of wikitext-2-raw-v1", "precision auto instead of fp32",
        "loss_weight elbo instead of published", "data.layout paragraphs instead of published",
        "model.norm_eps 1e-06 instead of 1e-05", "optim.warmup_steps 0 instead of 6",
        "optim.warmup_start 0.0 instead of 0.001", "noise.sampling stratified instead of exact",
    ]  # fmt: skip
