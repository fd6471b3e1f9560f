"""Write the report of a sweep: report.html (self-contained), report.md, figures/*.svg, points.csv and results.json.

It holds no time and no path of a machine, so a sweep that was killed and resumed has the same files, byte for byte.
"""

import csv
import io
from pathlib import Path

from ..comparison import svg
from ..comparison.report import write_pages
from ..runs.files import write_beside, write_figures
from .crossing import crossings, curve
from .plan import Cell
from .verdicts import amount, fit_all, place_name, verdicts
from .work import failure

COLUMNS = ("name", "size", "blocks", "unique_tokens", "arm", "objective", "seed")
AT = ("step", "epochs", "nats", "stderr", "flops")


def results(cells: list[Cell], out: Path) -> dict:
    """Return what a sweep has found so far: curves of finished cells, crossings, fits, verdicts, and failed cells."""
    curves = [c for cell in cells if (c := curve(out, cell))]
    rows = crossings(curves)
    fits = fit_all(curves, rows)
    failed = [[c.name, c.title, why] for c in cells if (why := failure(out, c))]
    return {
        "cells": len(cells), "curves": curves, "crossings": rows, "fits": fits,
        "verdicts": verdicts(curves, rows, fits), "failed": failed,
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
    out: list[tuple] = [("p", summary(found)), ("charts", {"map": _map(found)})]
    out += [
        ("h", "Where diffusion crosses"), ("table", table, True),
        ("note", "E×: the first number of epochs, one or more, at which the best validation loss of diffusion so far "
         "(its upper bound) is at or below the best of the opponent so far. The median over seeds, and the 2.5 % and "
         "97.5 % points of it over all resamples of the seeds. Censored: not seen up to the epochs named."),
        ("h", "Statements"), ("table", found["verdicts"], True),
        ("h", "Loss against epochs"), ("charts", _curves(found)),
        ("note", "Validation nats per token, the mean over seeds, with the lowest and highest seed as a band."),
        ("h", "Fits"), ("table", _fits(found["fits"]), True),
        ("note", "95 % intervals by least squares of logarithms, for R* by the profile of the sum of squares. A fit of "
         "fewer than four uncensored points is refused, and nothing is extrapolated."),
    ]  # fmt: skip
    if found["failed"]:
        out += [("h", "Failed runs"), ("table", [["cell", "what", "reason"], *found["failed"]], True)]
    return out


def _map(found: dict) -> str:
    """Draw E× over sizes and unique tokens, against the last opponent of each place; censored is blank."""
    last = {(r["blocks"], r["unique_tokens"]): r for r in found["crossings"]}
    sizes, tokens = sorted({b for b, _ in last}), sorted({u for _, u in last})
    names = {r["blocks"]: r["size"] or "base" for r in found["crossings"]}
    values = [[last.get((b, u), {}).get("epochs") for u in tokens] for b in reversed(sizes)]
    title = "Epochs at which diffusion crosses (blank: not seen)"
    return svg.heat(title, [names[b] for b in reversed(sizes)], [svg.number(u) for u in tokens], values, "size")


def _curves(found: dict) -> dict[str, str]:
    charts = {}
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
        charts[f"loss-{i}"] = svg.lines(place_name(place[1], place[2]), series, "epochs", xlog=True)
    return charts


def _fits(fits: dict) -> list[list[str]]:
    rows = [["fit", "points", "result", "largest residual"]]
    against = f" against {fits['opponent']}" if fits["opponent"] else ""
    named = [(f"E×{against} ∝ U^b", fits["epochs"], "b"), (f"FLOPs at E×{against} ∝ U^b", fits["compute"], "b")]
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
