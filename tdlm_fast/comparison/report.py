"""The report of a comparison, from its figures alone: report.html (self-contained), report.md and figures/*.svg.

Both texts come from one list of blocks, so they say the same. Nothing is fetched when the page opens: charts are inline
SVG (svg.py), there is no script and no font.
"""

import math
import re
from html import escape
from pathlib import Path

from ..evaluation.table import lines
from . import svg
from .figures import NAMES, by_step, curve_charts, diagnostic_charts, first_arms, levels, mean

STYLE = """
:root{color-scheme:light dark;--ink:#1f2328;--soft:#656d76;--rule:#d8dee4;--page:#fff;--card:#f6f8fa;--good:#116329;
--bad:#a40e26;--odd:#8a4600;--none:#57606a}
@media (prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9198a1;--rule:#30363d;--page:#0d1117;--card:#161b22;
--good:#56d364;--bad:#ff7b72;--odd:#e3a04f;--none:#9198a1}}
*{box-sizing:border-box}body{margin:0 auto;padding:20px 16px 60px;max-width:1320px;background:var(--page);
color:var(--ink);font:15px/1.5 system-ui,-apple-system,Segoe UI,sans-serif}
h1{font-size:1.5rem;margin:.2em 0}
h2{font-size:1.15rem;margin:2em 0 .5em;padding-top:.6em;border-top:1px solid var(--rule)}
p{max-width:85ch;margin:.6em 0}p.note,li{color:var(--soft);font-size:.9rem}li{max-width:85ch}ul{padding-left:1.2em}
.scroll{overflow-x:auto;margin-bottom:14px}table{border-collapse:collapse;width:100%;font-size:.9rem}
th,td{text-align:left;padding:.45em .7em .45em 0;border-bottom:1px solid var(--rule);vertical-align:top}
th{color:var(--soft);font-weight:600;font-size:.8rem}td{font-variant-numeric:tabular-nums}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,380px),1fr));gap:14px}
figure{margin:0;padding:10px;background:var(--card);border:1px solid var(--rule);border-radius:6px}
svg{width:100%;height:auto;display:block}
.v{font-weight:600;white-space:nowrap}.v.holds{color:var(--good)}.v.does{color:var(--bad)}.v.an{color:var(--odd)}
.v.undecided{color:var(--none)}nav{font-size:.85rem;color:var(--soft)}a{color:inherit}
summary{cursor:pointer;margin:.6em 0;color:var(--soft)}.why{color:var(--soft);font-size:.85rem}
@media (max-width:760px){table.cards thead{display:none}table.cards tr{display:block;padding:.7em 0;
border-bottom:1px solid var(--rule)}table.cards td{display:grid;grid-template-columns:8.5em 1fr;gap:.5em;border:0;
padding:.12em 0}table.cards td::before{content:attr(data-label);color:var(--soft);font-size:.8rem}
table.cards td:first-child{display:block;font-weight:600}table.cards td:first-child::before{content:none}
table.cards td.none{display:none}.v{white-space:normal}}
"""


def times(nats: float) -> str:
    """exp(nats) in three figures."""
    return f"{math.exp(min(nats, 700)):#.3g}".rstrip(".")


def ratio(i: dict | None) -> str:
    """An advantage in nats as a ratio of perplexities with its interval."""
    if i is None:
        return "–"
    mid, low, high = (times(i[k]) for k in ("mean", "low", "high"))
    return f"{mid}× [{low},\u00a0{high}]"


def nats(i: dict | None) -> str:
    return "–" if i is None else f"{i['mean']:+.3f} [{i['low']:+.3f},\u00a0{i['high']:+.3f}]"


def seeds_of(result: dict) -> str:
    return "1 seed" if len(result["seeds"]) == 1 else f"{len(result['seeds'])} seeds"


