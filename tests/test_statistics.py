"""Intervals against quantiles, coverage and published tables."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tdlm_fast.statistics import ONE_SEED, over_seeds, t_975, wilson


def test_intervals_over_seeds_cover_and_are_never_narrower_than_the_estimates():
    g = np.random.default_rng(0)
    result = [over_seeds(list(g.normal(1, 0.3, 3)), [0.0] * 3) for _ in range(2000)]
    assert np.mean([i.low <= 1 <= i.high for i in result]) == pytest.approx(0.95, abs=0.02)
    assert over_seeds([1.0, 1.0], [0.2, 0.2]).high == pytest.approx(1 + 1.96 * 0.2 / 2**0.5)
    one = over_seeds([1.0], [0.1])
    assert one.high - one.mean == pytest.approx(0.196 + ONE_SEED)


def test_wilson_intervals_are_the_published_ones():
    assert wilson(0.0, 2) == (0.0, pytest.approx(0.658, abs=1e-3))  # two questions say little
    low, high = wilson(0.25, 10_042)
    assert low == pytest.approx(0.2416, abs=1e-4) and high == pytest.approx(0.2586, abs=1e-4)


def test_the_stand_in_for_one_seed_is_the_spread_of_three():
    """bench/results holds three seeds of the published experiment: 1.96 times what they spread by."""
    result = json.loads(Path("bench/results/wikitext-2-compare/compare.json").read_text())
    d, a = ([r["summary"]["test"]["nats_per_token"] for r in arm["runs"]] for arm in result["arms"][:2])
    spread = np.std(np.subtract(a, d), ddof=1)
    assert 1.96 * spread <= ONE_SEED < 1.2 * 1.96 * spread


def test_t_975_holds_95_percent_of_students_t():
    draws = torch.distributions.StudentT(torch.tensor([1.0, 5.0, 30.0, 60.0])).sample((400_000,)).abs()
    for k, freedom in enumerate((1, 5, 30, 60)):
        assert (draws[:, k] < t_975(freedom)).float().mean() == pytest.approx(0.95, abs=0.002)
    with pytest.raises(ValueError, match="two values"):
        t_975(0)
