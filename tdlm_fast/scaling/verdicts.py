"""Judge statements about scale by rules that are printed with them.

A verdict is (statement, rule, verdict, why), with the verdict "holds", "does not hold", "undecided" or "not tested".
"""

from ..statistics import over_seeds
from .crossing import OPPONENTS
from .fits import power_law, repetition

SHARE = 0.9  # of the evaluations of the first epoch
SLOPE = 2.174  # of log critical compute against log U, Prabhudesai et al. 2025 (arXiv 2507.15857)
CONSTANT = 2.12 * 10**1.956  # critical FLOPs at U = 1 there
RATES = {"autoregressive": 31.9, "diffusion": 512.9}  # R* there
QUOKKA = (0.39, -0.55)  # exponents of U and N in the best number of epochs (arXiv 2510.03280)
RULES = {
    "S1": f"The 95 % interval of (autoregressive − diffusion's bound) in nats, over seeds, is above 0 at {SHARE:.0%} "
    "of the evaluations from step 10 to one epoch: holds; below 0 at as many: does not hold.",
    "S2": "At least 97.5 % of the resamples of the seeds cross up to the epochs trained: holds; none crosses: does not "
    "hold up to there (censored); else undecided.",
    "S3": "At one number of unique tokens and two sizes or more: no crossing at the smallest, and E× falls with the "
    "size where there is one: holds; a crossing at the smallest: does not hold.",
    "constant": "The published FLOPs lie between ours at the ends of the interval of E×: holds; outside: does not "
    "hold. Not tested with one seed, which has no interval, or without a crossing.",
    "tuned": "Against the best autoregressive arm E× is later than against the first arm, or censored where that is "
    "not: at every place holds; at none: does not hold; places where both are censored do not count.",
    "law": "The published constant lies in the 95 % interval of ours: holds; outside: does not hold.",
}


def verdicts(curves: list[dict], rows: list[dict], fits: dict) -> list[list[str]]:
    """Return a row for each statement: [statement, verdict, rule], the verdict as "WORD: why"."""
    out = [["statement", "verdict", "rule"]]
    for place in sorted({(c["blocks"], c["size"], c["unique_tokens"]) for c in curves}):
        name = f"S1, immediate dominance of diffusion, {place_name(place[1], place[2])}"
        out.append([name, _immediate(curves, place), RULES["S1"]])
    for r in rows:
        name = f"S2, diffusion crosses {r['opponent']}, {place_name(r['size'], r['unique_tokens'])}"
        out.append([name, _crosses(r), RULES["S2"]])
    for unique in sorted({r["unique_tokens"] for r in rows}):
        name = f"S3, below some size no text makes diffusion win, U = {amount(unique)}"
        out.append([name, _threshold([r for r in rows if r["unique_tokens"] == unique]), RULES["S3"]])
    slope = fits["compute"].get("slopes", [None])[0]
    out.append(
        [f"Critical compute grows as U^{SLOPE} (Prabhudesai)", _inside(slope, SLOPE, fits["compute"]), RULES["law"]]
    )
    for r in (r for r in rows if r["opponent"] == _first_arm(rows) and r["unique_tokens"]):
        name = f"Critical compute is {CONSTANT:.4g} U^{SLOPE} FLOPs, {place_name(r['size'], r['unique_tokens'])}"
        out.append([f"{name} (Prabhudesai)", _constant(r), RULES["constant"]])
    out.append(
        ["Stronger regularisation of autoregressive training delays the crossing (Kim)", _tuned(rows), RULES["tuned"]]
    )
    for arm, fit in fits["repetition"].items():
        value = RATES[fit["objective"]]
        name = f"R* of {arm} is {value} (Prabhudesai)"
        out.append([name, _inside(fit.get("R"), value, fit), RULES["law"]])
    for arm, fit in fits["best epochs"].items():
        for axis, i in (("U", 0), ("N", 1)):
            part = fit["slopes"][i] if "slopes" in fit else None
            name = f"The best number of epochs of {arm} grows as {axis}^{QUOKKA[i]} (Quokka)"
            out.append([name, _inside(part, QUOKKA[i], fit), RULES["law"]])
    return out


def fit_all(curves: list[dict], rows: list[dict]) -> dict:
    """Return the fits: "epochs" and "compute" of the crossings, "repetition" and "best epochs" of each arm."""
    hardest = OPPONENTS if any(r["opponent"] == OPPONENTS for r in rows) else next((r["opponent"] for r in rows), "")
    known = [r for r in rows if r["epochs"] and r["unique_tokens"] and r["opponent"] == hardest]
    unique = [float(r["unique_tokens"]) for r in known]
    fits = {
        "opponent": hardest, "epochs": power_law([r["epochs"] for r in known], unique),
        "compute": power_law([r["flops"] for r in known], unique), "repetition": {}, "best epochs": {},
    }  # fmt: skip
    for arm in dict.fromkeys(c["arm"] for c in curves):
        own = [c for c in curves if c["arm"] == arm and c["unique_tokens"]]
        objective = next(c["objective"] for c in curves if c["arm"] == arm)
        largest = max((c["blocks"] for c in own), default=0)
        points = [
            (c["unique_tokens"], p["epochs"], p["nats"]) for c in own if c["blocks"] == largest
            for p in c["points"] if p["epochs"] >= 1 and p["step"] <= _lowest(c)["step"]
        ]  # fmt: skip
        fits["repetition"][arm] = repetition(*(list(v) for v in zip(*points, strict=True)) if points else ([], [], []))
        fits["repetition"][arm]["objective"] = objective
        best = [(_lowest(c)["epochs"], c) for c in own if _lowest(c)["step"] < c["points"][-1]["step"]]
        axes = [float(c["unique_tokens"]) for _, c in best], [float(c["blocks"]) for _, c in best]
        fits["best epochs"][arm] = power_law([e for e, _ in best], *axes)
    return fits