def paragraph(result: dict) -> str:
    """What was found, in words, from the figures."""
    arms = first_arms(result)
    if not result["claims"]:
        why = "hold one objective only" if len(arms) < 2 else "have no seed that both objectives were trained with"
        return f"These runs {why}, so the published claims are not judged."
    paired = {o: [r for r in arms[o]["runs"] if r["config"]["seed"] in result["seeds"]] for o in NAMES}
    run = paired["diffusion"][0]
    odd = [line for line in result["alike"] if "DIFFERENT" in line]
    silent = " as far as was recorded (see below)" if "not recorded" in " ".join(result["alike"]) else ""
    claims = {c["id"]: c for c in result["claims"]}
    test = claims["test"]["right"]
    steps = list(dict.fromkeys(f"{r['summary']['steps']:,}" for o in NAMES for r in paired[o]))
    text = [
        f"Both objectives were trained for {' and '.join(steps)} steps on {run['summary']['corpus']} with "
        f"{run['summary']['parameters']:,} parameters and {seeds_of(result)}, "
        + ("NOT alike: " + "; ".join(odd) + "." if odd else f"alike in everything but the objective{silent}.")
    ]
    if result["departures"]:
        text.append(f"This is not the published experiment: {'; '.join(result['departures'])}.")
    if run["summary"]["note"]:
        text.append(f"Note: {run['summary']['note']}.")
    if test:
        values = []
        for o in NAMES:
            tests = [r["table"]["rows"][0] if r["table"] else r["summary"]["test"] for r in paired[o]]
            values.append(mean(t["nats_per_token"] for t in tests))
        side = "diffusion is ahead" if test["low"] > 0 else "diffusion's bound is behind" if test["high"] < 0 else None
        text.append(
            f"On the test split diffusion's upper bound is {values[0]:.3f} nats per token (perplexity at most "
            f"{math.exp(values[0]):,.1f}) and autoregressive's exact value {values[1]:.3f} "
            f"({math.exp(values[1]):,.1f}): "
            + (f"{side} by {abs(test['mean']):.3f} nats." if side else "the interval of the difference holds 0.")
        )
        exact = claims["test"].get("exact")
        if exact:
            side = "ahead of" if exact["low"] > 0 else "behind" if exact["high"] < 0 else None
            text.append(
                "The best exact likelihood of the diffusion model is "
                + (f"{abs(exact['mean']):.3f} nats {side}" if side else "not told from that of")
                + f" autoregressive on the same test sequences [{exact['low']:+.3f}, {exact['high']:+.3f}]."
            )
        rows = run["table"]["rows"] if run["table"] else []
        for base in [r["nats_per_token"] for r in rows if r["name"] == "unigram baseline"]:
            text.append(
                f"A unigram model scores {base:.3f}; " + " and ".join(
                    f"{NAMES[o].lower()} is {abs(base - v):.3f} {'below' if v < base else 'above'} it"
                    for o, v in zip(NAMES, values, strict=True)
                ) + "."
            )  # fmt: skip
    zero = result["untrained"]
    if zero and zero["as_published"] and zero["as_published"]["low"] > 0:
        text.append(
            f"Before any training the published computation already shows diffusion "
            f"{math.exp(zero['as_published']['mean']):.2f} times better. With the published metric for both, the ratio "
            f"is {math.exp(zero['one_scale']['mean']):.2f}; on likelihood it is {math.exp(zero['right']['mean']):.2f}."
        )
    counts: dict[str, int] = {}
    for c in result["claims"]:
        counts[c["verdict"]] = counts.get(c["verdict"], 0) + 1
    tally = ", ".join(f"{k} {v}" for k, v in sorted(counts.items(), key=lambda kv: -kv[1]))
    text.append(f"Of the {len(result['claims'])} published claims: {tally}.")
    tests = [next(c for c in arm["claims"] if c["id"] == "test") for arm in result["controls"]]
    if tests:
        other = [arm["label"] for c, arm in zip(tests, result["controls"], strict=True)
                 if c["verdict"] != claims["test"]["verdict"]]  # fmt: skip
        low, high = (end(c["right"]["mean"] for c in tests) for end in (min, max))
        text.append(
            f"With one of {len(tests)} control arms in place of a main arm, diffusion's advantage is {low:+.3f} to "
            f"{high:+.3f} nats, and the verdict on the test perplexity "
            + (f"changes with {', '.join(other)}." if other else "stays the same.")
        )
    return " ".join(text)


