"""Judge each published claim by a comparison, with a verdict that follows from intervals by RULES.

An advantage is diffusion's, in nats per token: ln(perplexity of autoregressive / perplexity of diffusion). Each claim
about a loss is computed three ways on the same tokens:

    as published    the autoregressive model's exact nats minus diffusion's reweighted loss, which are on two scales
    one scale       the published metric for both, on the same draws
    on likelihood   the autoregressive model's exact nats minus diffusion's bound ("right" in compare.json)

Its 95 % interval is Student's t over seeds (same seed: same weights, same batches), no narrower than the estimates' own
errors. With one seed it is the estimates' own error and ONE_SEED nats to either side, for the seeds that were not run.
A claim in bits per byte ("kind": "bits") is judged the same way: "as published" divides diffusion's nats by the bytes
per token that the publication assumed, "one scale" divides both by them, and "on likelihood" has the text's own bytes.
"""

import math

from ..statistics import ONE_SEED, Interval, over_seeds, t_975, wilson
from .arms import OBJECTIVES, pairs_of
from .claims import load

PROGRAM = "tdlm_fast"  # whose times the runs hold
TIME_MARGIN = math.log(1.1)  # training times are alike within 10 %
WIDEST = 0.1  # of an accuracy's interval: a wider one decides nothing
RULES: tuple[str | tuple[str, str], ...] = (  # a rule with the kind of claims that it is for, or for every kind
    "Holds: on likelihood, the whole interval is above 0 and above half the claimed size, and it reaches the claimed "
    "size.",
    "An artefact of the metric: computed as published, the whole interval is above 0; on likelihood, it is below 0. "
    "So is every exact likelihood of the diffusion model that was computed. This verdict is about the sign alone. A "
    "row says where the published size lies outside our interval, which means that we do not reproduce it. The rest "
    "could only be settled with the published training text, and the weights or logs of the published runs.",
    "Does not hold: on likelihood, the whole interval is below 0, every exact likelihood is certainly behind, and the "
    "published computation shows no advantage either or was not made. A claim also does not hold where the interval "
    "on likelihood is above 0 but does not reach the claimed size.",
    "Undecided: everything else, everything that was not measured, and every claim where the runs of the two "
    "objectives were not alike in settings, text, initial weights and batches.",
    "Exact likelihoods are computed only at the end of training. Earlier, diffusion is judged by its bound.",
    ("bits", "Bits per byte are judged by the rules of the losses. The published computation divides diffusion's bits "
     "by the tokens times the bytes per token that the publication assumed; on likelihood, both objectives are divided "
     "by the bytes of the text."),
    ("accuracy", "Accuracies are judged on whole sets, with the same questions for both objectives. The published "
     "figure and ours each have a 95 % Wilson interval, from their numbers of questions. The claim holds where the two "
     "intervals overlap for both objectives, and does not hold where they are apart for one. An interval wider than "
     f"{WIDEST:.0%} decides nothing."),
    ("gap", "The likelihood gap is judged only where both objectives prefer the right endings beyond their 95 % "
     "intervals: the ratio of the two gaps, by the rules of the losses."),
    ("time", "Training times are not comparable unless both are of one program on one device. Then the claim holds "
     "where the whole interval of the ratio is within 10 % of the published ratio, and does not hold where the whole "
     "interval is outside. It needs two seeds or more."),
    "The claims are judged on the mirrored pair, the first arm of each objective, whose settings are alike. Where an "
    "objective has several arms, the headline compares the best of each: the lowest validation loss, by the bound or "
    "the exact value, on the seeds that all arms of that objective have. The test split has no part in the choice.",
    f"With one seed, {ONE_SEED} nats to either side stand in for the spread over seeds.",
)  # fmt: skip
LOSSES = ("loss", "bits")  # the kinds of claims that a control arm is judged by


def rules(case: dict) -> list[str]:
    """Return the rules of the kinds of claims that a claim file holds."""
    kinds = {c["kind"] for c in case["claims"]}
    return [r if isinstance(r, str) else r[1] for r in RULES if isinstance(r, str) or r[0] in kinds]


def _times(nats: float) -> str:
    return f"{math.exp(nats):.2f}"


def _bits(bits: float) -> str:
    return f"{bits:+.3f}"


