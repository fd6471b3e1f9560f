"""Verdicts from intervals, and the rows of the published claims."""

import math

import numpy as np
import pytest

from tdlm_fast.claims import (
    ONE_SEED,
    Interval,
    advantages,
    exact_advantage,
    judge,
    load,
    over_seeds,
    verdict,
    wilson,
)

BEHIND, AHEAD, UNSURE = Interval(-0.9, -1.0, -0.8), Interval(0.5, 0.4, 0.6), Interval(0.0, -0.1, 0.1)


@pytest.mark.parametrize(
    "claimed, published, right, exact, expected",
    [
        (0.47, AHEAD, AHEAD, None, "holds"),
        (0.70, AHEAD, AHEAD, None, "does not hold"),  # ahead, but by less than was claimed
        (0.47, AHEAD, BEHIND, None, "an artefact of the metric"),
        (0.47, AHEAD, BEHIND, BEHIND, "an artefact of the metric"),
        (0.47, AHEAD, BEHIND, UNSURE, "undecided"),  # the bound is loose: another likelihood may be ahead
        (0.47, BEHIND, BEHIND, None, "does not hold"),
        (0.47, UNSURE, BEHIND, None, "does not hold"),
        (0.47, None, BEHIND, None, "does not hold"),
        (0.47, AHEAD, UNSURE, None, "undecided"),
        (0.47, AHEAD, None, None, "undecided"),
    ],
)
def test_verdicts_follow_their_rules(claimed, published, right, exact, expected):
    assert verdict(claimed, published, right, exact)[0] == expected


def test_intervals_over_seeds_cover_and_are_never_narrower_than_the_estimates():
    g = np.random.default_rng(0)
    found = [over_seeds(list(g.normal(1, 0.3, 3)), [0.0] * 3) for _ in range(2000)]
    assert np.mean([i.low <= 1 <= i.high for i in found]) == pytest.approx(0.95, abs=0.02)
    assert over_seeds([1.0, 1.0], [0.2, 0.2]).high == pytest.approx(1 + 1.96 * 0.2 / 2**0.5)
    one = over_seeds([1.0], [0.1])
    assert one.high - one.mean == pytest.approx(0.196 + ONE_SEED)


def test_wilson():
    assert wilson(0.0, 2) == (0.0, pytest.approx(0.658, abs=1e-3))  # two questions say little
    low, high = wilson(0.25, 10_042)
    assert low == pytest.approx(0.2416, abs=1e-4) and high == pytest.approx(0.2586, abs=1e-4)


def test_published_figures_agree_with_themselves():
    claims = {c["id"]: c for c in load()["claims"]}
    assert claims["test"]["ratio"] == pytest.approx(611.01 / 382.74, abs=1e-4)
    assert 1 - 1 / claims["test"]["ratio"] == pytest.approx(0.374, abs=5e-4)
    assert math.log(claims["best"]["ratio"]) == pytest.approx(6.382 - 5.583, abs=1e-4)
    assert claims["time"]["ratio"] == pytest.approx(0.50 / 0.48, abs=1e-4)


def run(seed, nats, metric, *, seconds=100.0, tasks=None, exact=None):
    """A made-up run whose every evaluation says the same."""
    published = {
        "reweighted_loss": metric,
        "stderr": 0.02,
        "each": [metric - 0.01, metric + 0.01],
        "published_metric": 1,
    }
    valid = {"nats_per_token": nats, "stderr": 0.0}
    table = {
        "rows": [{"nats_per_token": nats, "low": nats, "high": nats}], "published": published,
        "tokens_per_sequence": [10, 20, 30], "per_sequence": exact,
    }  # fmt: skip
    return {
        "config": {"seed": seed}, "summary": {"seconds": seconds}, "tasks": tasks, "table": table if exact else None,
        "evaluations": [{"step": s, "valid": valid, "published": published} for s in (0, 50, 250, 500)],
    }  # fmt: skip


