"""Write the report of a sweep: report.html (self-contained), report.md, figures/*.svg, points.csv and results.json.

It holds no time and no path of a machine, so a sweep that was killed and resumed has the same files, byte for byte.
"""

import csv
import io
from pathlib import Path

from ..comparison import svg
from ..comparison.report import write_pages
from ..runs.files import write_beside, write_figures
from .baselines import baselines
from .crossing import crossings, curve
from .plan import Cell
from .surface import draw, surfaces
from .verdicts import amount, fit_all, place_name, verdicts
from .work import failure

COLUMNS = ("name", "size", "blocks", "unique_tokens", "arm", "objective", "seed")
AT = ("step", "epochs", "nats", "stderr", "flops")
LINES = {"unigram": "unigram", "5-gram": "5-gram", "source": "entropy of the source"}


def results(cells: list[Cell], out: Path) -> dict:
    """Return what a sweep has found so far: curves of finished cells, crossings, fits, verdicts, and failed cells."""
    curves = [c for cell in cells if (c := curve(out, cell))]
    rows = crossings(curves)
    fits = fit_all(curves, rows)
    failed = [[c.name, c.title, why] for c in cells if (why := failure(out, c))]
    return {
        "cells": len(cells), "curves": curves, "crossings": rows, "maps": surfaces(rows), "fits": fits,
        "verdicts": verdicts(curves, rows, fits), "baselines": baselines(out, cells), "failed": failed,
    }  # fmt: skip


def write(found: dict, out: Path) -> None:
    """Write all files of the report into out."""
    out.mkdir(parents=True, exist_ok=True)
    write_figures(out / "results.json", found)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*COLUMNS, *AT])
    for c in found["curves"]:
        table.writerows([*(c[k] for k in COLUMNS), *(p[k] for k in AT)] for p in c["points"])
    write_beside(out / "points.csv", lambda p: p.write_text(text.getvalue(), encoding="utf-8"))
    write_pages(blocks(found), out, "Where diffusion crosses autoregressive training")


def crossing_words(row: dict) -> str:
    """Return E× of a row of crossings with its interval, or its lower bound where it is censored."""
    if row["epochs"] is None:
        return f"> {row['limit']:.3g} (censored)"
    high = f"> {row['limit']:.3g}" if row["high"] is None else f"{row['high']:.3g}"
    low = f"> {row['limit']:.3g}" if row["low"] is None else f"{row['low']:.3g}"
    return f"{row['epochs']:.3g} ({low} to {high})"


def summary(found: dict) -> str:
    """Return the report in one or two sentences."""
    done = f"{len(found['curves'])} of {found['cells']} runs are finished"
    rows = found["crossings"]
    if not rows:
        return f"{done}; no size has finished runs of both objectives yet."
    crossed = [r for r in rows if r["epochs"] is not None]
    places = f"{len(crossed)} of {len(rows)} comparisons (a size, an amount of text and an opponent)"
    span = ""
    if crossed:
        low, high = min(r["epochs"] for r in crossed), max(r["epochs"] for r in crossed)
        span = f", after {low:.3g} epochs" if low == high else f", after {low:.3g} to {high:.3g} epochs"
    return f"Diffusion reaches the autoregressive loss in {places}{span}. {done}."


def blocks(found: dict) -> list[tuple]:
    """Return the parts of the report, as comparison/report.py draws them."""
    table = [["size", "unique tokens", "opponent", "E×", "seeds"]]
    for r in found["crossings"]:
        seeds = ", ".join("–" if s["epochs"] is None else f"{s['epochs']:.3g}" for s in r["seeds"])
        table.append([r["size"] or "base", amount(r["unique_tokens"]), r["opponent"], crossing_words(r), seeds])
    first, *others = [draw(surface) for surface in found["maps"]] or [""]
    out: list[tuple] = [("p", summary(found)), ("charts", {"map": first})]
    out += [
        ("h", "Where diffusion crosses"), ("table", table, True),
        ("charts", {f"map-{i}": chart for i, chart in enumerate(others, 1)}),
        ("note", "E×: the first number of epochs, one or more, at which the best validation loss of diffusion so far "
         "(its upper bound) is at or below the best of the opponent so far. The median over seeds, and the 2.5 % and "
         "97.5 % points of it over all resamples of the seeds. Censored: not seen up to the epochs named."),
        ("h", "Statements"), ("table", found["verdicts"], True),
        ("h", "Loss against epochs"), ("charts", _curves(found)),
        ("note", "Validation nats per token, the mean over seeds, with the lowest and highest seed as a band. Those of "
         "diffusion are upper bounds. Dashed: an interpolated Kneser-Ney 5-gram of the same training tokens and, where "
         "it is known, the entropy of the source."),
        *_baselines(found["baselines"]), ("h", "Loss on the test split"), ("table", _scores(found["curves"]), True),
        ("note", "The final evaluation of every run, the mean over seeds. Exact orders of diffusion are shown for runs "
         "whose folder holds likelihoods.json, which the verb table writes."),
        ("h", "Fits"), ("table", _fits(found["fits"], found["maps"]), True),
        ("note", "95 % intervals by least squares of logarithms, for R* by the profile of the sum of squares. A fit of "
         "fewer than four uncensored points is refused. Hatched places of the map are extrapolated by the law of E×; "
         "their intervals are of one further observation."),
    ]  # fmt: skip
    if found["failed"]:
        out += [("h", "Failed runs"), ("table", [["cell", "what", "reason"], *found["failed"]], True)]
    return out


