"""Tables of docs/gpu.md from bench/results: resources.json, launches.json and projection.json. None is measured."""

import json
from pathlib import Path

from bench import tables_claims

RESULTS = Path(__file__).parent / "results"
OBJECTIVES = ("diffusion", "autoregressive")


def _read(name: str) -> dict:
    return json.loads((RESULTS / name).read_text())


def registers() -> str:
    """Registers, shared memory and programs a multiprocessor of the largest kernels at tiny, per card."""
    shown = ("forward, bfloat16, D 64", "weight, bfloat16, D 64", "attention's gradient, bfloat16, T 128, K 16, turned")
    rows = ["| registers, KB, programs | forward | weight | attention's gradient | kernels compiled | that spill |"]
    rows.append("|---" * 6 + "|")
    for card, found in _read("resources.json")["cards"].items():
        cells = [found.get(name) for name in shown]  # what a card cannot hold without spilling does not run there
        text = [f"{c['registers']}, {c['shared'] / 1024:.1f}, {c['programs']}" if c else "–" for c in cells]
        spill = sum(bool(r["stack"] or r["local"]) for r in found.values())
        rows.append(f"| sm_{card} | {' | '.join(text)} | {len(found)} | {spill} |")
    return "\n".join(rows)


def projected_head() -> str:
    """The head's two passes at tiny, milliseconds of each pipe."""
    rows = ["| projected, not measured | instructions a logit | products | exp | issue |", "|---|---|---|---|---|"]
    for card, of in _read("projection.json")["cards"].items():
        for title, found in of["head"].items():
            for side in ("forward", "weight"):
                f = found[side]
                pipes = " | ".join(f"{f['ms'][k]:.2f} ms" for k in ("products", "exp", "issue"))
                rows.append(f"| sm_{card}, {title}, {side} | {f['instructions_a_logit']:.1f} | {pipes} |")
            low, high = found["projected_ms"].values()
            rows.append(f"| sm_{card}, {title}, both | | {low:.2f} ms overlapped | {high:.2f} ms in turn | |")
    return "\n".join(rows)


def projected_step() -> str:
    """A whole step at tiny by what it does: launches, megabytes and microseconds, without and with the floor."""
    found = _read("projection.json")
    cards = found["cards"]
    names = [f"sm_{card}, {o}, µs" for card in cards for o in OBJECTIVES]
    rows = [f"| projected, not measured | launches | MB | {' | '.join(names)} |", "|---" * (3 + len(names)) + "|"]
    first = cards["86"]["steps"]["diffusion"]["groups"]

    def span(low: float, high: float) -> str:
        return f"{low * 1e3:,.0f} to {high * 1e3:,.0f}"

    for g, row in first.items():
        cells = [span(s["groups"][g]["ms"], s["groups"][g]["ms_with_floor"])
                 for of in cards.values() for s in of["steps"].values()]  # fmt: skip
        rows.append(f"| {g} | {row['launches']} | {row['mb']:.0f} | {' | '.join(cells)} |")
    wholes = [of["steps"][o]["whole"] for of in cards.values() for o in OBJECTIVES]
    launches, mb = (sum(row[k] for row in first.values()) for k in ("launches", "mb"))
    rows.append(f"| **step** | {launches} | {mb:.0f} | " + " | ".join(f"**{span(*w['ms'])}**" for w in wholes) + " |")
    speeds = [f"{w['tokens_per_s'][1] / 1e6:.1f} to {w['tokens_per_s'][0] / 1e6:.1f}" for w in wholes]
    rows.append("| million tokens/s | | | " + " | ".join(speeds) + " |")
    steps = tables_claims.runs("diffusion")[0]["summary"]["steps"]
    lengths = [f"{steps * low / 1e3:.1f} to {steps * high / 1e3:.1f}" for low, high in (w["ms"] for w in wholes)]
    rows.append(f"| the {steps:,} steps of the published run, s | | | " + " | ".join(lengths) + " |")
    chips = "; ".join(
        f"sm_{card}: {of['chip']['name']}, {of['flop_per_s'] / 1e12:.0f} TFLOP/s, {of['bytes_per_s'] / 1e9:,.0f} GB/s"
        for card, of in cards.items()
    )
    words = (
        "Launches and MB are diffusion's on sm_86. The lower figure is the limit of every launch alone: bytes, none of "
        "them from a cache, over bandwidth, or the head's slowest pipe. The higher has at least "
        f"{found['floor_us']} µs a launch, an assumption, and the head's products and exps in turn. {chips}."
    )
    return "\n".join(rows) + "\n\n" + words


def launches() -> str:
    """Launches of a training step at tiny, part by part, and the ops with the most of them; no GPU counted them."""
    found = _read("launches.json")
    rows = ["| launches a step | diffusion | autoregressive | most of diffusion's |", "|---|---|---|---|"]
    for part, ops in found["launches"]["diffusion"].items():
        counts = [sum(found["launches"][o][part].values()) for o in OBJECTIVES]
        most = ", ".join(f"`{op.removeprefix('tdlm::')}` {n}" for op, n in list(ops.items())[:6])
        rows.append(f"| {part} | {counts[0]} | {counts[1]} | {most} |")
    totals = [found["totals"][o] for o in OBJECTIVES]
    return "\n".join(rows) + f"\n| **all** | **{totals[0]}** | **{totals[1]}** | |"


def crossovers() -> str:
    """The width from which the stored form is projected to be faster, by the fused kernels' share of cuBLAS's rate."""
    from tdlm_fast.kernels import lce_plan

    shares = (0.5, 0.7, 0.9)
    rows = ["| projected width | " + " | ".join(f"at {s:.0%}" for s in shares) + " |", "|---" * 4 + "|"]
    for card in lce_plan.RATES:
        rows.append(f"| sm_{card} | " + " | ".join(f"{lce_plan.crossover(card, s):,.0f}" for s in shares) + " |")
    return "\n".join(rows)


TABLES = {
    "crossovers": crossovers, "registers": registers, "projected-head": projected_head, "launches": launches,
    "projected-step": projected_step,
}  # fmt: skip