def claims_table(result: dict) -> list[list[str]]:
    head = ["claim", "published", "computed as published", "published metric for both", "on likelihood", "nats"]
    rows = [[*head, "verdict"]]
    zero = result["untrained"]
    if zero:
        cells = [ratio(zero[k]) for k in ("as_published", "one_scale", "right")]
        rows.append(["Before training (control)", "not reported", *cells, nats(zero["right"]), "a control, no claim"])
    for c in result["claims"]:
        found = {k: c.get(k) if c["kind"] == "loss" else None for k in ("as_published", "one_scale", "right")}
        cells = [*map(ratio, found.values()), nats(found["right"])]
        rows.append([c["claim"], c["published"], *cells, f"{c['verdict']}: {c['reason']}"])
    return rows


def control_table(result: dict) -> list[list[str]]:
    """The test perplexity with every further arm in place of the first one of its objective."""
    head = ["arm", "seeds", "test, nats per token", "computed as published", "published metric for both"]
    rows = [[*head, "on likelihood", "nats", "main arms, same seeds", "verdict"]]
    runs = {arm["label"]: arm["runs"] for arm in result["arms"]}
    for arm in result["controls"]:
        found = next(c for c in arm["claims"] if c["id"] == "test")
        tests = [r["summary"]["test"] for r in runs[arm["label"]] if r["config"]["seed"] in arm["seeds"]]
        value = f"{'≤ ' if tests[0]['samples'] else ''}{mean(t['nats_per_token'] for t in tests):.3f}"
        cells = [ratio(found[k]) for k in ("as_published", "one_scale", "right")]
        seeds = ", ".join(map(str, arm["seeds"]))
        rows.append([arm["label"], seeds, value, *cells, nats(found["right"]), nats(arm["first"]), found["verdict"]])
    return rows if len(rows) > 1 else []


def _accuracy(entry: dict, key: str = "acc") -> str:
    if entry.get(key) is None:
        return "–"
    low, high = entry[f"{key}_interval"]
    return f"{100 * entry[key]:.1f} [{100 * low:.1f},\u00a0{100 * high:.1f}]"


def task_runs(result: dict) -> list[tuple[str, dict]]:
    """(objective, run) of the first seed of each first arm that has accuracies."""
    both = ((o, next((r for r in arm["runs"] if r["tasks"]), None)) for o, arm in first_arms(result).items())
    return [(o, run) for o, run in both if run]


def task_table(result: dict) -> list[list[str]]:
    """Accuracies on the evaluation sets, beside what a guess scores."""
    found = task_runs(result)
    rows = [["set", "questions", "run", "acc %", "acc_norm %", "chance %", "shortest %", "gap, nats", "seconds"]]
    for name in dict.fromkeys(name for _, run in found for name in run["tasks"]):
        for objective, run in found:
            if e := run["tasks"].get(name):
                levels = [f"{100 * e[k]:.1f}" if e.get(k) else "–" for k in ("chance", "shortest")]
                gap = "–" if e["gap"] is None else f"{e['gap']:+.3f}"
                cells = [_accuracy(e), _accuracy(e, "acc_norm"), *levels, gap, f"{e['seconds']:,.0f}"]
                whose = f"{objective}, seed {run['config']['seed']}"
                rows.append([name, f"{e['n']:,}{' (limited)' if e.get('limit') else ''}", whose, *cells])
    return rows if len(rows) > 1 else []


