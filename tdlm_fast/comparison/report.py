"""Draw the report of a comparison from its figures: report.html (self-contained), report.md and figures/*.svg.

Both texts come from one list of blocks, so they hold the same. Nothing is fetched when the page opens: charts are
inline SVG (svg.py), without a script or a font.
"""

import re
import typing
from html import escape
from pathlib import Path

from ..evaluation.table_lines import lines
from . import svg, tables
from .figures import curve_charts, diagnostic_charts, first_arms
from .findings import paragraph

TITLE = "Diffusion against autoregressive"
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
.v.undecided,.v.not{color:var(--none)}nav{font-size:.85rem;color:var(--soft)}a{color:inherit}
summary{cursor:pointer;margin:.6em 0;color:var(--soft)}.why{color:var(--soft);font-size:.85rem}
@media (max-width:760px){table.cards thead{display:none}table.cards tr{display:block;padding:.7em 0;
border-bottom:1px solid var(--rule)}table.cards td{display:grid;grid-template-columns:8.5em 1fr;gap:.5em;border:0;
padding:.12em 0}table.cards td::before{content:attr(data-label);color:var(--soft);font-size:.8rem}
table.cards td:first-child{display:block;font-weight:600}table.cards td:first-child::before{content:none}
table.cards td.none{display:none}.v{white-space:normal}}
"""


def blocks(result: dict) -> list[tuple]:
    """Return the parts of the report, in order.

    ("h" or "p" or "note", text) · ("list", texts) · ("table", rows, cards?) · ("fold", title, rows) · ("charts",
    {name: svg}).
    """
    out = [("p", paragraph(result)), *_claims(result)]
    out += [
        ("h", "Curves"), ("charts", curve_charts(result)),
        ("note", "Bands: lowest and highest seed. Step 0 is drawn where 1 is. By time, only the main arm of each "
         "objective: others may have been trained on another machine or beside other work. Training losses only of "
         "arms with the main arm's weight: losses of different weights have no common scale."),
    ]  # fmt: skip
    return [*out, *_runs(result), *_likelihoods(result), *_beside(result), *_tasks(result), *_budgets(result),
            *_diagnostics(result), *_alike(result)]  # fmt: skip


def _claims(result: dict) -> list[tuple]:
    out: list[tuple] = []
    if result["claims"]:
        out = [
            ("h", "The published claims"), ("table", tables.claims_table(result), True),
            *_source(result),
            ("note", _claims_note(result)),
            ("note", "Rules of the verdicts:"), ("list", result["rules"]),
        ]  # fmt: skip
    if control := tables.control_table(result):
        out += [("h", "Control arms"), ("table", control, True),
                ("note", "The test perplexity again, with a control arm in place of the main arm of its objective, "
                 "against the main arm of the other, on the seeds that both have.")]  # fmt: skip
    return out


def _source(result: dict) -> list[tuple]:
    """Return notes on who published the claims, and on what would settle them; older records do not hold them."""
    if not (published := result.get("published")):
        return []
    where = f" ({published['address']})" if published["address"] else ""
    words = f"Source: {published['source']}{where}. Text: {published['text']}. Settled by: {published['runs']}."
    return [("note", words), *([("note", published["note"])] if published["note"] else [])]


def _claims_note(result: dict) -> str:
    """Return what the cells of the table of claims hold."""
    over = f"with 95 % intervals over {tables.seeds_of(result)}"
    loose = ("On likelihood: diffusion's upper bound against the exact value, so a ratio below 1 may overstate how far "
             "diffusion is behind.")  # fmt: skip
    if tables.main_claim(result["claims"])["kind"] == "bits":
        return (
            f"Differences in bits per byte, above 0 where diffusion is better, {over}. Computed as published: "
            "diffusion's bits over the tokens times the bytes per token that the publication assumed, against the "
            "autoregressive model's over the true bytes. Published metric for both: both over the assumed bytes. "
            "On likelihood: diffusion's upper bound against the exact value, both over the true bytes."
        )
    return (
        f"Ratios of perplexities, above 1 where diffusion is better, {over}; “nats” is the advantage on likelihood. "
        "Computed as published: the published metric of diffusion against the exact perplexity of the autoregressive "
        f"model. Published metric for both: on the same draws. {loose}"
    )


def _runs(result: dict) -> list[tuple]:
    out: list[tuple] = [("h", "Runs"), ("table", tables.run_table(result), False)]
    machines = {arm["label"]: {r["summary"]["device"] for r in arm["runs"]} for arm in result["arms"]}
    usual = next(iter(machines.values()))
    if other := [label for label, devices in machines.items() if devices != usual]:
        text = f"On another kind of machine (listed below), so minutes do not compare: {'; '.join(other)}."
        out.append(("note", text))
    if early := tables.early_table(result):
        out += [("h", "Every evaluation"), ("table", early, False)]
    return out


def _likelihoods(result: dict) -> list[tuple]:
    out: list[tuple] = []
    for arm in first_arms(result).values():
        stored = [r["table"] for r in arm["runs"] if r["table"]]
        if stored:
            out += [("h", f"Likelihoods: {arm['label']}, first seed"), ("table", lines(stored[0]), True)]
    if any(r["table"] for arm in result["arms"] for r in arm["runs"]):
        out.append(("note", "95 % intervals: of the estimate where all sequences are scored, over sequences where some "
                    "are. The exact orders reveal one token a step, left to right or the most certain first: by the "
                    "probability of its most probable value (confidence), by that minus the second's (margin), or "
                    "by the entropy. “4 at a time” reveals four a step, each drawn for itself (DUEL, arXiv "
                    "2603.01367)."))  # fmt: skip
    return out


def _beside(result: dict) -> list[tuple]:
    if not (rows := tables.beside_table(result)):
        return []
    words = (f"Theirs: {result['published']['beside']['source']}. Ours: the first seed of each objective, on a subset "
             "of the test split. Texts, vocabularies, models and programs differ, so only the columns over the "
             "autoregressive model of the same publication may be compared.")  # fmt: skip
    return [("h", "Honest likelihoods, theirs and ours"), ("table", rows, True), ("note", words)]


def _tasks(result: dict) -> list[tuple]:
    out: list[tuple] = []
    if tasks := tables.task_table(result):
        out += [("h", "Evaluation sets"), ("table", tasks, False),
                ("note", "95 % intervals over the questions. chance: guessing; shortest: always the ending of the "
                 "fewest tokens. gap: mean log-likelihood of the wrong endings minus the right one's; below 0 the "
                 "right one is preferred. Diffusion's accuracies are those of its conditional bound.")]  # fmt: skip
        if paradigms := tables.paradigm_table(result):
            out += [("fold", "BLiMP, paradigm by paradigm", paradigms)]
    return out


def _budgets(result: dict) -> list[tuple]:
    ledger = tables.ledger_table(result)
    return [
        ("h", "At equal budgets"), ("table", ledger, True),
        ("note", "Validation nats per token on straight lines between evaluations, with 95 % intervals as above; "
         "learning rates are those of the whole runs. FLOPs: 6 per parameter of the blocks and place, 12 L D T for "
         "attention, 6 D V per token that bears loss."),
    ] if ledger else []  # fmt: skip


def _diagnostics(result: dict) -> list[tuple]:
    level = tables.level_table(result)
    return [
        ("h", "Diagnostics"), *([("table", level, True)] if level else []), ("charts", diagnostic_charts(result)),
        ("note", "Noise level of a masked token: the share of its sequence that is masked; of an autoregressive "
         "model's token: the share of its sequence from that token on. Gradient norms are from a backward pass for "
         "each level on a fixed probe batch."),
    ]  # fmt: skip


def _alike(result: dict) -> list[tuple]:
    kinds = {f"{r['summary']['device']}, torch {r['summary']['versions']['torch']}: {arm['label']}"
             for arm in result["arms"] for r in arm["runs"]}  # fmt: skip
    alike = [("h", "What was alike"), ("list", result["alike"])] if result["alike"] else []
    return [*alike, ("h", "Machines"), ("list", sorted(kinds))]


def _html_table(rows: list[list[str]], cards: bool) -> str:
    head = "".join(f"<th>{escape(c)}</th>" for c in rows[0])
    body = []
    for row in rows[1:]:
        cells = []
        for name, text in zip(rows[0], row, strict=True):
            inner = escape(text)
            if name == "verdict":
                verdict, _, why = inner.partition(": ")
                badge = f'<span class="v {verdict.split()[0]}">{verdict}</span>'
                inner = f'<span>{badge} <span class="why">{why}</span></span>'
            blank = ' class="none"' if text == "–" else ""
            cells.append(f'<td{blank} data-label="{escape(name)}">{inner}</td>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    kind = ' class="cards"' if cards else ""
    table = f"<table{kind}><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def html(result: dict, title: str) -> str:
    return _html_page(blocks(result), title)


def _html_page(content_blocks: list[tuple], title: str) -> str:
    parts, heads = [], []
    for kind, *content in content_blocks:
        if kind == "h":
            heads.append(f'<a href="#s{len(heads)}">{escape(content[0])}</a>')
            parts.append(f'<h2 id="s{len(heads) - 1}">{escape(content[0])}</h2>')
        elif kind in ("p", "note"):
            parts.append(f"<p{' class=note' if kind == 'note' else ''}>{escape(content[0])}</p>")
        elif kind == "list":
            parts.append("<ul>" + "".join(f"<li>{escape(t)}</li>" for t in content[0]) + "</ul>")
        elif kind == "table":
            parts.append(_html_table(*content))
        elif kind == "fold":
            parts.append(f"<details><summary>{escape(content[0])}</summary>{_html_table(content[1], False)}</details>")
        else:
            figures = "".join(f"<figure>{chart}</figure>" for chart in content[0].values() if chart)
            parts.append(f'<div class="grid">{figures}</div>')
    style = STYLE + svg.STYLE + "@media (max-width:500px){svg{font-size:12.5px}}"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body><h1>{escape(title)}</h1>"
        f"{parts[0]}<nav>{' · '.join(heads)}</nav>{''.join(parts[1:])}</body></html>\n"
    )


def markdown(result: dict, title: str) -> str:
    return _markdown_page(blocks(result), title)


def _markdown_page(content_blocks: list[tuple], title: str) -> str:
    def plain(content) -> typing.Any:  # names of runs and texts may hold HTML, which Markdown would pass on
        if isinstance(content, str):
            return escape(content, quote=False)
        return [plain(each) for each in content] if isinstance(content, list | tuple) else content

    parts = [f"# {title}"]
    for kind, *content in ((kind, *plain(content)) for kind, *content in content_blocks):
        if kind == "h":
            parts.append(f"## {content[0]}")
        elif kind in ("p", "note"):
            parts.append(content[0])
        elif kind == "list":
            parts.append("\n".join(f"- {t}" for t in content[0]))
        elif kind in ("table", "fold"):
            if kind == "fold":
                parts.append(f"### {content.pop(0)}")
            rows = [[c.replace("|", "\\|") for c in row] for row in content[0]]
            text = ["| " + " | ".join(row) + " |" for row in rows]
            parts.append("\n".join([text[0], "|" + "---|" * len(rows[0]), *text[1:]]))
        else:
            charts = [(name, chart) for name, chart in content[0].items() if chart]
            names = [(name, re.findall(r"<title>(.*?)</title>", chart)[0]) for name, chart in charts]
            parts.append("\n".join(f"![{t}](figures/{name}.svg)" for name, t in names))
    return "\n\n".join(parts) + "\n"


def write(result: dict, out: Path) -> None:
    """Write report.html, report.md and figures/ from the contents of compare.json."""
    write_pages(blocks(result), out, TITLE)


def write_pages(content_blocks: list[tuple], out: Path, title: str) -> None:
    """Write report.html, report.md and figures/ from the parts of a report, as `blocks` returns them."""
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for kind, *content in content_blocks:
        if kind == "charts":
            for name, chart in content[0].items():
                if chart:
                    (out / "figures" / f"{name}.svg").write_text(svg.standalone(chart), encoding="utf-8")
    (out / "report.html").write_text(_html_page(content_blocks, title), encoding="utf-8")
    (out / "report.md").write_text(_markdown_page(content_blocks, title), encoding="utf-8")
