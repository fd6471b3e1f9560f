"""Where diffusion crosses, and what is censored."""

import math

import pytest

from tdlm_fast.scaling.crossing import OPPONENTS, best_so_far, crossing, crossings, median_interval

from .curves import curve_of

AR = curve_of("autoregressive", [9, 5.0, 4.0, 3.5, 3.8, 4.4])


def test_the_first_epoch_at_or_below_the_best_so_far_is_the_crossing():
    diffusion = curve_of("diffusion", [8, 6.0, 5.0, 4.0, 3.5, 3.2])
    assert crossing([diffusion], [AR]) == {"epochs": 4.0, "flops": 4e6, "limit": 5.0}


def test_an_opponent_that_overfits_is_held_at_its_best():
    diffusion = curve_of("diffusion", [8, 6.0, 5.0, 4.5, 4.2, 3.9])  # below AR's last loss, never below its best
    assert crossing([diffusion], [AR]) == {"epochs": None, "flops": None, "limit": 5.0}


def test_before_one_epoch_and_past_the_opponents_end_nothing_counts():
    assert crossing([curve_of("diffusion", [1, 6.0, 6.0])], [AR])["epochs"] is None  # step 0 is no training
    longer = curve_of("diffusion", [8, 6, 6, 6, 6, 6, 1.0])
    assert crossing([longer], [AR]) == {"epochs": None, "flops": None, "limit": 5.0}
    assert best_so_far([AR])[-1] == (5.0, 3.5, 5e6)


def test_the_best_of_several_opponents_is_a_row_of_its_own():
    strong = curve_of("autoregressive", [9, 5, 3.3, 3.3, 3.3, 3.3], arm="strong")
    diffusion = curve_of("diffusion", [8, 6.0, 5.0, 4.0, 3.5, 3.2])
    rows = {r["opponent"]: r["epochs"] for r in crossings([diffusion, AR, strong])}
    assert rows == {"autoregressive": 4.0, "strong": 5.0, OPPONENTS: 5.0}


def test_the_median_is_censored_where_most_seeds_are():
    seeds = [curve_of("diffusion", [9, 6, last], seed=s) for s, last in enumerate([3, 6, 6])]
    (row,) = crossings([*seeds, *(curve_of("autoregressive", [9, 5, 4], seed=s) for s in range(3))])
    assert row["epochs"] is None and row["low"] == 2.0 and row["high"] is None and row["limit"] == 2.0
    assert [s["epochs"] for s in row["seeds"]] == [2.0, None, None]
    assert crossings(seeds) == []


def test_the_interval_is_that_of_all_resamples():
    assert median_interval([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    assert median_interval([4.0]) == (4.0, 4.0, 4.0)
    assert median_interval([1.0, math.inf, math.inf])[0] == math.inf
    assert median_interval([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx((3.0, 1.0, 5.0))