def test_the_published_case_is_an_artefact():
    """A unigram-like diffusion model (7.22 nats, 5.947 reweighted) against 6.415: the published figures de-scaled."""
    exact = {"bound": [72.0, 144.0, 217.0], "left-to-right": [72.0, 143.0, 216.0]}
    tasks = {"mmlu": {"acc": 0.26, "n": 14042}, "hellaswag": {"acc": 0.25, "n": 10042}}
    pairs = [
        (run(s, 7.22, 5.947, exact=exact, tasks=tasks),
         run(s, 6.415, 5.29, exact={"next token": [64.0, 128.0, 193.0]}, tasks=tasks, seconds=96.0))
        for s in (1, 2, 3)
    ]  # fmt: skip
    rows = {r["id"]: r for r in judge(pairs)}
    assert rows["test"]["as_published"].mean == pytest.approx(math.log(611.01 / 382.74), abs=2e-3)
    assert rows["test"]["one_scale"].mean < 0
    for name in ("test", "step-50", "step-250", "step-500", "best"):
        assert rows[name]["verdict"] == "an artefact of the metric", name
    assert rows["test"]["exact"].mean == pytest.approx((385 - 431) / 60)
    assert rows["hellaswag"]["verdict"] == rows["mmlu"]["verdict"] == "does not hold"
    assert rows["time"]["verdict"] == "holds" and rows["gap"]["verdict"] == "undecided"


def test_what_was_not_measured_is_undecided():
    pairs = [(run(1, 7.0, 5.8), run(1, 6.4, 5.3, seconds=40.0))]
    rows = {r["id"]: r for r in judge(pairs)}
    assert rows["test"]["verdict"] == rows["mmlu"]["verdict"] == "undecided"
    assert rows["time"]["verdict"] == "does not hold"  # 2.5 times as long
    assert advantages(pairs, 1000)["right"] is None and exact_advantage(pairs) is None
    assert advantages([], 0)["right"] is None


@pytest.mark.parametrize(
    "d, a, expected",
    [(-1.2, -1.0, "holds"), (-0.8, -1.0, "does not hold"), (-1.01, -1.0, "undecided"), (-1.2, -0.01, "undecided")],
)
def test_the_likelihood_gap_is_judged_as_a_ratio_that_can_be_told(d, a, expected):
    """accuracy.py's figures: a gap below 0 where the right ending is the likelier one."""
    tasks = [{"hellaswag": {"acc": 0.3, "n": 100, "gap": g, "gap_interval": [g - 0.02, g + 0.02]}} for g in (d, a)]
    pairs = [(run(1, 7.0, 5.8, tasks=tasks[0]), run(1, 6.4, 5.3, tasks=tasks[1]))]
    row = {r["id"]: r for r in judge(pairs)}["gap"]
    assert row["verdict"] == expected and ("not told from 0" in row["reason"]) == (a == -0.01)


def test_more_seeds_do_not_make_more_questions():
    """All seeds answer the same questions, so the intervals of a set do not shrink below those of one seed."""
    entry = {"acc": 0.3, "n": 100, "gap": -1.2, "gap_interval": [-1.22, -1.18]}
    other = entry | {"gap": -1.0, "gap_interval": [-1.02, -0.98]}
    words = []
    for seeds in (1, 3):
        pair = (run(1, 7.0, 5.8, tasks={"hellaswag": entry}), run(1, 6.4, 5.3, tasks={"hellaswag": other}))
        rows = {r["id"]: r for r in judge([pair] * seeds)}
        words.append(rows["hellaswag"]["reason"])
        if seeds == 3:  # three seeds that agree: the interval is that of the questions, ± 1.96 of a ratio's error
            error = math.hypot(0.02 / 1.96, 1.2 * 0.02 / 1.96)
            low, high = 1.2 - 1.96 * error, 1.2 + 1.96 * error
            assert f"1.200 [{low:.3f}, {high:.3f}]" in rows["gap"]["reason"]
    assert words[0] == words[1]