def paradigm_table(result: dict) -> list[list[str]]:
    """Accuracy on each of BLiMP's paradigms, in the order of the difference."""
    found = [(o, run["tasks"]["blimp"]["groups"]) for o, run in task_runs(result) if "blimp" in run["tasks"]]
    if len(found) < 2 or found[0][1].keys() != found[1][1].keys():
        return []
    (first, d), (second, a) = found
    rows = [["BLiMP paradigm", "pairs", f"{first}, acc %", f"{second}, acc %", "difference"]]
    for name in sorted(d, key=lambda name: d[name]["acc"] - a[name]["acc"]):
        apart = f"{100 * (d[name]['acc'] - a[name]['acc']):+.1f}"
        rows.append([name, f"{d[name]['n']:,}", _accuracy(d[name]), _accuracy(a[name]), apart])
    return rows


def run_table(result: dict) -> list[list[str]]:
    head = ["arm", "seed", "test, nats per token", "test ppl", "bits/byte", "best step", "minutes", "tokens/s"]
    rows = [[*head, "loss tokens/s", "peak MB"]]
    for arm in result["arms"]:
        for r in arm["runs"]:
            s, t = r["summary"], r["summary"]["test"]
            bound = "≤ " if t["samples"] else ""
            error = f" ± {t['stderr']:.3f}" if t["samples"] else ""
            memory = f"{s['peak_memory_mb']:,.0f}" if s["peak_memory_mb"] else "–"
            rows.append([
                arm["label"], str(r["config"]["seed"]), f"{bound}{t['nats_per_token']:.3f}{error}",
                f"{bound}{t['ppl']:,.1f}", f"{t['bits_per_byte']:.3f}", f"{s['best_step']:,}",
                f"{s['seconds'] / 60:.2f}", f"{s['tokens_per_s']:,.0f}", f"{s['loss_tokens_per_s']:,.0f}", memory,
            ])  # fmt: skip
    return rows


def early_table(result: dict) -> list[list[str]]:
    """Both objectives at every evaluation: likelihood and published metric, means over seeds."""
    arms = first_arms(result)
    if len(arms) < 2:
        return []
    rows = [["step", "diffusion ≤ nats", "autoregressive nats", "perplexity ratio, on likelihood",
             "diffusion published metric", "autoregressive published metric", "ratio as published"]]  # fmt: skip
    d, a = (by_step(arms[o]) for o in NAMES)
    for step in sorted(d.keys() & a.keys()):
        x, y = (mean(e["valid"]["nats_per_token"] for e in found[step]) for found in (d, a))
        cells = [f"{step:,}", f"{x:.3f}", f"{y:.3f}", f"{times(y - x)}×"]
        if all("published" in e for e in d[step] + a[step]):
            p, q = (mean(e["published"]["reweighted_loss"] for e in found[step]) for found in (d, a))
            cells += [f"{math.exp(p):,.1f}", f"{math.exp(q):,.1f}", f"{times(y - p)}×"]
        else:
            cells += ["–"] * 3
        rows.append(cells)
    return rows


def ledger_table(result: dict) -> list[list[str]]:
    rows = [["both stopped at the same", "budget", "diffusion ≤ nats", "autoregressive nats", "diffusion's advantage"]]
    for row in result["ledgers"]:
        cells = [f"{row[o]:.3f}" for o in NAMES]
        rows.append([row["ledger"], svg.number(row["budget"]), *cells, nats(row["difference"])])
    return rows if len(rows) > 1 else []


def level_table(result: dict) -> list[list[str]]:
    """Thirds of the corruption: the levels of the test split, or of the last probe where there is no table."""
    rows = [["arm", "corruption", "loss, nats", "accuracy", "gradient norm", "share of the bound"]]
    for arm in first_arms(result).values():
        found = [levels(r) for r in arm["runs"]]
        found = [f for f in found if f]
        if not found:
            continue
        n = len(found[0]["loss"])
        third = n // 3
        thirds = {"low": range(third), "medium": range(third, n - third), "high": range(n - third, n)}
        for name, part in thirds.items():
            cells = []
            for key, form in (("loss", "{:.3f}"), ("accuracy", "{:.1%}"), ("grad_norm", "{:.3f}")):
                seen = [f[key][k] for f in found for k in part if f[key][k] is not None]
                cells.append(form.format(mean(seen)) if seen else "–")
            share = mean(sum(f["share"][k] or 0 for k in part) for f in found)
            rows.append(
                [arm["label"], f"{name}, {100 * part[0] // n}–{100 * (part[-1] + 1) // n} %", *cells, f"{share:.1%}"]
            )
    return rows if len(rows) > 1 else []


