"""The published claims against a comparison: one row each, every verdict computed from intervals by the rules below.

An advantage is diffusion's, in nats per token: ln(perplexity of autoregressive / perplexity of diffusion). Each claim
about a loss is computed three ways on the same tokens:

    as published   next-token's exact nats minus diffusion's reweighted loss, which are on two scales
    one scale      the published metric of both, on the same draws
    right metric   next-token's exact nats minus diffusion's bound

Its 95 % interval is Student's t over seeds (same seed: same weights, same batches), no narrower than the estimates' own
errors; with one seed it is the estimates' own error and ONE_SEED nats to either side, for the seeds that were not run.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from .likelihood import t_975

ONE_SEED = 0.05  # nats; a stand-in for the spread over seeds where one seed cannot show it
TIME_MARGIN = math.log(1.1)  # training times are alike within 10 %
ONE_SEED_TIME = 0.03  # a stand-in for the spread of training times

RULES = (
    "holds: under the right metric the whole interval is above 0 and reaches the claimed size.",
    "an artefact of the metric: computed as published the whole interval is above 0, under the right metric it is "
    "below 0, and no exact likelihood of the diffusion model, where one was computed, may reach next-token's.",
    "does not hold: the whole interval under the right metric is below 0 and the published computation does not show "
    "the advantage either, or was not made; or it is above 0 but does not reach the claimed size.",
    "undecided: anything else, and whatever was not measured.",
    "accuracies hold where the published figure of both objectives lies in their 95 % (Wilson) intervals.",
    "training time holds where the whole interval of the ratio is within 10 % of the published one, does not hold "
    "where all of it is outside.",
    f"with one seed, {ONE_SEED} nats to either side stand in for the spread over seeds, {ONE_SEED_TIME:.0%} for time.",
)


@dataclass(frozen=True)
class Interval:
    mean: float
    low: float
    high: float


def over_seeds(values: list[float], errors: list[float], one_seed: float = ONE_SEED, *, shared=False) -> Interval:
    """95 % interval of the mean of one value a seed with their standard errors of estimation.

    shared: the errors are those of one sample that all seeds were measured on (the questions of a set), so more seeds
    do not average them out.
    """
    n, mean = len(values), sum(values) / len(values)
    own = 1.96 * (sum(errors) if shared else math.sqrt(sum(e * e for e in errors))) / n
    if n == 1:
        half = own + one_seed
    else:
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
        half = max(own, t_975(n - 1) * spread / math.sqrt(n))
    return Interval(mean, mean - half, mean + half)


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share seen in n trials (Wilson 1927)."""
    z = 1.96
    centre, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, (centre - half) / (1 + z * z / n)), min(1.0, (centre + half) / (1 + z * z / n))


def verdict(claimed: float, published: Interval | None, right: Interval | None, exact: Interval | None = None):
    """(verdict, reason) of a claim of that advantage in nats; exact: the best exact likelihood against next-token."""
    if right is None:
        return "undecided", "not measured"
    if right.low > 0:
        if right.high >= claimed:
            return "holds", "diffusion is ahead under the right metric, by the claimed size or more"
        return "does not hold", f"diffusion is ahead, but by {right.mean:.3f} nats, not {claimed:.3f}"
    if right.high >= 0:
        return "undecided", "the interval under the right metric holds 0"
    if exact is not None and exact.high >= 0:
        return "undecided", "the bound is behind, but an exact likelihood of the diffusion model may not be"
    if published is not None and published.low > 0:
        return "an artefact of the metric", "the published computation shows it, the right metric shows the opposite"
    return "does not hold", "diffusion is behind under the right metric"


def load() -> dict:
    return json.loads((Path(__file__).parent / "claims.json").read_text(encoding="utf-8"))


def _at(run: dict, where) -> dict | None:
    """{"nats", "error", "metric", "metric_error"} of a run at a step, at its best, or on the test split."""
    if where == "test":
        if run.get("table") is None:
            found = run["summary"].get("test")
            return found and {"nats": found["nats_per_token"], "error": found["stderr"]} | _metric(None)
        right, metric = run["table"]["rows"][0], run["table"]["published"]
        error = (right["high"] - right["low"]) / 2 / 1.96
        return {"nats": right["nats_per_token"], "error": error} | _metric(metric)
    entries = run["evaluations"]
    if where == "best":
        best = min(entries, key=lambda e: e["valid"]["nats_per_token"])
        seen = [e["published"] for e in entries if "published" in e]
        metric = min(seen, key=lambda p: p["reweighted_loss"]) if seen else None  # as published: the smallest draw
    else:
        best = next((e for e in entries if e["step"] == where), None)
        metric = best.get("published") if best else None
    if best is None:
        return None
    return {"nats": best["valid"]["nats_per_token"], "error": best["valid"]["stderr"]} | _metric(metric)


def _metric(p: dict | None) -> dict:
    if p is None:
        return {"metric": None, "metric_error": 0.0, "draws": []}
    return {"metric": p["reweighted_loss"], "metric_error": p["stderr"], "draws": p["each"]}


def _paired_error(d: dict, a: dict) -> float:
    """Standard error of a difference of published metrics: draw by draw, since both sides share them."""
    if len(d["draws"]) == len(a["draws"]) > 1:
        each = [y - x for x, y in zip(d["draws"], a["draws"], strict=True)]
        mean = sum(each) / len(each)
        return math.sqrt(sum((e - mean) ** 2 for e in each) / (len(each) - 1) / len(each))
    return math.hypot(d["metric_error"], a["metric_error"])  # one draw: as if they were apart, which is too much


