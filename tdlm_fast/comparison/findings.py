"""Sum a comparison up in a paragraph, from its figures (compare.json)."""

import math
from collections import Counter

from .figures import NAMES, first_arms, mean
from .tables import seeds_of


def paragraph(result: dict) -> str:
    """Return the findings in words."""
    arms = first_arms(result)
    if not result["claims"]:
        why = "hold one objective only" if len(arms) < 2 else "have no seed that both objectives were trained with"
        return f"These runs {why}, so the published claims are not judged."
    paired = {o: [r for r in arms[o]["runs"] if r["config"]["seed"] in result["seeds"]] for o in NAMES}
    claims = {c["id"]: c for c in result["claims"]}
    text = [*_headline(result), *_setting(result, paired)]
    if claims["test"]["right"]:
        text += _test(claims["test"], paired)
    zero = result["untrained"]
    if zero and zero["as_published"] and zero["as_published"]["low"] > 0:
        text.append(_untrained(zero, claims["test"]))
    counts = Counter(c["verdict"] for c in result["claims"])
    tally = ", ".join(f"{k} {v}" for k, v in counts.most_common())
    several = f"Of the {len(result['claims'])} published claims: {tally}."
    text.append(several if len(result["claims"]) > 1 else f"The published claim: {result['claims'][0]['verdict']}.")
    return " ".join([*text, *_controls(result, claims["test"]["verdict"])])


def _untrained(zero: dict, claim: dict) -> str:
    """Return a sentence on the published computation before training, by the unit of the claim."""
    values = [zero[k]["mean"] for k in ("as_published", "one_scale", "right")]
    bits = claim["kind"] == "bits"
    published, both, likelihood = (f"{v:+.3f}" if bits else f"{math.exp(v):.2f}" for v in values)
    unit, figure = ("bits per byte", "difference") if bits else ("times", "ratio")
    return (
        f"Before any training the published computation already shows diffusion {published} {unit} better. With "
        f"the published metric for both, the {figure} is {both}; on likelihood it is {likelihood}."
    )


def _unit(claim: dict) -> str:
    return "bits per byte" if claim["kind"] == "bits" else "nats"


def _setting(result: dict, paired: dict[str, list[dict]]) -> list[str]:
    """Return sentences on what was trained, and in what it departs from the published experiment."""
    run = paired["diffusion"][0]["summary"]
    odd = [line for line in result["alike"] if "DIFFERENT" in line]
    recorded = " as far as was recorded (see below)" if "not recorded" in " ".join(result["alike"]) else ""
    steps = list(dict.fromkeys(f"{r['summary']['steps']:,}" for runs in paired.values() for r in runs))
    text = [
        f"Both objectives were trained for {' and '.join(steps)} steps on {run['corpus']} with "
        f"{run['parameters']:,} parameters and {seeds_of(result)}, "
        + ("NOT alike: " + "; ".join(odd) + "." if odd else f"alike in everything but the objective{recorded}.")
    ]
    if result["departures"]:
        text.append(f"This is not the published experiment: {'; '.join(result['departures'])}.")
    return [*text, f"Note: {run['note']}."] if run["note"] else text


def _headline(result: dict) -> list[str]:
    """Return a sentence on the best arm of each objective, where one has several arms."""
    if not (best := result.get("headline")):
        return []
    right, nats = best["claim"]["right"], best["nats"]
    unit = " bits per byte" if best["claim"].get("kind") == "bits" else ""
    return [
        f"Of {len(best['valid'])} arms, the best of each objective on validation are {best['arms']['diffusion']} and "
        f"{best['arms']['autoregressive']}: on the test split at most {nats['diffusion']:.3f} and exactly "
        f"{nats['autoregressive']:.3f} nats per token, a difference of {right['mean']:+.3f} [{right['low']:+.3f}, "
        f"{right['high']:+.3f}]{unit} ({seeds_of(best)}). The claims are judged on the pair whose settings are alike."
    ]


def _test(claim: dict, paired: dict[str, list[dict]]) -> list[str]:
    """Return sentences on the test split: the bound, the best exact likelihood, and the unigram baseline."""
    test, exact, values = claim["right"], claim.get("exact"), {}
    for o in NAMES:
        tests = [r["table"]["rows"][0] if r["table"] else r["summary"]["test"] for r in paired[o]]
        values[o] = mean(t["nats_per_token"] for t in tests)
    d, a = values.values()
    side = "diffusion is ahead" if test["low"] > 0 else "diffusion's bound is behind" if test["high"] < 0 else None
    text = [
        f"On the test split diffusion's upper bound is {d:.3f} nats per token (perplexity at most "
        f"{math.exp(d):,.1f}), and the autoregressive model's exact value is {a:.3f} ({math.exp(a):,.1f}): "
        + (
            f"{side} by {abs(test['mean']):.3f} {_unit(claim)}."
            if side
            else "the interval of the difference contains 0."
        )
    ]
    if exact:
        side = "ahead of" if exact["low"] > 0 else "behind" if exact["high"] < 0 else None
        apart = f"{abs(exact['mean']):.3f} {_unit(claim)} {side}" if side else "not clearly different from"
        text.append(
            f"The best exact likelihood of the diffusion model is {apart} the autoregressive one on the same test "
            f"sequences [{exact['low']:+.3f}, {exact['high']:+.3f}]."
        )
    table = paired["diffusion"][0]["table"]
    for base in [r["nats_per_token"] for r in table["rows"] if r["name"] == "unigram baseline"] if table else []:
        sides = (f"{o} is {abs(base - v):.3f} {'below' if v < base else 'above'} it" for o, v in values.items())
        text.append(f"A unigram model scores {base:.3f}; {' and '.join(sides)}.")
    return text


def _controls(result: dict, verdict: str) -> list[str]:
    """Return a sentence on the test perplexity with each control arm, where there are any."""
    tests = [(arm["label"], next(c for c in arm["claims"] if c["id"] == "test")) for arm in result["controls"]]
    if not tests:
        return []
    other = [label for label, c in tests if c["verdict"] != verdict]
    low, high = (end(c["right"]["mean"] for _, c in tests) for end in (min, max))
    return [
        f"With one of {len(tests)} control arms in place of a main arm, diffusion's advantage is {low:+.3f} to "
        f"{high:+.3f} {_unit(tests[0][1])}, and the verdict on the test perplexity "
        + (f"changes with {', '.join(other)}." if other else "stays the same.")
    ]