def blocks(result: dict) -> list[tuple]:
    """("h" or "p" or "note", text) · ("list", texts) · ("table", rows, cards?) · ("fold", title, rows) · ("charts",
    {name: svg})."""
    out: list[tuple] = [("p", paragraph(result))]
    if result["claims"]:
        out.append(("h", "The published claims"))
        out += [
            ("table", claims_table(result), True),
            ("note", "Ratios of perplexities, above 1 where diffusion is better, with 95 % intervals over "
             f"{seeds_of(result)}; “nats” is the advantage on likelihood. Computed as published: the "
             "published metric of diffusion against the exact perplexity of the autoregressive model. Published metric "
             "for both: on the same draws. On likelihood: diffusion's upper bound against the exact value, so a ratio "
             "below 1 may overstate how far diffusion is behind."),
            ("note", "Rules of the verdicts:"), ("list", result["rules"]),
        ]  # fmt: skip
    if control := control_table(result):
        out += [("h", "Control arms"), ("table", control, True),
                ("note", "The test perplexity again, with a control arm in place of the main arm of its objective, "
                 "against the main arm of the other, on the seeds that both have.")]  # fmt: skip
    out += [("h", "Curves"), ("charts", curve_charts(result))]
    out += [("note", "Bands: lowest and highest seed. Step 0 is drawn where 1 is. By time, only the main arm of "
             "each objective: others may have been trained on another machine or beside other work. Training losses "
             "only of arms with the main arm's weight: losses of different weights have no common scale.")]  # fmt: skip
    out += [("h", "Runs"), ("table", run_table(result), False)]
    machines = {arm["label"]: {r["summary"]["device"] for r in arm["runs"]} for arm in result["arms"]}
    usual = next(iter(machines.values()))
    if other := [label for label, found in machines.items() if found != usual]:
        out += [("note", f"On another kind of machine (listed below), so minutes do not compare: {'; '.join(other)}.")]
    if early := early_table(result):
        out += [("h", "Every evaluation"), ("table", early, False)]
    for arm in first_arms(result).values():
        tables = [r["table"] for r in arm["runs"] if r["table"]]
        if tables:
            out += [("h", f"Likelihoods: {arm['label']}, first seed"), ("table", lines(tables[0]), True)]
    if any(r["table"] for arm in result["arms"] for r in arm["runs"]):
        out.append(("note", "95 % intervals: of the estimate where all sequences are scored, over sequences where some "
                    "are. The exact orders reveal one token a step, left to right or the most certain first (DUEL, "
                    "arXiv 2603.01367)."))  # fmt: skip
    if tasks := task_table(result):
        out += [("h", "Evaluation sets"), ("table", tasks, False),
                ("note", "95 % intervals over the questions. chance: guessing; shortest: always the ending of the "
                 "fewest tokens. gap: mean log-likelihood of the wrong endings minus the right one's; below 0 the "
                 "right one is preferred. Diffusion's accuracies are those of its conditional bound.")]  # fmt: skip
        if paradigms := paradigm_table(result):
            out += [("fold", "BLiMP, paradigm by paradigm", paradigms)]
    if ledger := ledger_table(result):
        out += [("h", "At equal budgets"), ("table", ledger, True),
                ("note", "Validation nats per token on straight lines between evaluations, with 95 % intervals as "
                 "above; learning rates are those of the whole runs. FLOPs: 6 per parameter of the blocks and place, "
                 "12 L D T for attention, 6 D V per token that bears loss.")]  # fmt: skip
    if level := level_table(result):
        out += [("h", "Diagnostics"), ("table", level, True)]
    else:
        out += [("h", "Diagnostics")]
    out += [
        ("charts", diagnostic_charts(result)),
        ("note", "Noise level of a masked token: the share of its sequence that is masked; of a next token: the share "
         "that comes after it or is it. Gradient norms are from a backward pass for each level on a fixed probe "
         "batch."),
    ]  # fmt: skip
    if result["alike"]:
        out += [("h", "What was alike"), ("list", result["alike"])]
    kinds = {f"{r['summary']['device']}, torch {r['summary']['versions']['torch']}: {arm['label']}"
             for arm in result["arms"] for r in arm["runs"]}  # fmt: skip
    return [*out, ("h", "Machines"), ("list", sorted(kinds))]


