"""Verdicts from intervals, and the rows of the published claims."""

import math
from pathlib import Path

import numpy as np
import pytest

from tdlm_fast.comparison.claim_schema import read
from tdlm_fast.comparison.claims import load
from tdlm_fast.comparison.judge import (
    advantages,
    bits_per_byte,
    exact_advantage,
    headline,
    judge,
    rules,
    untrained,
    verdict,
)
from tdlm_fast.statistics import ONE_SEED, Interval, wilson

BEHIND, AHEAD, UNSURE = Interval(-0.9, -1.0, -0.8), Interval(0.5, 0.4, 0.6), Interval(0.0, -0.1, 0.1)


@pytest.mark.parametrize(
    "claimed, published, right, exact, expected",
    [
        (0.47, AHEAD, AHEAD, None, "holds"),
        (0.59, AHEAD, AHEAD, None, "holds"),
        (0.61, AHEAD, AHEAD, None, "does not hold"),  # ahead, but by less than was claimed
        (0.47, AHEAD, Interval(0.5, 0.24, 0.76), None, "holds"),
        (0.47, AHEAD, Interval(0.5, 0.23, 0.77), None, "undecided"),  # as well half of it
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


def run(seed, nats, metric, *, seconds=100.0, tasks=None, exact=None, error=0.0, draws=(-0.01, 0.01)):
    """A made-up run whose every evaluation says the same: nats ± error (95 %) and the metric, of several draws."""
    published = {"reweighted_loss": metric, "stderr": 0.02, "each": [metric + d for d in draws]}
    valid = {"nats_per_token": nats, "stderr": error / 1.96}
    table = {
        "rows": [{"nats_per_token": nats, "low": nats - error, "high": nats + error}], "published": published,
        "tokens_per_sequence": [10, 20, 30], "per_sequence": exact,
    }  # fmt: skip
    return {
        "config": {"seed": seed}, "summary": {"seconds": seconds, "device": "cpu"}, "tasks": tasks,
        "table": table if exact else None,
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
    assert rows["hellaswag"]["verdict"] == rows["mmlu"]["verdict"] == "undecided"
    assert rows["time"]["verdict"] == "not comparable" and rows["gap"]["verdict"] == "undecided"


def of_bytes(r, nats, bytes_per_token):
    """The run with the bits per byte of its splits."""
    score = {"nats_per_token": nats, "bits_per_byte": nats / math.log(2) / bytes_per_token}
    return r | {"summary": r["summary"] | {"test": score, "valid": score}}


@pytest.mark.parametrize("true, expected", [(2.442, "an artefact of the metric"), (4.366, "does not hold")])
def test_bits_per_byte_are_judged_with_the_bytes_that_were_assumed_and_with_the_true_ones(true, expected):
    """3.417 and 2.073 nats per token are the published 1.1465 and 1.2244 bits per byte, by 4.3 and by 2.442 bytes."""
    exact = {"bound": [34.0, 68.0, 103.0], "left-to-right": [34.0, 68.0, 102.0]}, {"next token": [20.0, 41.0, 63.0]}
    pairs = [
        (of_bytes(run(s, 3.4172, 5.9, error=0.01, exact=exact[0]), 3.4172, true),
         of_bytes(run(s, 2.0727, 5.3, exact=exact[1]), 2.0727, true))
        for s in (1, 2, 3)
    ]  # fmt: skip
    case = read(Path("parameter-golf-1106"))
    [row] = judge(pairs, case=case)
    d, a = 3.4172 / math.log(2), 2.0727 / math.log(2)
    assert row["as_published"].mean == pytest.approx(a / true - d / 4.3)
    assert row["one_scale"].mean == pytest.approx((a - d) / 4.3) and row["right"].mean == pytest.approx((a - d) / true)
    assert row["right"].high - row["right"].mean == pytest.approx(0.01 / 3**0.5 / math.log(2) / true)
    assert row["exact"].mean == pytest.approx((124 - 204) / 60 / math.log(2) / true)
    assert row["claimed"] == pytest.approx(1.2244 - 1.1465) and row["verdict"] == expected
    if true == 2.442:
        assert (
            "the published computation shows +0.078 bits per byte better, which agrees with the published +0.078"
            in (row["reason"])
        )
    before = untrained(pairs, case)
    assert before["as_published"].mean == pytest.approx(row["as_published"].mean) and before["exact"] is None
    assert judge([], case=case)[0]["verdict"] == "undecided"
    assert [r for r in rules(case) if "Bits per byte" in r] and not [r for r in rules(case) if "Wilson" in r]


def test_what_was_not_measured_is_undecided():
    pairs = [(run(1, 7.0, 5.8), run(1, 6.4, 5.3, seconds=40.0))]
    rows = {r["id"]: r for r in judge(pairs)}
    assert rows["test"]["verdict"] == rows["mmlu"]["verdict"] == "undecided"
    assert rows["time"]["verdict"] == "not comparable"
    assert advantages(pairs, 1000)["right"] is None and exact_advantage(pairs) is None
    assert advantages([], 0)["right"] is None


@pytest.mark.parametrize(
    "d, a, expected",
    [
        (-1.2, -1.0, "holds"),
        (-0.8, -1.0, "does not hold"),
        (-1.02, -1.0, "undecided"),
        (-1.2, -0.01, "undecided"),
        (1.2, 1.0, "undecided"),
        (-1.2, 1.0, "undecided"),
    ],
)
def test_the_likelihood_gap_is_judged_as_a_ratio_that_can_be_told(d, a, expected):
    """accuracy.py's figures: a gap below 0 where the right ending is the likelier one."""
    tasks = [{"hellaswag": {"acc": 0.3, "n": 1000, "gap": g, "gap_interval": [g - 0.02, g + 0.02]}} for g in (d, a)]
    pairs = [(run(1, 7.0, 5.8, tasks=tasks[0]), run(1, 6.4, 5.3, tasks=tasks[1]))]
    row = {r["id"]: r for r in judge(pairs)}["gap"]
    assert row["verdict"] == expected and ("prefer" in row["reason"].split(":")[0]) == (a > -0.02)


def test_more_seeds_do_not_make_more_questions():
    """All seeds answer the same questions, so the intervals of a set do not shrink below those of one seed."""
    entry = {"acc": 0.3, "n": 1000, "gap": -1.2, "gap_interval": [-1.22, -1.18]}
    other = entry | {"gap": -1.0, "gap_interval": [-1.02, -0.98]}
    words = []
    for seeds in (1, 3):
        pair = (run(1, 7.0, 5.8, tasks={"hellaswag": entry}), run(1, 6.4, 5.3, tasks={"hellaswag": other}))
        rows = {r["id"]: r for r in judge([pair] * seeds)}
        words.append(rows["hellaswag"]["reason"].partition(";")[0])
        if seeds == 3:  # three seeds that agree: the interval is that of the questions, ± 1.96 of a ratio's error
            half = math.hypot(0.02 / 1.2, 0.02)  # of the ratio's logarithm
            low, high = 1.2 * math.exp(-half), 1.2 * math.exp(half)
            assert f"1.200 [{low:.3f}, {high:.3f}]" in rows["gap"]["reason"]
    assert words[0] == words[1]


def test_advantages_carry_the_errors_of_both_sides():
    """One seed: half an interval is 1.96 standard errors of the difference (t for few draws) and ONE_SEED."""
    d, a = run(1, 7.0, 5.0, error=0.3, draws=(-0.1, 0.2)), run(1, 6.0, 4.0, error=0.4, draws=(0.1, 0.5))
    result = advantages([(d, a)], 50)
    assert result["right"].mean == -1.0 and result["right"].high + 1.0 == pytest.approx(0.5 + ONE_SEED)
    assert result["as_published"].mean == 1.0
    metric = 12.706 * 0.02  # Student's t of two draws times their standard error
    assert result["as_published"].high - 1.0 == pytest.approx(math.hypot(metric, 0.4) + ONE_SEED)
    each = [0.1 + 0.1, 0.5 - 0.2]  # draw by draw, apart from the mean of -1
    paired = 12.706 * np.std(each, ddof=1) / 2**0.5
    assert result["one_scale"].mean == -1.0 and result["one_scale"].high + 1.0 == pytest.approx(paired + ONE_SEED)
    one = {"x": [1.0] * 3}
    tables = run(1, 7.0, 5.0, error=0.3, exact=one), run(1, 6.0, 4.0, error=0.4, exact=one)
    assert advantages([tables], "test")["right"].high + 1.0 == pytest.approx(0.5 + ONE_SEED)


def test_one_draw_that_both_share_shows_its_error_over_the_seeds():
    pairs = [(run(s, 7.0, 5.0 + 0.1 * s, draws=(0.0,)), run(s, 6.0, 4.0, draws=(0.0,))) for s in (1, 2, 3)]
    result = advantages(pairs, 0)["one_scale"]
    assert result.high - result.mean == pytest.approx(4.303 * 0.1 / 3**0.5)
    single = advantages(pairs[:1], 0)["one_scale"]
    assert single.high - single.mean == pytest.approx(1.96 * 0.02 * 2**0.5 + ONE_SEED)


def test_the_best_evaluation_is_the_lowest_of_each():
    def evaluation(at, nats, metric):
        published = {"reweighted_loss": metric, "stderr": 0.02, "each": [9.0, 9.0]}
        return {"step": at, "valid": {"nats_per_token": nats, "stderr": 0.0}, "published": published}

    d, a = run(1, 7.0, 5.0), run(1, 6.0, 4.0)
    d["evaluations"][1:3] = evaluation(50, 6.5, 9.0), evaluation(250, 8.0, 4.5)
    a["evaluations"][1:3] = evaluation(50, 5.75, 9.0), evaluation(250, 8.0, 3.75)
    result = advantages([(d, a)], "best")
    assert result["right"].mean == 5.75 - 6.5 and result["as_published"].mean == 5.75 - 4.5
    assert result["one_scale"].mean == 3.75 - 4.5


def test_the_best_exact_order_stands_for_diffusion():
    """The bound is not an exact likelihood, however low; the better of the orders counts, with its own error."""
    d = {"bound": [1.0, 1.0, 1.0], "left-to-right": [72.0, 143.0, 216.0], "confidence": [70.0, 141.0, 213.0]}
    a = {"next token": [64.0, 126.0, 197.0]}
    pair = (run(1, 7.2, 5.9, exact=d), run(1, 6.4, 5.3, exact=a))
    result = exact_advantage([pair])
    assert result.mean == pytest.approx((387 - 424) / 60)
    rest = np.subtract(a["next token"], d["confidence"]) - result.mean * np.array([10, 20, 30])
    error = math.sqrt((rest**2).sum() * 3 / 2) / 60
    assert result.high - result.mean == pytest.approx(1.96 * error + ONE_SEED) and error > 0.005
    assert exact_advantage([(pair[0], run(1, 6.4, 5.3))]) is None and exact_advantage([(run(1, 7, 5), pair[1])]) is None
    others = (pair[0], pair[1] | {"table": pair[1]["table"] | {"tokens_per_sequence": [10, 20, 31]}})
    assert exact_advantage([others]) is None  # not the same sequences
    near = (run(1, 7.2, 5.9, exact=d | {"confidence": [64.0, 126.0, 197.0]}), pair[1])
    rows = {r["id"]: r for r in judge([near])}
    assert rows["test"]["verdict"] == "undecided" and "exact likelihood" in rows["test"]["reason"]
    assert rows["step-50"]["verdict"] == "an artefact of the metric"  # no exact order was computed there


@pytest.fixture
def times_of_ours(monkeypatch):
    """The claim about time, as if its runs were of this program on the runs' device."""
    record = load()
    claim = next(c for c in record["claims"] if c["kind"] == "time")
    claim.update(program="tdlm_fast", device="cpu")
    monkeypatch.setattr("tdlm_fast.comparison.judge.load", lambda: record)
    return claim


@pytest.mark.parametrize(
    "seconds, expected",
    [((104, 104), "holds"), ((114, 114), "holds"), ((116, 116), "does not hold"), ((94, 94), "does not hold"),
     ((104, 124), "undecided")],
)  # fmt: skip
def test_training_times_are_alike_within_a_tenth(seconds, expected, times_of_ours):
    pairs = [(run(i, 7.0, 5.0, seconds=s), run(i, 6.0, 4.0)) for i, s in enumerate(seconds)]
    assert {r["id"]: r for r in judge(pairs)}["time"]["verdict"] == expected


def test_one_seed_decides_no_time(times_of_ours):
    one = [(run(0, 7.0, 5.0, seconds=104), run(0, 6.0, 4.0))]
    row = {r["id"]: r for r in judge(one)}["time"]
    assert row["verdict"] == "undecided" and "one seed" in row["reason"]


def test_times_of_another_program_or_device_are_not_comparable(times_of_ours):
    two = [(run(i, 7.0, 5.0, seconds=50), run(i, 6.0, 4.0)) for i in (0, 1)]
    assert {r["id"]: r for r in judge(two)}["time"]["verdict"] == "does not hold"
    times_of_ours["device"] = "a GPU"
    row = {r["id"]: r for r in judge(two)}["time"]
    assert row["verdict"] == "not comparable" and row["right"].mean == pytest.approx(math.log(0.5))
    assert "of tdlm_fast on a GPU, and these of tdlm_fast on cpu" in row["reason"] and "took 0.50 [" in row["reason"]
    times_of_ours.update(device="cpu", program="another")
    assert {r["id"]: r for r in judge(two)}["time"]["verdict"] == "not comparable"
    two[1][0]["summary"]["device"] = "another"
    row = {r["id"]: r for r in judge(two)}["time"]
    assert row["verdict"] == "not comparable" and "several machines" in row["reason"] and row["right"] is None


def test_a_seed_without_the_metric_does_not_make_it_unmeasured():
    exact = {"bound": [72.0, 144.0, 217.0]}, {"next token": [64.0, 128.0, 193.0]}
    pairs = [(run(i, 7.22, 5.947, exact=exact[0]), run(i, 6.415, 5.29, exact=exact[1])) for i in (1, 2, 3)]
    pairs[0][0]["table"] = None
    pairs[0][0]["summary"]["test"] = {"nats_per_token": 7.22, "stderr": 0.0}
    row = {r["id"]: r for r in judge(pairs)}["test"]
    assert row["verdict"] == "an artefact of the metric" and row["as_published"].mean == pytest.approx(0.468)


@pytest.fixture
def many_published(monkeypatch):
    """As if the published accuracies were of 1000 questions each."""
    record = load()
    for c in record["claims"]:
        c.update({"questions": 1000} if "questions" in c else {})
    monkeypatch.setattr("tdlm_fast.comparison.judge.load", lambda: record)


@pytest.mark.parametrize(
    "d, a, expected", [(0.5, 0.0, "holds"), (0.53, 0.004, "holds"), (0.26, 0.0, "does not hold"),
                       (0.55, 0.0, "does not hold"), (0.5, 0.26, "does not hold")]
)  # fmt: skip
def test_the_accuracies_of_both_objectives_count(d, a, expected, many_published):
    """The publication: MMLU 50 % and 0 %; of 1000 questions 50 % is 46.9 to 53.1."""
    tasks = [{"mmlu": {"acc": acc, "n": 14_042}} for acc in (d, a)]
    row = {r["id"]: r for r in judge([(run(7, 7.0, 5.0, tasks=tasks[0]), run(7, 6.0, 4.0, tasks=tasks[1]))])}["mmlu"]
    assert row["verdict"] == expected and "14,042 questions, seed 7" in row["reason"]


def test_two_published_questions_decide_nothing():
    """0 of 2 may be anything up to 66 %, and 1 of 2 anything from 9 to 91 %."""
    assert wilson(0.0, 2)[1] == pytest.approx(0.658, abs=1e-3) and wilson(0.5, 2)[0] == pytest.approx(0.095, abs=1e-3)
    tasks = {"mmlu": {"acc": 0.9, "n": 14_042}, "hellaswag": {"acc": 0.9, "n": 10_042}}
    rows = {r["id"]: r for r in judge([(run(7, 7.0, 5.0, tasks=tasks), run(7, 6.0, 4.0, tasks=tasks))])}
    for name in tasks:
        assert rows[name]["verdict"] == "undecided"
        assert rows[name]["reason"].startswith("2 published questions decide nothing: diffusion 90.0 %")


def test_few_or_other_questions_decide_nothing(many_published):
    whole = {"acc": 0.0, "n": 10_042}
    for d, a, message in (
        ({"acc": 0.0, "n": 2}, {"acc": 0.0, "n": 2}, "too few questions"),
        (whole, {"acc": 0.0, "n": 10_041}, "the same questions"),
        (whole | {"limit": 500}, whole | {"limit": 500}, "not scored whole"),
        (whole, whole | {"limit": 500}, "not scored whole"),
        (whole | {"limit": 500}, whole, "not scored whole"),
    ):
        pair = (run(1, 7.0, 5.0, tasks={"hellaswag": d}), run(1, 6.0, 4.0, tasks={"hellaswag": a}))
        row = {r["id"]: r for r in judge([pair])}["hellaswag"]
        assert row["verdict"] == "undecided" and message in row["reason"]
    both = (run(1, 7, 5, tasks={"hellaswag": whole}),) * 2
    assert {r["id"]: r for r in judge([both])}["hellaswag"]["verdict"] == "holds"


def test_an_artefact_says_what_the_published_computation_shows_here():
    near, far = Interval(0.45, 0.4, 0.5), Interval(0.2, 0.1, 0.3)
    assert verdict(0.47, near, BEHIND)[1].startswith("likelihood shows the opposite, judged by diffusion's bound only;")
    assert verdict(0.47, near, BEHIND, BEHIND)[1].startswith("likelihood shows the opposite;")
    assert verdict(0.47, near, BEHIND)[1].endswith("shows 1.57 times better, which agrees with the published 1.60")
    words = "shows 1.22 times better, which has the published sign; the published size, 1.60, is not reproduced"
    assert verdict(0.47, far, BEHIND)[1].endswith(words)


def arm(label, objective, valid, test, seeds=(1, 2)):
    runs = []
    for seed in seeds:
        runs.append(run(seed, valid, 5.0))
        runs[-1]["summary"]["test"] = {"nats_per_token": test, "stderr": 0.0}
    return {"label": label, "objective": objective, "runs": runs}


def test_the_headline_is_of_the_best_arms_by_validation_and_never_by_test():
    d, a = arm("d", "diffusion", 6.2, 6.1), arm("a", "autoregressive", 5.3, 5.2)
    better = arm("d uniform", "diffusion", 6.1, 6.15, seeds=(1,))  # worse on test
    assert headline([d, a]) is None  # nothing to choose from
    best = headline([d, a, better])
    assert best["arms"] == {"diffusion": "d uniform", "autoregressive": "a"} and best["seeds"] == [1]
    assert best["nats"] == {"diffusion": 6.15, "autoregressive": 5.2}
    assert best["claim"]["right"].mean == pytest.approx(5.2 - 6.15) and best["claim"]["id"] == "test"
    assert best["valid"] == {"d": pytest.approx(6.2), "d uniform": pytest.approx(6.1), "a": pytest.approx(5.3)}
    lucky = arm("d lucky", "diffusion", 6.1, 6.0)
    for r, valid in zip(lucky["runs"], (6.2, 1.0), strict=True):
        r["evaluations"] = [e | {"valid": {"nats_per_token": valid, "stderr": 0.0}} for e in r["evaluations"]]
    assert headline([d, a, better, lucky])["arms"]["diffusion"] == "d uniform"  # seed 2 is not of all arms
    assert headline([d, a, arm("d other", "diffusion", 6.0, 6.0, seeds=(7,))]) is None  # no seed of all arms


def test_without_the_other_objective_there_is_no_headline():
    assert headline([arm("d", "diffusion", 6.2, 6.1), arm("e", "diffusion", 6.1, 6.1)]) is None


def test_bits_per_byte_are_not_judged_where_the_tokens_are_no_text():
    pair = of_bytes(run(1, 3.4, 5.9, error=0.01), 3.4, 2.442), of_bytes(run(1, 2.1, 5.3), 2.1, 2.442)
    assert bits_per_byte([pair], 0, 4.3)["right"] is not None
    for r in pair:
        r["summary"]["test"]["bits_per_byte"] = None
    assert set(bits_per_byte([pair], 0, 4.3).values()) == {None}