def _baselines(rows: list[dict]) -> list[tuple]:
    """Return the table of the lines that a model should beat, and why one is missing."""
    if not rows:
        return []
    table = [["unique tokens", *LINES.values()]]
    for r in rows:
        cells = ["–" if r.get(k) is None else f"{r[k]:.3f}" for k in LINES]
        table.append([amount(r["unique_tokens"]), *cells])
    why = dict.fromkeys(r["missing"] for r in rows if "missing" in r)
    return [("h", "Lines to beat"), ("table", table, True), *(("note", f"Not scored: {text}") for text in why)]


def _scores(curves: list[dict]) -> list[list[str]]:
    """Return the table of test losses: a row for each place and arm."""
    table = [["size", "unique tokens", "arm", "nats per token", "exact orders", "entropy of the source"]]
    groups: dict[tuple, list[dict]] = {}
    for c in curves:
        groups.setdefault((c["blocks"], c["size"], c["unique_tokens"], c["arm"]), []).append(c)
    for (_, size, unique, arm), same in sorted(groups.items(), key=lambda g: g[0][:3]):
        orders = {name: [c["orders"][name] for c in same if name in c["orders"]] for c in same for name in c["orders"]}
        exact = ", ".join(f"{name} {sum(v) / len(v):.3f}" for name, v in orders.items())
        bound = "≤ " if same[0]["objective"] == "diffusion" else ""
        source = same[0]["source"]
        table.append([
            size or "base", amount(unique), arm, f"{bound}{sum(c['test'] for c in same) / len(same):.3f}", exact or "–",
            "–" if source is None else f"{source:.3f}",
        ])  # fmt: skip
    return table


def _curves(found: dict) -> dict[str, str]:
    charts, known = {}, {r["unique_tokens"]: r for r in found["baselines"]}
    places = sorted({(c["blocks"], c["size"], c["unique_tokens"]) for c in found["curves"]})
    for i, place in enumerate(places):
        here = [c for c in found["curves"] if (c["blocks"], c["size"], c["unique_tokens"]) == place]
        series = []
        for colour, arm in enumerate(dict.fromkeys(c["arm"] for c in here)):
            at: dict[float, list[float]] = {}
            for c in (c for c in here if c["arm"] == arm):
                for p in c["points"]:
                    if p["step"]:
                        at.setdefault(p["epochs"], []).append(p["nats"])
            x = sorted(at)
            y, low, high = ([f(at[e]) for e in x] for f in (lambda v: sum(v) / len(v), min, max))
            series.append(svg.Series(arm, x, y, low, high, colour=colour % svg.COLOURS))
        ends = [min(s.x[0] for s in series if s.x), max(s.x[-1] for s in series if s.x)]
        for colour, key in ((6, "5-gram"), (7, "source")):
            if (nats := known.get(place[2], {}).get(key)) is not None:
                line = svg.Series(LINES[key], ends, [nats, nats], colour=colour, dashed=True, points=False)
                series.append(line)
        charts[f"loss-{i}"] = svg.lines(place_name(place[1], place[2]), series, "epochs", xlog=True)
    return charts


def _fits(fits: dict, maps: list[dict]) -> list[list[str]]:
    rows = [["fit", "points", "result", "largest residual"]]
    against = f" against {fits['opponent']}" if fits["opponent"] else ""
    named = [(f"E×{against} ∝ U^b", fits["epochs"], "b"), (f"FLOPs at E×{against} ∝ U^b", fits["compute"], "b")]
    for law, opponent in ((m["law"], m["opponent"]) for m in maps if len(m["law"]["axes"]) > 1):
        named.append((f"E× against {opponent} ∝ U^b N^c", law, "b, c"))
    named += [(f"D' of {arm}: R*", fit, "R*") for arm, fit in fits["repetition"].items()]
    named += [(f"best epochs of {arm} ∝ U^b N^c", fit, "b, c") for arm, fit in fits["best epochs"].items()]
    for name, fit, symbols in named:
        if "refused" in fit:
            rows.append([name, str(fit["n"]), f"refused: {fit['refused']}", "–"])
            continue
        parts = fit.get("slopes") or [fit["R"]]
        words = [
            f"{symbol} = {p['value']:.3g} ({'?' if p['low'] is None else format(p['low'], '.3g')} to "
            f"{'?' if p['high'] is None else format(p['high'], '.3g')})"
            for symbol, p in zip(symbols.split(", "), parts, strict=True)
        ]  # fmt: skip
        rows.append([name, str(fit["n"]), "; ".join(words), f"{max(map(abs, fit['residuals'])):.2g}"])
    return rows
