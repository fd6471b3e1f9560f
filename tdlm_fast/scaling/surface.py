"""The map of a sweep: E× over sizes N and unique tokens U, and beyond what was seen a power law.

E× = exp(c) U^b N^d                           law

The law has the axes that vary among the uncensored crossings of one opponent. It is refused below four of them. Where
it stands, it gives places without a crossing, and one step beyond the largest U and N, a 95 % prediction interval.
"""

from ..comparison import svg
from .fits import power_law, predict

TITLE = "Epochs at which diffusion crosses"
LEGEND = (
    "number: seen · dashed edge: censored, not up to there",
    "hatched: extrapolated by the law E× ∝ U^b N^c",
)


def law(rows: list[dict]) -> dict:
    """Fit E× of the uncensored rows against the axes that vary among them; {"axes": ["U", "N"], …} of power_law."""
    known = [r for r in rows if r["epochs"] and r["unique_tokens"]]
    values = {"U": [float(r["unique_tokens"]) for r in known], "N": [float(r["blocks"]) for r in known]}
    axes = [name for name, v in values.items() if len(set(v)) > 1] or ["U"]
    return {"axes": axes} | power_law([r["epochs"] for r in known], *(values[a] for a in axes))


def surfaces(rows: list[dict]) -> list[dict]:
    """Return the map of every opponent, the last named first: {"opponent", "law", "places": [{…, "projected"}]}.

    A place is (blocks, unique_tokens) with its E×, interval and limit, None where nothing was trained; "projected" is
    {"value", "low", "high"} where no crossing was seen and the law is known, else None.
    """
    out = []
    for opponent in reversed(list(dict.fromkeys(r["opponent"] for r in rows))):
        here = [r for r in rows if r["opponent"] == opponent]
        fit = law(here)
        seen = {(r["blocks"], r["unique_tokens"]): r for r in here}
        sizes, tokens = sorted({b for b, _ in seen}), sorted({u for _, u in seen}, key=lambda u: u or float("inf"))
        names = {r["blocks"]: r["size"] or "base" for r in here}
        known = "slopes" in fit
        places = []
        for blocks in sizes + (_beyond(sizes) if known and "N" in fit["axes"] else []):
            for unique in tokens + (_beyond([u for u in tokens if u]) if known and "U" in fit["axes"] else []):
                row = seen.get((blocks, unique), {})
                projected = None
                if known and unique and row.get("epochs") is None:
                    at = {"U": float(unique), "N": float(blocks)}
                    projected = predict(fit, *(at[a] for a in fit["axes"]))
                places.append({
                    "blocks": blocks, "size": names.get(blocks, f"{svg.number(blocks)} blocks"),
                    "unique_tokens": unique, **{k: row.get(k) for k in ("epochs", "low", "high", "limit")},
                    "projected": projected,
                })  # fmt: skip
        out.append({"opponent": opponent, "law": fit, "places": places})
    return out


def _beyond(values: list[float]) -> list[int]:
    """Return one step beyond the largest value, by the ratio of the two largest."""
    return [round(values[-1] * values[-1] / values[-2])] if len(values) > 1 else []


def draw(surface: dict) -> str:
    """Draw a map, the smallest size at the bottom."""
    places = surface["places"]
    sizes = sorted({p["blocks"] for p in places}, reverse=True)
    tokens = list(dict.fromkeys(p["unique_tokens"] for p in places))
    at = {(p["blocks"], p["unique_tokens"]): p for p in places}
    names = {p["blocks"]: p["size"] for p in places}
    known = [p["epochs"] for p in places if p["epochs"] is not None]
    most = max([*known, *(p["limit"] for p in places if p["limit"])], default=1.0)
    table = [[_mark(at[b, u], most) for u in tokens] for b in sizes]
    columns = [svg.number(u) if u else "all" for u in tokens]
    legend = LEGEND if any(p["projected"] for p in places) else LEGEND[:1]
    title = f"{TITLE}, against {surface['opponent']}"
    return svg.places(title, [names[b] for b in sizes], columns, table, "unique tokens", "size", legend)


def _mark(place: dict, most: float) -> svg.Place | None:
    words, kind, share = [], "seen", 0.0
    if place["epochs"] is not None:
        words.append(f"{place['epochs']:.3g}")
        share = place["epochs"] / most
    elif place["limit"] is not None:
        words.append(f"> {place['limit']:.3g}")
        kind = "censored"
    tips = [f"{place['size']}, {place['unique_tokens'] or 'all'} tokens: {words[0] if words else 'not trained'}"]
    if part := place["projected"]:
        words.append(f"≈ {part['value']:.3g}")
        tips.append(f"the law gives {part['value']:.3g} (95 % {part['low']:.3g} to {part['high']:.3g})")
    if not words:
        return None
    return svg.Place(words, "; ".join(tips), share, kind, bool(place["projected"]))