def verdict(
    claimed: float, published: Interval | None, right: Interval | None, exact: Interval | None = None, *, unit="nats"
):
    """Return (verdict, reason) of a claim of that advantage in a unit, "nats" per token or "bits per byte".

    exact is the advantage of the best exact likelihood.
    """
    form, better = (_times, "times better") if unit == "nats" else (_bits, f"{unit} better")
    if right is None:
        return "undecided", "not measured"
    if right.low > 0:
        if right.high < claimed:
            return "does not hold", f"diffusion is ahead, but by {right.mean:.3f} {unit}, not {claimed:.3f}"
        if right.low < claimed / 2:
            return "undecided", f"diffusion is ahead, but the interval also contains far less than {claimed:.3f} {unit}"
        return "holds", "diffusion is ahead on likelihood, and the interval reaches the claimed size"
    if right.high >= 0:
        return "undecided", "the interval on likelihood contains 0"
    if exact is not None and exact.high >= 0:
        return "undecided", "the bound is behind, but an exact likelihood of the diffusion model may not be"
    if published is not None and published.low > 0:
        ours, theirs = f"{form(published.mean)} {better}", form(claimed)
        alike = f"agrees with the published {theirs}"
        if not published.low <= claimed <= published.high:
            alike = f"has the published sign; the published size, {theirs}, is not reproduced"
        bound_only = "" if exact else ", judged by diffusion's bound only"
        reason = f"likelihood shows the opposite{bound_only}; the published computation shows {ours}, which {alike}"
        return "an artefact of the metric", reason
    return "does not hold", "diffusion is behind on likelihood"


def _at(run: dict, place) -> dict | None:
    """Return {"nats", "error", "metric", "metric_error", "draws"} of a run at a step, "best" or "test"."""
    if place == "test":
        if run.get("table") is None:
            test = run["summary"].get("test")
            return test and {"nats": test["nats_per_token"], "error": test["stderr"]} | _metric(None)
        right, metric = run["table"]["rows"][0], run["table"]["published"]
        error = (right["high"] - right["low"]) / 2 / 1.96
        return {"nats": right["nats_per_token"], "error": error} | _metric(metric)
    entries = run["evaluations"]
    if place == "best":
        best = min(entries, key=lambda e: e["valid"]["nats_per_token"])
        seen = [e["published"] for e in entries if "published" in e]
        metric = min(seen, key=lambda p: p["reweighted_loss"]) if seen else None  # as published: the smallest draw
    else:
        best = next((e for e in entries if e["step"] == place), None)
        metric = best.get("published") if best else None
    if best is None:
        return None
    return {"nats": best["valid"]["nats_per_token"], "error": best["valid"]["stderr"]} | _metric(metric)


def _metric(p: dict | None) -> dict:
    """Return the metric, its draws, and an error of which 1.96 are half its 95 % interval, by Student's t."""
    if p is None:
        return {"metric": None, "metric_error": 0.0, "draws": []}
    n = len(p["each"])
    error = p["stderr"] * (t_975(n - 1) / 1.96 if n > 1 else 1.0)
    return {"metric": p["reweighted_loss"], "metric_error": error, "draws": p["each"]}


def _paired_error(d: dict, a: dict) -> float | None:
    """Return the error of a difference of published metrics, as in _metric, draw by draw: both sides share the draws.

    None where there is one draw, whose error both sides share in part: it shows only in the spread over seeds.
    """
    n = len(d["draws"])
    if not n == len(a["draws"]) > 1:
        return None
    each = [y - x for x, y in zip(d["draws"], a["draws"], strict=True)]
    mean = sum(each) / n
    return t_975(n - 1) / 1.96 * math.sqrt(sum((e - mean) ** 2 for e in each) / (n - 1) / n)


def advantages(pairs: list[tuple[dict, dict]], place) -> dict[str, Interval | None]:
    """Return {"as_published", "one_scale", "right"} of (diffusion, autoregressive) runs at a step, "best" or "test"."""
    sides = [(_at(d, place), _at(a, place)) for d, a in pairs]
    sides = [(d, a) for d, a in sides if d and a]
    if not sides:
        return {"as_published": None, "one_scale": None, "right": None}
    errors = [math.hypot(a["error"], d["error"]) for d, a in sides]
    right = over_seeds([a["nats"] - d["nats"] for d, a in sides], errors)
    sides = [(d, a) for d, a in sides if None not in (d["metric"], a["metric"])]  # the seeds that have it
    if not sides:
        return {"as_published": None, "one_scale": None, "right": right}
    own = [math.hypot(d["metric_error"], a["error"]) for d, a in sides]
    published = over_seeds([a["nats"] - d["metric"] for d, a in sides], own)
    paired = [error for d, a in sides if (error := _paired_error(d, a)) is not None]
    if len(paired) < len(sides):  # for one seed as if the errors were independent, which is too wide
        apart = [math.hypot(d["metric_error"], a["metric_error"]) for d, a in sides]
        paired = apart if len(sides) == 1 else [0.0] * len(sides)
    one = over_seeds([a["metric"] - d["metric"] for d, a in sides], paired)
    return {"as_published": published, "one_scale": one, "right": right}


