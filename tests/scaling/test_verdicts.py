"""Statements about scale are judged by their rules."""

import pytest

from tdlm_fast.scaling.crossing import crossings
from tdlm_fast.scaling.verdicts import fit_all, verdicts

from .curves import curve_of


def judged(curves):
    rows = crossings(curves)
    found = verdicts(curves, rows, fit_all(curves, rows))[1:]
    return {row[0] if row[0].startswith("Critical") else row[0][:2]: row[1] for row in found}


def by_name(curves, length):
    rows = crossings(curves)
    return {row[0][:length]: row[1] for row in verdicts(curves, rows, fit_all(curves, rows))}


@pytest.mark.parametrize("first, verdict", [(4.0, "holds"), (6.0, "does not hold"), (5.0, "undecided")])
def test_immediate_dominance_is_judged_in_the_first_epoch(first, verdict):
    curves = [curve_of("diffusion", [9, first, 2], seed=s) for s in (1, 2, 3)]
    curves += [curve_of("autoregressive", [9, 5.0, 4.0], seed=s) for s in (1, 2, 3)]
    assert judged(curves)["S1"].startswith(f"{verdict}: ahead at")


def place(at, **where):
    """Both objectives over eight epochs, which cross at `at`, None: never."""
    d = [9.0] + [6 - 0.1 * e if at is None or e < at else 3.0 for e in range(1, 9)]
    return [curve_of("diffusion", d, **where), curve_of("autoregressive", [9] + [4.0] * 8, **where)]


@pytest.mark.parametrize(
    "seeds, verdict",
    [
        ([3, 4, 3], "holds: 3 of 3 seeds cross in 8 epochs"), ([None] * 3, "does not hold: 0 of 3"),
        ([3, None, None], "undecided: 1 of 3"),
    ],
)  # fmt: skip
def test_a_place_crosses_where_nearly_all_resamples_do(seeds, verdict):
    assert judged([c for s, at in enumerate(seeds) for c in place(at, seed=s)])["S2"].startswith(verdict)


@pytest.mark.parametrize(
    "strong, verdict", [(2.0, "holds: later at 1 of 1"), (4.0, "does not hold: later at 0"), (None, "not tested")]
)
def test_a_better_opponent_delays_the_crossing_or_not(strong, verdict):
    curves = place(3)
    if strong:
        curves.append(curve_of("autoregressive", [9] + [strong] * 8, arm="strong"))
    rows = by_name(curves, 8)
    assert rows["Stronger"].startswith(verdict)


def test_critical_compute_is_held_against_the_published_constant():
    """By the law 1,000 tokens need 6.37e8 FLOPs; an epoch here is 1e6."""
    curves = [c for s, at in enumerate([3, 4, 3]) for c in place(at, seed=s)]
    rows = by_name(curves, 19)
    assert rows["Critical compute is"] == "does not hold: 3e+06 FLOPs against 6.37e+08"
    for c in curves:
        for p in c["points"]:
            p["flops"] *= 190
    rows = by_name(curves, 19)
    assert rows["Critical compute is"].startswith("holds: 5.7e+08 FLOPs")


@pytest.mark.parametrize(
    "crossed, verdict",
    [
        ([None, 6, 3], "holds: 2 of 3 sizes cross"), ([6, 3], "does not hold: the smallest size crosses at 6 epochs"),
        ([None, 3, 6], "undecided"), ([None, None], "undecided: no size crosses in 8 epochs"), ([6], "not tested"),
        ([None, 6, None], "undecided"),
    ],
)  # fmt: skip
def test_a_capacity_threshold_needs_a_size_without_a_crossing(crossed, verdict):
    curves = [c for i, at in enumerate(crossed) for c in place(at, blocks=100 * (i + 1), size=str(i))]
    assert judged(curves)["S3"].startswith(verdict)


def test_a_published_slope_is_held_against_the_interval():
    curves = [c for u, at in ((100, 1), (200, 2), (400, 4), (800, 8)) for c in place(at, unique=u)]  # E× grows as U^1
    assert fit_all(curves, crossings(curves))["epochs"]["slopes"][0]["value"] == pytest.approx(1)
    name = "Critical compute grows as U^2.174 (Prabhudesai)"
    assert judged(curves)[name].startswith("does not hold: 1 (")
    assert judged([c for c in curves if c["unique_tokens"] > 100])[name].startswith("not tested: 3 uncensored points")
