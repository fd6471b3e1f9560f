"""Tables of the report, as rows of text, from the figures of a comparison (compare.json)."""

import math

from . import svg
from .figures import NAMES, by_step, first_arms, levels, mean


def times(nats: float) -> str:
    """Return exp(nats) in three figures."""
    return f"{math.exp(min(nats, 700)):#.3g}".rstrip(".")


def ratio(i: dict | None) -> str:
    """Return an advantage in nats as a ratio of perplexities with its interval."""
    if i is None:
        return "–"
    mid, low, high = (times(i[k]) for k in ("mean", "low", "high"))
    return f"{mid}× [{low},\u00a0{high}]"


def nats(i: dict | None) -> str:
    return "–" if i is None else f"{i['mean']:+.3f} [{i['low']:+.3f},\u00a0{i['high']:+.3f}]"


def advantage(i: dict | None, kind: str) -> str:
    """Return an advantage of a claim of that kind: a ratio of perplexities, or a difference in bits per byte."""
    return nats(i) if kind == "bits" else ratio(i)


def main_claim(claims: list[dict]) -> dict:
    """Return the claim about the test split, on which the headline and the control arms are judged."""
    return next(c for c in claims if c["id"] == "test")


def seeds_of(result: dict) -> str:
    return "1 seed" if len(result["seeds"]) == 1 else f"{len(result['seeds'])} seeds"


def claims_table(result: dict) -> list[list[str]]:
    """Return a row for the control before training and for each published claim."""
    head = ["claim", "published", "computed as published", "published metric for both", "on likelihood", "nats"]
    rows = [[*head, "verdict"]]
    zero = result["untrained"]
    if zero:
        kind = main_claim(result["claims"])["kind"]
        cells = [advantage(zero[k], kind) for k in ("as_published", "one_scale", "right")]
        cells += ["–" if kind == "bits" else nats(zero["right"]), "a control, not a claim"]
        rows.append(["Before training (control)", "not reported", *cells])
    for c in result["claims"]:
        values = [c.get(k) if c["kind"] in ("loss", "bits") else None for k in ("as_published", "one_scale", "right")]
        cells = [*(advantage(i, c["kind"]) for i in values), "–" if c["kind"] == "bits" else nats(values[-1])]
        rows.append([c["claim"], c["published"], *cells, f"{c['verdict']}: {c['reason']}{published_weight(result, c)}"])
    return rows


def published_weight(result: dict, claim: dict) -> str:
    """Return what the published computation shows of a control arm trained with the published weight, or ""."""
    for arm in result["controls"] if claim.get("kind", "loss") == "loss" else ():
        other = next((c for c in arm["claims"] if c["id"] == claim["id"]), None)
        if arm["label"] == "diffusion loss_weight=published" and other and other["as_published"]:
            size = math.exp(other["as_published"]["mean"])
            return f" ({size:.2f} times with the published training weight, {seeds_of(arm)})"
    return ""


def control_table(result: dict) -> list[list[str]]:
    """Return the test perplexity with every further arm in place of the main arm of its objective."""
    head = ["arm", "seeds", "test, nats per token", "computed as published", "published metric for both"]
    rows = [[*head, "on likelihood", "nats", "main arms, same seeds", "verdict"]]
    runs = {arm["label"]: arm["runs"] for arm in result["arms"]}
    for arm in result["controls"]:
        claim = main_claim(arm["claims"])
        tests = [r["summary"]["test"] for r in runs[arm["label"]] if r["config"]["seed"] in arm["seeds"]]
        value = f"{'≤ ' if tests[0]['samples'] else ''}{mean(t['nats_per_token'] for t in tests):.3f}"
        cells = [advantage(claim[k], claim["kind"]) for k in ("as_published", "one_scale", "right")]
        seeds = ", ".join(map(str, arm["seeds"]))
        apart = "–" if claim["kind"] == "bits" else nats(claim["right"])
        rows.append([arm["label"], seeds, value, *cells, apart, nats(arm["first"]), claim["verdict"]])
    return rows if len(rows) > 1 else []


def beside_table(result: dict) -> list[list[str]]:
    """Return likelihoods of another publication beside ours, in bits per byte and over the autoregressive ones."""
    other = (result.get("published") or {}).get("beside")
    theirs, ours = other["bits_per_byte"] if other else {}, {}
    for arm in first_arms(result).values():
        for row in next((r["table"]["rows"][1:] for r in arm["runs"] if r["table"]), []):  # the first is of the whole
            ours.setdefault(row["name"], row["bits_per_byte"])
    if "next token" not in theirs or not ours.get("next token"):
        return []
    rows = [["likelihood", "theirs, bits/byte", "over theirs, autoregressive", "ours, bits/byte",
             "over ours, autoregressive"]]  # fmt: skip
    for name in (name for name in theirs if name in ours):
        label = "autoregressive" if name == "next token" else name
        sides = [(side[name], side[name] / side["next token"]) for side in (theirs, ours)]
        rows.append([label, *(cell for bits, share in sides for cell in (f"{bits:.3f}", f"{share:.3f}"))])
    return rows


def _accuracy(entry: dict, key: str = "acc") -> str:
    if entry.get(key) is None:
        return "–"
    low, high = entry[f"{key}_interval"]
    return f"{100 * entry[key]:.1f} [{100 * low:.1f},\u00a0{100 * high:.1f}]"


def _task_runs(result: dict) -> list[tuple[str, dict]]:
    """Return (objective, run) of the first seed of each first arm that has accuracies."""
    both = ((o, next((r for r in arm["runs"] if r["tasks"]), None)) for o, arm in first_arms(result).items())
    return [(o, run) for o, run in both if run]