def exact_advantage(pairs: list[tuple[dict, dict]]) -> Interval | None:
    """Return the autoregressive nats minus the best exact ones of diffusion, on the same test sequences, or None."""
    values, errors = [], []
    for d, a in pairs:
        if not (d.get("table") and a.get("table")):
            continue
        tokens, other = d["table"]["tokens_per_sequence"], a["table"]["tokens_per_sequence"]
        orders = {k: v for k, v in d["table"]["per_sequence"].items() if k != "bound"}
        if tokens != other or len(tokens) < 2 or not orders:
            continue
        total, nats = sum(tokens), a["table"]["per_sequence"]["next token"]
        best = min(orders.values(), key=sum)
        mean = (sum(nats) - sum(best)) / total
        rest = [x - y - mean * n for x, y, n in zip(nats, best, tokens, strict=True)]
        R = len(rest)
        values.append(mean)
        errors.append(math.sqrt(sum(r * r for r in rest) * R / (R - 1)) / total)
    return over_seeds(values, errors) if values else None


def _bytes_per_token(run: dict, place) -> float:
    score = run["summary"]["test" if place == "test" else "valid"]
    return score["nats_per_token"] / math.log(2) / score["bits_per_byte"]


def bits_per_byte(pairs: list[tuple[dict, dict]], place, assumed: float) -> dict[str, Interval | None]:
    """Return the advantages in bits per byte at a place, as `advantages`, and "exact".

    As published, diffusion's bits are divided by `assumed` bytes per token, and the autoregressive model's by the true
    ones; on one scale, both by `assumed`. The text and its bytes are those of all runs.
    """
    sides = [(_at(d, place), _at(a, place)) for d, a in pairs]
    sides = [(d, a) for d, a in sides if d and a]
    if not sides or pairs[0][0]["summary"]["test"]["bits_per_byte"] is None:  # the tokens are not of text
        return dict.fromkeys(("as_published", "one_scale", "right", "exact"))
    true = _bytes_per_token(pairs[0][0], place)

    def of(share: float) -> Interval:  # nats per token of diffusion times share, so that the spread over seeds fits
        values = [a["nats"] - share * d["nats"] for d, a in sides]
        return over_seeds(values, [math.hypot(a["error"], share * d["error"]) for d, a in sides])

    def per_byte(i: Interval | None, size: float) -> Interval | None:
        return i and Interval(*(v / math.log(2) / size for v in (i.mean, i.low, i.high)))

    right, exact = of(1.0), exact_advantage(pairs) if place == "test" else None
    return {"as_published": per_byte(of(true / assumed), true), "one_scale": per_byte(right, assumed),
            "right": per_byte(right, true), "exact": per_byte(exact, true)}  # fmt: skip


def untrained(pairs: list[tuple[dict, dict]], case: dict) -> dict[str, Interval | None]:
    """Return the advantages before training, by the computation of the claim about the test split."""
    main = next(c for c in case["claims"] if c["id"] == "test")
    return bits_per_byte(pairs, 0, main["bytes_per_token"]) if main["kind"] == "bits" else advantages(pairs, 0)


def judge(pairs: list[tuple[dict, dict]], unlike: str = "", case: dict | None = None) -> list[dict]:
    """Return a row for each published claim: {"id", "claim", "published", "as_published", "one_scale", "right", …}.

    Intervals are advantages in nats, or in bits per byte where "kind" is "bits"; "verdict" and "reason" follow RULES.
    unlike: how the sides of pairs differed. case: the contents of a claim file, by default that of TDLM v1.2.
    """
    out = []
    for c in (case or load())["claims"]:
        row = {k: c[k] for k in ("id", "claim", "published", "kind")} | {"claimed": math.log(c.get("ratio", 1.0))}
        if c["kind"] in LOSSES:
            row |= _loss(c, row["claimed"], pairs)
        elif c["kind"] == "time":
            row |= _time(c, row["claimed"], pairs)
        else:
            row |= _tasks(c, pairs)
        if unlike:
            row |= {"verdict": "undecided", "reason": f"the runs were not alike: {unlike}"}
        out.append(row)
    return out


