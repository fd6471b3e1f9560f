"""Laws with known constants are recovered, within intervals of the promised coverage."""

import numpy as np
import pytest

from tdlm_fast.scaling.fits import effective_tokens, power_law, predict, repetition


def test_a_power_law_is_recovered_with_its_coverage():
    """95 % intervals hold the truth in 95 ± 3 % of 400 repeats."""
    random, inside = np.random.default_rng(0), np.zeros(2)
    for _ in range(400):
        u, n = np.exp(random.uniform(0, 5, 12)), np.exp(random.uniform(0, 4, 12))
        y = 3 * u**0.39 * n**-0.55 * np.exp(random.normal(0, 0.2, 12))
        slopes = power_law(list(y), list(u), list(n))["slopes"]
        inside += [s["low"] <= truth <= s["high"] for s, truth in zip(slopes, (0.39, -0.55), strict=True)]
    assert (abs(inside / 400 - 0.95) <= 0.03).all(), inside / 400


def test_a_power_law_without_noise_is_exact():
    fit = power_law([2 * x**1.5 for x in (1, 2, 4, 8)], [1, 2, 4, 8])
    assert fit["slopes"][0]["value"] == pytest.approx(1.5) and np.exp(fit["constant"]) == pytest.approx(2)
    assert np.abs(fit["residuals"]).max() < 1e-12


def test_a_prediction_holds_a_further_observation_as_often_as_promised():
    """At four times the largest x, in 95 ± 3 % of 400 repeats."""
    random, inside = np.random.default_rng(2), 0
    for _ in range(400):
        x = np.exp(random.uniform(0, 3, 6))
        fit = power_law(list(2 * x**0.7 * np.exp(random.normal(0, 0.2, 6))), list(x))
        part = predict(fit, 80.0)
        inside += part["low"] <= 2 * 80**0.7 * np.exp(random.normal(0, 0.2)) <= part["high"]
    assert abs(inside / 400 - 0.95) <= 0.03, inside / 400


def test_fewer_than_four_points_are_refused():
    assert power_law([1, 2, 3], [1, 2, 3])["refused"] == "3 uncensored points; at least 4 are needed"
    assert power_law([], [])["refused"].startswith("0 uncensored points")
    assert power_law([1, 2, 3, 4], [5, 5, 5, 5])["refused"] == "the points do not vary along every axis"
    assert repetition([1] * 5, [1, 2, 3, 4, 5], [5, 4, 3, 2, 1])["refused"] == "5 points; at least 6 are needed"


def test_effective_tokens_saturate():
    d = effective_tokens(np.array([100.0] * 4), np.array([1.0, 2.0, 20.0, 1e6]), 15.0)
    assert d[0] == 100 and 190 < d[1] < 200 and d[3] == pytest.approx(1600)


@pytest.mark.parametrize("truth", [5.0, 30.0])
def test_the_rate_of_repetition_is_recovered(truth):
    random, inside = np.random.default_rng(1), 0
    unique, epochs = np.repeat([1e5, 2.5e5, 1e6], 6), np.tile([1.0, 2, 4, 8, 32, 128], 3)
    clean = 2 + 3 * (effective_tokens(unique, epochs, truth) / 1e5) ** -0.4
    assert repetition(list(unique), list(epochs), list(clean))["R"]["value"] == pytest.approx(truth, rel=0.06)
    for _ in range(4):
        fit = repetition(list(unique), list(epochs), list(clean + random.normal(0, 0.01, 18)))["R"]
        assert fit["value"] == pytest.approx(truth, rel=0.3)
        inside += (fit["low"] or 0) <= truth <= (fit["high"] or 1e9)
    assert inside >= 3