def task_table(result: dict) -> list[list[str]]:
    """Return the accuracies on the evaluation sets, beside the score of a guess."""
    runs = _task_runs(result)
    rows = [["set", "questions", "run", "acc %", "acc_norm %", "chance %", "shortest %", "gap, nats", "seconds"]]
    for name in dict.fromkeys(name for _, run in runs for name in run["tasks"]):
        for objective, run in runs:
            if e := run["tasks"].get(name):
                guesses = [f"{100 * e[k]:.1f}" if e.get(k) else "–" for k in ("chance", "shortest")]
                gap = "–" if e["gap"] is None else f"{e['gap']:+.3f}"
                cells = [_accuracy(e), _accuracy(e, "acc_norm"), *guesses, gap, f"{e['seconds']:,.0f}"]
                owner = f"{objective}, seed {run['config']['seed']}"
                rows.append([name, f"{e['n']:,}{' (limited)' if e.get('limit') else ''}", owner, *cells])
    return rows if len(rows) > 1 else []


def paradigm_table(result: dict) -> list[list[str]]:
    """Return the accuracy on each of BLiMP's paradigms, ordered by the difference."""
    groups = [(o, run["tasks"]["blimp"]["groups"]) for o, run in _task_runs(result) if "blimp" in run["tasks"]]
    if len(groups) < 2 or groups[0][1].keys() != groups[1][1].keys():
        return []
    (first, d), (second, a) = groups
    rows = [["BLiMP paradigm", "pairs", f"{first}, acc %", f"{second}, acc %", "difference"]]
    for name in sorted(d, key=lambda name: d[name]["acc"] - a[name]["acc"]):
        apart = f"{100 * (d[name]['acc'] - a[name]['acc']):+.1f}"
        rows.append([name, f"{d[name]['n']:,}", _accuracy(d[name]), _accuracy(a[name]), apart])
    return rows


def run_table(result: dict) -> list[list[str]]:
    """Return a row for each run: its test figures, its time, speed and memory."""
    head = ["arm", "seed", "test, nats per token", "test ppl", "bits/byte", "best step", "minutes", "tokens/s"]
    rows = [[*head, "loss tokens/s", "peak MB"]]
    for arm in result["arms"]:
        for r in arm["runs"]:
            s, t = r["summary"], r["summary"]["test"]
            bound = "≤ " if t["samples"] else ""
            error = f" ± {t['stderr']:.3f}" if t["samples"] else ""
            bits = "–" if t["bits_per_byte"] is None else f"{t['bits_per_byte']:.3f}"  # not text
            memory = f"{s['peak_memory_mb']:,.0f}" if s["peak_memory_mb"] else "–"
            rows.append([
                arm["label"], str(r["config"]["seed"]), f"{bound}{t['nats_per_token']:.3f}{error}",
                f"{bound}{t['ppl']:,.1f}", bits, f"{s['best_step']:,}",
                f"{s['seconds'] / 60:.2f}", f"{s['tokens_per_s']:,.0f}", f"{s['loss_tokens_per_s']:,.0f}", memory,
            ])  # fmt: skip
    return rows


def early_table(result: dict) -> list[list[str]]:
    """Return both objectives at every evaluation, on likelihood and by the published metric, as means over seeds."""
    arms = first_arms(result)
    if len(arms) < 2:
        return []
    rows = [["step", "diffusion ≤ nats", "autoregressive nats", "perplexity ratio, on likelihood",
             "diffusion published metric", "autoregressive published metric", "ratio as published"]]  # fmt: skip
    d, a = (by_step(arms[o]) for o in NAMES)
    for step in sorted(d.keys() & a.keys()):
        x, y = (mean(e["valid"]["nats_per_token"] for e in side[step]) for side in (d, a))
        cells = [f"{step:,}", f"{x:.3f}", f"{y:.3f}", f"{times(y - x)}×"]
        if all("published" in e for e in d[step] + a[step]):
            p, q = (mean(e["published"]["reweighted_loss"] for e in side[step]) for side in (d, a))
            cells += [f"{math.exp(p):,.1f}", f"{math.exp(q):,.1f}", f"{times(y - p)}×"]
        else:
            cells += ["–"] * 3
        rows.append(cells)
    return rows


def ledger_table(result: dict) -> list[list[str]]:
    """Return both objectives at equal budgets."""
    rows = [["both stopped at the same", "budget", "diffusion ≤ nats", "autoregressive nats", "diffusion's advantage"]]
    for row in result["ledgers"]:
        cells = [f"{row[o]:.3f}" for o in NAMES]
        rows.append([row["ledger"], svg.number(row["budget"]), *cells, nats(row["difference"])])
    return rows if len(rows) > 1 else []


def level_table(result: dict) -> list[list[str]]:
    """Return thirds of the corruption, from the levels of the test split, or of the last probe without a table."""
    rows = [["arm", "corruption", "loss, nats", "accuracy", "gradient norm", "share of the bound"]]
    for arm in first_arms(result).values():
        probes = [probe for probe in map(levels, arm["runs"]) if probe]
        if not probes:
            continue
        n = len(probes[0]["loss"])
        third = n // 3
        thirds = {"low": range(third), "medium": range(third, n - third), "high": range(n - third, n)}
        for name, part in thirds.items():
            cells = []
            for key, form in (("loss", "{:.3f}"), ("accuracy", "{:.1%}"), ("grad_norm", "{:.3f}")):
                values = [f[key][k] for f in probes for k in part if f[key][k] is not None]
                cells.append(form.format(mean(values)) if values else "–")
            share = mean(sum(f["share"][k] or 0 for k in part) for f in probes)
            span = f"{name}, {100 * part[0] // n}–{100 * (part[-1] + 1) // n} %"
            rows.append([arm["label"], span, *cells, f"{share:.1%}"])
    return rows if len(rows) > 1 else []