def _loss(c: dict, claimed: float, pairs: list[tuple[dict, dict]]) -> dict:
    """Return the intervals and the verdict of a claim about a loss, or about bits per byte."""
    if c["kind"] == "bits":
        claimed, unit = c["autoregressive"] - c["diffusion"], "bits per byte"
        row = bits_per_byte(pairs, c["at"], c["bytes_per_token"])
    else:
        row, unit = advantages(pairs, c["at"]), "nats"
        row["exact"] = exact_advantage(pairs) if c["at"] == "test" else None
    state, reason = verdict(claimed, row["as_published"], row["right"], row["exact"], unit=unit)
    return row | {"claimed": claimed, "verdict": state, "reason": reason}


def _time(c: dict, claimed: float, pairs: list[tuple[dict, dict]]) -> dict:
    """Return the verdict on the ratio of training times, from its logarithm over seeds."""
    row = {"right": None, "verdict": "undecided"}
    machines = {r["summary"]["device"] for pair in pairs for r in pair}
    comparable = c["program"] == PROGRAM and machines == {c["device"]}
    theirs = f"the published times are of {c['program']} on {c['device']}, and these of {PROGRAM}"
    if not comparable:
        row["verdict"], theirs = "not comparable", f"{theirs} on {' and '.join(sorted(machines))}"
    if len(pairs) < 2 or len(machines) > 1:
        why = "one seed does not show how times spread" if len(pairs) < 2 else "the runs here are of several machines"
        return row | {"reason": why if comparable else f"{theirs}; {why}"}
    ratios = [math.log(d["summary"]["seconds"] / a["summary"]["seconds"]) for d, a in pairs]
    times = over_seeds(ratios, [0.0] * len(pairs))
    low, high = claimed - TIME_MARGIN, claimed + TIME_MARGIN
    outside = times.high < low or times.low > high
    inside = low <= times.low and times.high <= high
    mean, *ends = (f"{math.exp(v):.2f}" for v in (times.mean, times.low, times.high))
    reason = f"diffusion took {mean} [{', '.join(ends)}] times as long as autoregressive"
    if not comparable:
        return row | {"right": times, "reason": f"{theirs}, where {reason}"}
    state = "holds" if inside else "does not hold" if outside else "undecided"
    return {"right": times, "verdict": state, "reason": reason}


def _task(c: dict, pairs: list[tuple[dict, dict]]) -> tuple[list, str]:
    """Return ([(seed, both objectives' figures of a task)], the reason where the list is empty)."""
    name, scores = c["task"], []
    for pair in pairs:
        both = [r["tasks"][name] for r in pair if name in (r.get("tasks") or {})]
        if len(both) < 2:
            continue
        if both[0]["n"] != both[1]["n"] or any(e.get("limit") for e in both):
            return [], f"{name} was not scored whole, on the same questions"
        scores.append((pair[0]["config"]["seed"], both))
    return scores, "" if scores else "not measured: no such result in tasks.json"


def _basis(scores: list) -> str:
    seeds = ", ".join(str(seed) for seed, _ in scores)
    return f"{scores[0][1][0]['n']:,} questions, seed{'s' if len(scores) > 1 else ''} {seeds}"


def _gap(c: dict, pairs: list[tuple[dict, dict]]) -> dict:
    """Return the verdict on the ratio of a set's likelihood gaps: mean log p of wrong endings minus the right one's."""
    scores, why = _task(c, pairs)
    if not scores or any(e.get("gap") is None for _, both in scores for e in both):
        return {"reason": why or "not measured: no gap in tasks.json"}
    logs, errors, means = [], [], []
    for _, both in scores:
        gaps = [(e["gap"], e.get("gap_interval")) for e in both]
        means.append([g for g, _ in gaps])
        if any(interval is None or interval[1] >= 0 for _, interval in gaps):
            logs = None
        elif logs is not None:  # both share the questions, so independent errors are rather too large
            logs.append(math.log(gaps[0][0] / gaps[1][0]))
            errors.append(math.hypot(*((i[1] - i[0]) / 3.92 / g for g, i in gaps)))
    d, a = (sum(column) / len(scores) for column in zip(*means, strict=True))
    words = f"gaps of {d:+.3f} and {a:+.3f} nats, below 0 where the right ending is preferred; {_basis(scores)}"
    if not logs:
        return {"reason": f"the models do not both prefer the right endings: {words}"}
    ratio = over_seeds(logs, errors, shared=True)
    state, _ = verdict(math.log(c["ratio"]), None, ratio)
    mean, *ends = (f"{math.exp(v):.3f}" for v in (ratio.mean, ratio.low, ratio.high))
    reason = f"diffusion's gap is {mean} [{', '.join(ends)}] times the autoregressive model's: {words}"
    return {"verdict": state, "reason": reason}


