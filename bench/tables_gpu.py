"""Tables of what GPUs do: of docs/gpu.md from resources.json, launches.json and projection.json, none of it measured,
and of docs/performance.md from what bench/gpu.sh measured, once somebody has run it."""

import json
import re
from pathlib import Path

from bench import tables_claims, tables_cpu

RESULTS = Path(__file__).parent / "results"
GPU = RESULTS / "gpu"  # where bench/gpu.sh writes
OBJECTIVES = ("diffusion", "autoregressive")


def _read(name: str) -> dict:
    return json.loads((RESULTS / name).read_text())


def registers() -> str:
    """Registers, shared memory and programs a multiprocessor of the largest kernels at tiny, per card."""
    shown = ("forward, bfloat16, D 64", "weight, bfloat16, D 64", "attention's gradient, bfloat16, T 128, K 16, turned")
    now, older = _read("resources.json"), _read("resources-older.json")
    columns = f"kernels compiled | that spill | with Triton {older['triton'][:3]}"
    rows = [f"| registers, KB, programs | forward | weight | attention's gradient | {columns} |", "|---" * 7 + "|"]
    for card, found in now["cards"].items():
        cells = [found.get(name) for name in shown]  # what a card cannot hold without spilling does not run there
        text = [f"{c['registers']}, {c['shared'] / 1024:.1f}, {c['programs']}" if c else "–" for c in cells]
        spill = [sum(bool(r["stack"] or r["local"]) for r in of["cards"][card].values()) for of in (now, older)]
        rows.append(f"| sm_{card} | {' | '.join(text)} | {len(found)} | {spill[0]} | {spill[1]} |")
    return "\n".join(rows) + f"\n\nTriton {now['triton']} but for the last column."


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
        "them from a cache, over bandwidth, and the head's slowest pipe besides. The higher has at least "
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
    from tdlm_fast.kernels.triton import tiles as lce_plan

    shares = (0.5, 0.7, 0.9)
    rows = ["| projected width | " + " | ".join(f"at {s:.0%}" for s in shares) + " |", "|---" * 4 + "|"]
    for card in lce_plan.RATES:
        rows.append(f"| sm_{card} | " + " | ".join(f"{lce_plan.crossover(card, s):,.0f}" for s in shares) + " |")
    return "\n".join(rows)


def race_tables(races: dict) -> str:
    """A table an op: our time, its share of the limit measured beside it, and the peers' times as multiples of ours."""
    ops: dict[str, dict] = {}
    for name, race in races.items():
        op, case = re.fullmatch(r"(\w+)\[(.+)\]", name).groups()
        sides = {re.sub(r"(chunks|budget) of \d+", r"tuned \1", k): s for k, s in race["sides"].items()}
        ops.setdefault(op, {})[case] = sides
    tables = []
    for op, cases in ops.items():
        peers = list(dict.fromkeys(k for sides in cases.values() for k in sides if k != "tdlm_fast"))
        peers = [p for p in peers if any("ms" in sides.get(p, {}) for sides in cases.values())]
        peaks = any(sides["tdlm_fast"].get("peak_mb") is not None for sides in cases.values())
        columns = [op.replace("_", " "), "ours, µs", "of the limit", *["peak MB"] * peaks, *peers]
        rows = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for case, sides in cases.items():
            ours = sides["tdlm_fast"]
            times = [f"{sides[p]['ms'] / ours['ms']:.2f}" if "ms" in sides.get(p, {}) else "–" for p in peers]
            peak = [f"{ours['peak_mb']:,.0f}"] if peaks else []
            cells = [case, f"{ours['ms'] * 1e3:,.0f}", f"{ours['share']:.0%}", *peak, *times]
            rows.append(f"| {' | '.join(cells)} |")
        tables.append("\n".join(rows))
    return "\n\n".join(tables)


def cpu_ops() -> str:
    """Every op alone on a CPU with AMX, of `make bench`."""
    found = _read("kernels-cpu-amx.json")
    words = (
        f"{found['device']}, with AMX; PyTorch {found['torch']}; medians of shuffled rounds, peers' times as multiples "
        "of ours. The limit is the longer of the products at the rate of a large bf16 product and the bytes at that of "
        "a copy, both measured in the same rounds; what mostly reads can be above it. On a CPU the embedding is "
        "PyTorch's own, so what differs there is noise."
    )
    return race_tables(found["races"]) + "\n\n" + words


def limit_table(profile: list[dict]) -> str:
    """Where a step spends its time, and the limit of each op: the bytes and products it cannot do without."""
    rows = ["| op | a step, µs | share | its limit, µs | of the limit |", "|---|---|---|---|---|"]
    for row in profile:
        limit = row.get("limit_ms")
        of = f"{limit * 1e3:,.1f} | {limit / row['ms']:.0%}" if limit and row["ms"] else "– | –"
        rows.append(f"| `{row['op'].removeprefix('tdlm::')}` | {row['ms'] * 1e3:,.1f} | {row['share']:.1%} | {of} |")
    return "\n".join(rows)


def steps(folder: Path) -> dict | None:
    """{objective: what bench_step wrote}, None where one is missing."""
    files = {o: folder / f"step-tiny-{o}.json" for o in OBJECTIVES}
    return {o: json.loads(f.read_text()) for o, f in files.items()} if all(map(Path.is_file, files.values())) else None


def measured(folder: Path = GPU) -> str:
    """What bench/gpu.sh measured, or that nobody has run it."""
    runs = steps(folder)
    if runs is None:
        return "No GPU figure has been measured yet."
    parts = [tables_cpu.step_table(runs)]
    for objective, run in runs.items():
        if run.get("profile"):
            parts.append(f"Where the {objective} step, launched op by op, spends its time:")
            parts.append(limit_table(run["profile"]))
    if any(run.get("profile") for run in runs.values()):
        parts.append("![The ops of a step and their limits](step-gpu.svg)")
    if (folder / "kernels.json").is_file():
        found = json.loads((folder / "kernels.json").read_text())
        times = "peers' times as multiples of ours"
        parts.append(f"Each op alone on {found['device']}, PyTorch {found['torch']}; {times}:")
        parts.append(race_tables(found["races"]))
    return "\n\n".join(parts)


def plot_limits(path: Path, folder: Path = GPU) -> bool:
    """A bar an op of the step, and in it its limit; False where there is nothing to draw."""
    runs = {o: run["profile"] for o, run in (steps(folder) or {}).items() if run.get("profile")}
    if not runs:
        return False
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "tdlm_fast"  # the same file from the same figures
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(runs), figsize=(9, 3.6), layout="constrained", squeeze=False)
    for axis, (objective, profile) in zip(axes[0], runs.items(), strict=True):
        names = [row["op"].removeprefix("tdlm::").removeprefix("aten::") for row in profile]
        axis.barh(names, [row["ms"] * 1e3 for row in profile], color="#9ecae1", label="measured")
        limits = [row.get("limit_ms", 0) * 1e3 for row in profile]
        axis.barh(names, limits, height=0.4, color="#08519c", label="its limit")
        axis.set(title=objective, xlabel="µs a step")
        axis.invert_yaxis()
        axis.tick_params(axis="y", labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].legend(frameon=False, loc="lower right")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110)
    plt.close(figure)
    return True


TABLES = {
    "crossovers": crossovers, "registers": registers, "projected-head": projected_head, "launches": launches,
    "projected-step": projected_step,
}  # fmt: skip