def _html_table(rows: list[list[str]], cards: bool) -> str:
    head = "".join(f"<th>{escape(c)}</th>" for c in rows[0])
    body = []
    for row in rows[1:]:
        cells = []
        for name, text in zip(rows[0], row, strict=True):
            inner = escape(text)
            if name == "verdict":
                what, _, why = inner.partition(": ")
                inner = f'<span><span class="v {what.split()[0]}">{what}</span> <span class="why">{why}</span></span>'
            blank = ' class="none"' if text == "–" else ""
            cells.append(f'<td{blank} data-label="{escape(name)}">{inner}</td>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    kind = ' class="cards"' if cards else ""
    table = f"<table{kind}><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def html(result: dict, title: str) -> str:
    parts, heads = [], []
    for kind, *what in blocks(result):
        if kind == "h":
            heads.append(f'<a href="#s{len(heads)}">{escape(what[0])}</a>')
            parts.append(f'<h2 id="s{len(heads) - 1}">{escape(what[0])}</h2>')
        elif kind in ("p", "note"):
            parts.append(f"<p{' class=note' if kind == 'note' else ''}>{escape(what[0])}</p>")
        elif kind == "list":
            parts.append("<ul>" + "".join(f"<li>{escape(t)}</li>" for t in what[0]) + "</ul>")
        elif kind == "table":
            parts.append(_html_table(*what))
        elif kind == "fold":
            parts.append(f"<details><summary>{escape(what[0])}</summary>{_html_table(what[1], False)}</details>")
        else:
            figures = "".join(f"<figure>{svg}</figure>" for svg in what[0].values() if svg)
            parts.append(f'<div class="grid">{figures}</div>')
    style = STYLE + svg.STYLE + "@media (max-width:500px){svg{font-size:12.5px}}"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body><h1>{escape(title)}</h1>"
        f"{parts[0]}<nav>{' · '.join(heads)}</nav>{''.join(parts[1:])}</body></html>\n"
    )


def markdown(result: dict, title: str, figures: str = "figures") -> str:
    parts = [f"# {title}"]
    for kind, *what in blocks(result):
        if kind == "h":
            parts.append(f"## {what[0]}")
        elif kind in ("p", "note"):
            parts.append(what[0])
        elif kind == "list":
            parts.append("\n".join(f"- {t}" for t in what[0]))
        elif kind in ("table", "fold"):
            if kind == "fold":
                parts.append(f"### {what.pop(0)}")
            rows = [[c.replace("|", "\\|") for c in row] for row in what[0]]
            text = ["| " + " | ".join(row) + " |" for row in rows]
            parts.append("\n".join([text[0], "|" + "---|" * len(rows[0]), *text[1:]]))
        else:
            names = [(name, re.search(r"<title>(.*?)</title>", svg)[1]) for name, svg in what[0].items() if svg]
            parts.append("\n".join(f"![{t}]({figures}/{name}.svg)" for name, t in names))
    return "\n\n".join(parts) + "\n"


def write(result: dict, out: Path) -> None:
    """report.html, report.md and figures/ from what compare.json holds."""
    title = "Diffusion against autoregressive"
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for kind, *what in blocks(result):
        if kind == "charts":
            for name, chart in what[0].items():
                if chart:
                    (out / "figures" / f"{name}.svg").write_text(svg.standalone(chart), encoding="utf-8")
    (out / "report.html").write_text(html(result, title), encoding="utf-8")
    (out / "report.md").write_text(markdown(result, title), encoding="utf-8")