def _tasks(c: dict, pairs: list[tuple[dict, dict]]) -> dict:
    """Return the verdict on a claim about accuracies or their gap."""
    row = {"right": None, "verdict": "undecided"}
    if c["kind"] == "gap":
        return row | _gap(c, pairs)
    scores, why = _task(c, pairs)
    if not scores:
        return row | {"reason": why}
    words, meet, too_few = [], True, ""
    for i, objective in enumerate(("diffusion", "autoregressive")):
        share = sum(both[i]["acc"] for _, both in scores) / len(scores)
        theirs = wilson(c[objective], c["questions"])
        ours = wilson(share, scores[0][1][i]["n"])  # seeds share questions
        meet &= theirs[0] <= ours[1] and ours[0] <= theirs[1]
        if theirs[1] - theirs[0] > WIDEST:
            too_few = f"{c['questions']} published questions decide nothing: "
        elif ours[1] - ours[0] > WIDEST:
            too_few = too_few or "too few questions: "
        words.append(f"{objective} {100 * share:.1f} % [{100 * ours[0]:.1f}, {100 * ours[1]:.1f}]")
    reason = f"{too_few}{', '.join(words)}; {_basis(scores)}"
    if too_few:
        return row | {"reason": reason}
    return row | {"verdict": "holds" if meet else "does not hold", "reason": reason}


def controls(arms: list[dict], case: dict | None = None) -> list[dict]:
    """Compare every further arm with the first arm of the other objective, on the seeds that both have.

    [{"label", "objective", "seeds", "claims", "first"}]: claims about losses are judged as for the first pair; first is
    the advantage of the first arms on the test split, on those seeds.
    """
    first, out = {}, []
    for arm in arms:
        first.setdefault(arm["objective"], arm)
    for arm in arms if len(first) == 2 else ():
        if arm is first[arm["objective"]]:
            continue
        sides = [arm if o == arm["objective"] else first[o] for o in OBJECTIVES]
        if pairs := pairs_of(sides):
            judged = [c for c in judge(pairs, case=case) if c["kind"] in LOSSES]
            seeds = [d["config"]["seed"] for d, _ in pairs]
            same = [pair for pair in pairs_of(list(first.values())) if pair[0]["config"]["seed"] in seeds]
            about = {"label": arm["label"], "objective": arm["objective"], "seeds": seeds, "claims": judged}
            first_row = next(c for c in judge(same, case=case) if c["id"] == "test") if same else {"right": None}
            out.append(about | {"first": first_row["right"]})
    return out


def headline(arms: list[dict], case: dict | None = None) -> dict | None:
    """Compare the best arm of each objective on the test split, None where no objective has several arms.

    {"arms": {objective: label}, "valid": {label: validation nats}, "seeds", "nats": {objective: test nats}, "claim"}.
    The best arm has the lowest validation loss, a mean over the seeds that all arms of its objective have. claim is the
    row of the test perplexity for the two. None too where arms or the two best share no seed.
    """
    best, valid = {}, {}
    for objective in OBJECTIVES:
        own = [arm for arm in arms if arm["objective"] == objective]
        shared = set.intersection(*({r["config"]["seed"] for r in arm["runs"]} for arm in own)) if own else set()
        for arm in own if shared else ():
            own_runs = (r["evaluations"] for r in arm["runs"] if r["config"]["seed"] in shared)
            losses = [min(e["valid"]["nats_per_token"] for e in evaluations) for evaluations in own_runs]
            valid[arm["label"]] = sum(losses) / len(losses)
        best[objective] = min(own, key=lambda arm: valid[arm["label"]]) if shared else None
    if None in best.values() or len(valid) < 3 or not (pairs := pairs_of(list(best.values()))):
        return None
    tests = ([at["nats"] for r in runs if (at := _at(r, "test"))] for runs in zip(*pairs, strict=True))
    nats = {o: sum(values) / len(values) for o, values in zip(OBJECTIVES, tests, strict=True)}
    claim = next(c for c in judge(pairs, case=case) if c["id"] == "test")
    return {
        "arms": {o: arm["label"] for o, arm in best.items()}, "valid": valid, "nats": nats,
        "seeds": [d["config"]["seed"] for d, _ in pairs], "claim": claim,
    }  # fmt: skip