def advantages(pairs: list[tuple[dict, dict]], where) -> dict[str, Interval | None]:
    """{"as_published", "one_scale", "right"} at a place, over pairs (diffusion run, autoregressive run) of one seed."""
    found = [(_at(d, where), _at(a, where)) for d, a in pairs]
    found = [(d, a) for d, a in found if d and a]
    if not found:
        return {"as_published": None, "one_scale": None, "right": None}
    right = over_seeds(
        [a["nats"] - d["nats"] for d, a in found], [math.hypot(a["error"], d["error"]) for d, a in found]
    )
    if any(d["metric"] is None or a["metric"] is None for d, a in found):
        return {"as_published": None, "one_scale": None, "right": right}
    own = [math.hypot(d["metric_error"], a["error"]) for d, a in found]
    published = over_seeds([a["nats"] - d["metric"] for d, a in found], own)
    one = over_seeds([a["metric"] - d["metric"] for d, a in found], [_paired_error(d, a) for d, a in found])
    return {"as_published": published, "one_scale": one, "right": right}


def exact_advantage(pairs: list[tuple[dict, dict]]) -> Interval | None:
    """Next-token's nats minus the best exact likelihood of diffusion, on the same test sequences; None if not there."""
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


def _accuracy(run: dict, task: str) -> tuple[float, int] | None:
    entry = (run.get("tasks") or {}).get(task)
    if not isinstance(entry, dict):
        return None
    share = next((entry[k] for k in ("acc", "accuracy") if k in entry), None)
    n = next((entry[k] for k in ("n", "examples", "questions") if k in entry), None)
    return None if share is None or not n else (float(share), int(n))


def judge(pairs: list[tuple[dict, dict]]) -> list[dict]:
    """A row for each published claim: {"id", "claim", "published", "as_published", "one_scale", "right", …}.

    Intervals are advantages in nats; "verdict" and "reason" follow RULES. pairs as in advantages.
    """
    out = []
    for c in load()["claims"]:
        row = {k: c[k] for k in ("id", "claim", "published", "kind")} | {"claimed": math.log(c.get("ratio", 1.0))}
        if c["kind"] == "loss":
            row |= advantages(pairs, c["at"])
            exact = row["exact"] = exact_advantage(pairs) if c["at"] == "test" else None
            row["verdict"], row["reason"] = verdict(row["claimed"], row["as_published"], row["right"], exact)
        elif c["kind"] == "time":
            ratios = [math.log(d["summary"]["seconds"] / a["summary"]["seconds"]) for d, a in pairs]
            found = row["right"] = over_seeds(ratios, [0.0] * len(ratios), ONE_SEED_TIME) if ratios else None
            row["verdict"], row["reason"] = "undecided", "not measured"
            if found:
                low, high = row["claimed"] - TIME_MARGIN, row["claimed"] + TIME_MARGIN
                outside = found.high < low or found.low > high
                inside = low <= found.low and found.high <= high
                row["verdict"] = "holds" if inside else "does not hold" if outside else "undecided"
                row["reason"] = f"diffusion took {math.exp(found.mean):.2f} times as long on this machine"
        else:
            row |= _tasks(c, pairs)
        out.append(row)
    return out


def _gap(pairs: list[tuple[dict, dict]]) -> dict:
    """Verdict on the ratio of HellaSwag's likelihood gaps (mean of the wrong endings' log p minus the right one's)."""
    values, errors = [], []
    for pair in pairs:
        found = [(r.get("tasks") or {}).get("hellaswag", {}) for r in pair]
        if any(f.get("gap") is None or not f.get("gap_interval") for f in found):
            continue
        (d, sd), (a, sa) = ((f["gap"], (f["gap_interval"][1] - f["gap_interval"][0]) / 3.92) for f in found)
        if abs(a) < 1.96 * sa:
            return {"reason": f"next-token's gap, {a:.3f}, is not told from 0, so no ratio to it is"}
        values.append(d / a)
        errors.append(math.hypot(sd, d / a * sa) / abs(a))
    if not values:
        return {}
    found = over_seeds(values, errors, shared=True)
    state = "holds" if found.low > 1 else "does not hold" if found.high < 1 else "undecided"
    words = f"diffusion's gap is {found.mean:.3f} [{found.low:.3f}, {found.high:.3f}] times next-token's"
    return {"verdict": state, "reason": words}


def _tasks(c: dict, pairs: list[tuple[dict, dict]]) -> dict:
    missing = {"right": None, "verdict": "undecided", "reason": "not measured: no such result in tasks.json"}
    if c["kind"] == "gap":
        return missing | _gap(pairs)
    seen = [[_accuracy(r, c["task"]) for r in pair] for pair in pairs]
    seen = [p for p in seen if None not in p]
    if not seen:
        return missing
    words, inside = [], True
    for i, objective in enumerate(("diffusion", "autoregressive")):
        share = sum(p[i][0] for p in seen) / len(seen)
        low, high = wilson(share, min(p[i][1] for p in seen))  # every seed answers the same questions
        inside &= low <= c[objective] <= high
        words.append(f"{objective} {100 * share:.1f} % [{100 * low:.1f}, {100 * high:.1f}]")
    return {"right": None, "verdict": "holds" if inside else "does not hold", "reason": ", ".join(words)}