def place_name(size: str, unique: int) -> str:
    """Name a size and a number of unique tokens."""
    return f"N = {size or 'that of base'}, U = {amount(unique)}"


def amount(unique: int) -> str:
    """Name a number of unique tokens."""
    return f"{unique:,} tokens" if unique else "all tokens"


def _lowest(curve: dict) -> dict:
    return min(curve["points"], key=lambda p: (p["nats"], p["step"]))


def _immediate(curves: list[dict], place: tuple) -> str:
    """Compare the first arm of each objective, seed by seed, at the evaluations of the first epoch that both have."""
    here = [c for c in curves if (c["blocks"], c["size"], c["unique_tokens"]) == place]
    first: dict[str, str] = {}
    for c in here:
        first.setdefault(c["objective"], c["arm"])
    if len(first) < 2:
        return "not tested: one objective only"
    pairs: dict[int, list] = {}
    for seed in sorted({c["seed"] for c in here}):
        both = [
            [c for c in here if c["seed"] == seed and c["arm"] == first[o]] for o in ("diffusion", "autoregressive")
        ]
        if all(both):
            d, a = ({p["step"]: p for p in side[0]["points"]} for side in both)
            for step in sorted(d.keys() & a.keys()):
                if step >= 10 and d[step]["epochs"] <= 1 + 1e-9:
                    pairs.setdefault(step, []).append((d[step], a[step]))
    if not pairs:
        return "not tested: no evaluation from step 10 to one epoch"
    gaps = []
    for both in pairs.values():
        errors = [(d["stderr"] ** 2 + a["stderr"] ** 2) ** 0.5 for d, a in both]
        gaps.append(over_seeds([a["nats"] - d["nats"] for d, a in both], errors))
    ahead, behind = sum(g.low > 0 for g in gaps), sum(g.high < 0 for g in gaps)
    why = f"ahead at {ahead}, behind at {behind} of {len(gaps)} evaluations"
    verdict = "holds" if ahead >= SHARE * len(gaps) else "does not hold" if behind >= SHARE * len(gaps) else "undecided"
    return f"{verdict}: {why}"


def _crosses(row: dict) -> str:
    seen = sum(s["epochs"] is not None for s in row["seeds"])
    seeds = f"{seen} of {len(row['seeds'])} seeds cross in {row['limit']:.3g} epochs"
    if not seen:
        return f"does not hold: {seeds}"
    return f"{'undecided' if row['high'] is None else 'holds'}: {seeds}"


def _first_arm(rows: list[dict]) -> str:
    return next((r["opponent"] for r in rows), "")


def _constant(row: dict) -> str:
    """Compare the published critical compute with ours at the ends of the interval of E×."""
    published = CONSTANT * row["unique_tokens"] ** SLOPE
    if row["epochs"] is None:
        return f"not tested: no crossing; the law gives {published:.3g} FLOPs"
    words = f"{row['flops']:.3g} FLOPs against {published:.3g}"
    if len(row["seeds"]) < 2:
        return f"not tested: one seed; {words}"
    low, high = (None if row[k] is None else row["flops"] * row[k] / row["epochs"] for k in ("low", "high"))
    outside = low is None or published < low or high is not None and published > high
    return f"{'does not hold' if outside else 'holds'}: {words}"


def _tuned(rows: list[dict]) -> str:
    first, pairs = _first_arm(rows), []
    for r in (r for r in rows if r["opponent"] == first):
        place = r["blocks"], r["unique_tokens"]
        best = [b for b in rows if (b["blocks"], b["unique_tokens"]) == place and b["opponent"] == OPPONENTS]
        pairs += [(r["epochs"], b["epochs"]) for b in best if r["epochs"] is not None or b["epochs"] is not None]
    if not pairs:
        return "not tested: no place with two autoregressive arms and a crossing"
    later = sum(plain is not None and (best is None or best > plain) for plain, best in pairs)
    verdict = "holds" if later == len(pairs) else "does not hold" if not later else "undecided"
    return f"{verdict}: later at {later} of {len(pairs)} places"


def _threshold(rows: list[dict]) -> str:
    hardest = OPPONENTS if any(r["opponent"] == OPPONENTS for r in rows) else rows[0]["opponent"]
    rows = sorted((r for r in rows if r["opponent"] == hardest), key=lambda r: r["blocks"])
    if len(rows) < 2:
        return "not tested: one size only"
    if rows[0]["epochs"] is not None:
        return f"does not hold: the smallest size crosses at {rows[0]['epochs']:.3g} epochs"
    known = [r["epochs"] for r in rows if r["epochs"] is not None]
    if not known:
        return f"undecided: no size crosses in {min(r['limit'] for r in rows):.3g} epochs"
    falls = all(a > b for a, b in zip(known, known[1:], strict=False))
    tail = all(r["epochs"] is not None for r in rows[len(rows) - len(known) :])
    return f"{'holds' if falls and tail else 'undecided'}: {len(known)} of {len(rows)} sizes cross"


def _inside(part: dict | None, value: float, fit: dict) -> str:
    if part is None:
        return f"not tested: {fit['refused']}"
    low, high = (part[k] for k in ("low", "high"))
    words = f"{part['value']:.3g} ({'?' if low is None else f'{low:.3g}'} to {'?' if high is None else f'{high:.3g}'})"
    outside = low is not None and value < low or high is not None and value > high
    return f"{'does not hold' if outside else 'holds'}: {words}"
