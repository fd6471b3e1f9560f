"""Read the finished cells of a sweep, and find where diffusion crosses autoregressive training.

E× is the first number of epochs, one or more, at which the best validation loss of diffusion so far is at or below the
best of autoregressive training so far. It is censored where no evaluation up to the last common epoch shows that.
"""

import itertools
import math
from pathlib import Path

from ..comparison.budgets import flops
from ..runs.files import figures
from ..runs.metrics import entries, finished
from .plan import Cell
from .work import folder_of

OPPONENTS = "the best autoregressive arm"


def curve(out: Path, cell: Cell) -> dict | None:
    """Return the figures of a finished cell, None of another: {"size", …, "points": [{"step", "nats", …}]}."""
    summary = finished(folder_of(out, cell), remake=True)
    if summary is None:
        return None
    per_epoch = summary["steps"] / cell.epochs
    run = {"config": _flat(cell), "summary": summary}
    evaluations = {e["step"]: e for e in entries(folder_of(out, cell) / "metrics.jsonl")[0] if "valid" in e}
    points = [
        {
            "step": step, "epochs": step / per_epoch, "nats": e["valid"]["nats_per_token"],
            "stderr": e["valid"]["stderr"], "flops": flops(run, step, e.get("loss_tokens")),
        }
        for step, e in sorted(evaluations.items())
    ]  # fmt: skip
    axes = {k: getattr(cell, k) for k in ("size", "unique_tokens", "epochs", "arm", "seed")}
    about = {"name": cell.name, "objective": cell.config.objective, "blocks": summary["parameters_by_part"]["blocks"]}
    return (
        about
        | axes
        | {"parameters": summary["parameters"], "test": summary["test"]["nats_per_token"], "points": points}
        | {"source": summary.get("source", {}).get("test", {}).get("entropy"), "orders": _orders(folder_of(out, cell))}
    )


def _orders(folder: Path) -> dict[str, float]:
    """Return {name: nats per token} of exact orders in likelihoods.json, {} where `table` has not scored the run."""
    rows = figures(folder / "likelihoods.json").get("rows", [])
    return {r["name"]: r["nats_per_token"] for r in rows if r["name"] in ("left-to-right", "confidence")}


def _flat(cell: Cell) -> dict:
    from .. import config as settings

    return settings.flatten(cell.config)


def best_so_far(curves: list[dict]) -> list[tuple[float, float, float | None]]:
    """Return (epochs, lowest nats up to there, FLOPs) of all points of some curves, by epochs, step 0 left out."""
    out, best = [], math.inf
    for p in sorted((p for c in curves for p in c["points"] if p["step"]), key=lambda p: (p["epochs"], p["nats"])):
        best = min(best, p["nats"])
        out.append((p["epochs"], best, p["flops"]))
    return out


def crossing(diffusion: list[dict], other: list[dict]) -> dict:
    """Return {"epochs", "flops"} of the crossing of one seed, {"epochs": None, "limit"} where it is censored."""
    ours, theirs = best_so_far(diffusion), best_so_far(other)
    limit = min(ours[-1][0], theirs[-1][0])
    for epochs, nats, cost in ours:
        if not 1 - 1e-9 <= epochs <= limit + 1e-9:
            continue
        before = [n for e, n, _ in theirs if e <= epochs + 1e-9]
        if before and nats <= before[-1]:
            return {"epochs": epochs, "flops": cost, "limit": limit}
    return {"epochs": None, "flops": None, "limit": limit}


def median_interval(values: list[float]) -> tuple[float, float, float]:
    """Return the median of values, inf among them, and the 2.5 % and 97.5 % points of it over all resamples.

    More than five values are resampled from the first five, so that all resamples can be counted.
    """

    def median(v):
        v = sorted(v)
        return v[(len(v) - 1) // 2]

    first = values[:5]
    medians = sorted(median(v) for v in itertools.product(first, repeat=len(first)))
    return median(values), medians[int(0.025 * len(medians))], medians[math.ceil(0.975 * len(medians)) - 1]


def crossings(curves: list[dict]) -> list[dict]:
    """Return a row for each size, number of unique tokens and opponent, with the crossing of every seed.

    The opponents are each autoregressive arm, and the best of them where there are several. Diffusion is the best of
    its arms. "epochs" is the median over seeds, None where it is censored.
    """
    rows = []
    places = sorted({(c["blocks"], c["size"], c["unique_tokens"]) for c in curves})
    for blocks, size, unique in places:
        here = [c for c in curves if (c["blocks"], c["size"], c["unique_tokens"]) == (blocks, size, unique)]
        arms = list(dict.fromkeys(c["arm"] for c in here if c["objective"] == "autoregressive"))
        opponents = [(arm, [arm]) for arm in arms] + ([(OPPONENTS, arms)] if len(arms) > 1 else [])
        for name, members in opponents:
            seeds = []
            for seed in sorted({c["seed"] for c in here}):
                ours = [c for c in here if c["seed"] == seed and c["objective"] == "diffusion"]
                theirs = [c for c in here if c["seed"] == seed and c["arm"] in members]
                if ours and {c["arm"] for c in theirs} == set(members):
                    seeds.append({"seed": seed} | crossing(ours, theirs))
            if not seeds:
                continue
            middle, low, high = median_interval([math.inf if s["epochs"] is None else s["epochs"] for s in seeds])
            costs = sorted(math.inf if s["flops"] is None else s["flops"] for s in seeds)
            cost = costs[(len(costs) - 1) // 2]
            finite = {
                k: (v if math.isfinite(v) else None) for k, v in (("epochs", middle), ("low", low), ("high", high))
            }
            rows.append({
                "size": size, "blocks": blocks, "unique_tokens": unique, "opponent": name, **finite,
                "flops": cost if math.isfinite(cost) else None, "limit": min(s["limit"] for s in seeds), "seeds": seeds,
            })  # fmt: skip
    return rows
