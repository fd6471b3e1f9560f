"""Tables about GPUs.

Those of docs/gpu.md come from resources.json, launches.json, projection.json and prototypes.json, none of which was
measured on a GPU.
Those of docs/performance.md come from the files of bench/gpu.sh, where they exist.
"""

import json
import re
from pathlib import Path

from bench.docs_tables import claims, cpu
from bench.docs_tables.bars import Bar, bars
from bench.docs_tables.results import OBJECTIVES, RESULTS, read, table
from bench.without_gpu import rates

GPU = RESULTS / "gpu"  # where bench/gpu.sh writes


def registers() -> str:
    """Registers, shared memory and programs per multiprocessor of the largest kernels at tiny, per card."""
    shown = ("forward, bfloat16, D 64", "weight, bfloat16, D 64", "attention's gradient, bfloat16, T 128, K 16, turned")
    now, older = read("resources.json"), read("resources-older.json")
    rows = [("registers, KB, programs", "forward", "weight", "attention's gradient", "kernels compiled", "that spill",
             f"with Triton {older['triton'][:3]}")]  # fmt: skip
    for card, figures in now["cards"].items():
        cells = [figures.get(name) for name in shown]  # a kernel that would spill on a card is not run there
        text = [f"{c['registers']}, {c['shared'] / 1024:.1f}, {c['programs']}" if c else "–" for c in cells]
        spill = [sum(bool(r["stack"] or r["local"]) for r in of["cards"][card].values()) for of in (now, older)]
        rows.append((f"sm_{card}", *text, str(len(figures)), *map(str, spill)))
    return f"{table(*rows)}\n\nTriton {now['triton']}, except for the last column."


def projected_head() -> str:
    """The head's two passes at tiny, milliseconds of each pipe."""
    rows = [("projected, not measured", "instructions per logit", "products", "exp", "issue")]
    for card, of in read("projection.json")["cards"].items():
        for title, figures in of["head"].items():
            for side in ("forward", "weight"):
                f = figures[side]
                pipes = (f"{f['ms'][k]:.2f} ms" for k in ("products", "exp", "issue"))
                rows.append((f"sm_{card}, {title}, {side}", f"{f['instructions_a_logit']:.1f}", *pipes))
            low, high = figures["projected_ms"].values()
            whole = ("", f"{low:.2f} ms overlapped", f"{high:.2f} ms in turn", "")
            rows.append((f"sm_{card}, {title}, both", *whole))
    return table(*rows)


def projected_step() -> str:
    """A whole step at tiny by its parts: launches, megabytes, microseconds with and without a floor per launch."""
    figures = read("projection.json")
    cards = figures["cards"]
    names = [f"sm_{card}, {o}, µs" for card in cards for o in OBJECTIVES]
    rows = [("projected, not measured", "launches", "MB", *names)]
    first = cards["86"]["steps"]["diffusion"]["groups"]

    def span(low: float, high: float) -> str:
        return f"{low * 1e3:,.0f} to {high * 1e3:,.0f}"

    for g, row in first.items():
        cells = [span(s["groups"][g]["ms"], s["groups"][g]["ms_with_floor"])
                 for of in cards.values() for s in of["steps"].values()]  # fmt: skip
        rows.append((g, str(row["launches"]), f"{row['mb']:.0f}", *cells))
    wholes = [of["steps"][o]["whole"] for of in cards.values() for o in OBJECTIVES]
    launches, mb = (sum(row[k] for row in first.values()) for k in ("launches", "mb"))
    rows.append(("**step**", str(launches), f"{mb:.0f}", *(f"**{span(*w['ms'])}**" for w in wholes)))
    speeds = [f"{w['tokens_per_s'][1] / 1e6:.1f} to {w['tokens_per_s'][0] / 1e6:.1f}" for w in wholes]
    rows.append(("million places/s", "", "", *speeds))
    published = claims.runs("diffusion")[0]
    steps, tokens = (published["summary"][k] for k in ("steps", "tokens"))
    places = published["config"]["train.batch_size"] * published["config"]["model.seq_len"]
    lengths = [f"{steps * low / 1e3:.1f} to {steps * high / 1e3:.1f}" for low, high in (w["ms"] for w in wholes)]
    rows.append((f"the {steps:,} steps of the published run, s", "", "", *lengths))
    chips = "; ".join(
        f"sm_{card}: {of['chip']['name']}, {of['flop_per_s'] / 1e12:.0f} TFLOP/s, {of['bytes_per_s'] / 1e9:,.0f} GB/s"
        for card, of in cards.items()
    )
    words = (
        "Launches and MB are those of diffusion on sm_86. The lower figure is the limit of each launch: its bytes, "
        "none of them from a cache, over bandwidth, and for the head the slowest pipe too. The higher figure assumes "
        f"at least {figures['floor_us']} µs per launch, and that the head's products and exps take turns. A step has "
        f"{places:,} places. In packed rows each place is a token. The published run has a paragraph in each row, and "
        f"only {tokens / steps:,.0f} tokens a step; the rest is padding, and its tokens per second are fewer by that "
        f"factor. {chips}."
    )
    return f"{table(*rows)}\n\n{words}"


def launches() -> str:
    """Launches of a training step at tiny, part by part, and the ops with the most of them; not counted on a GPU."""
    figures = read("launches.json")
    rows = [("launches per step", *OBJECTIVES, "most of diffusion's")]
    for part, ops in figures["launches"]["diffusion"].items():
        counts = [str(sum(figures["launches"][o][part].values())) for o in OBJECTIVES]
        most = ", ".join(f"`{op.removeprefix('tdlm::')}` {n}" for op, n in list(ops.items())[:6])
        rows.append((part, *counts, most))
    return table(*rows, ("**all**", *(f"**{figures['totals'][o]}**" for o in OBJECTIVES), ""))


def crossovers() -> str:
    """The width from which the stored form is projected to be faster, by the fused kernels' share of cuBLAS's rate."""
    shares = (0.5, 0.7, 0.9)
    rows = [("projected width", *(f"at {s:.0%}" for s in shares))]
    for card in rates.RATES:
        rows.append((f"sm_{card}", *(f"{rates.crossover(card, s):,.0f}" for s in shares)))
    return table(*rows)


def prototypes() -> str:
    """The two larger designs: what their prototypes compile to, and the projected time of the body."""
    figures, cards = read("prototypes.json"), read("projection.json")["cards"]
    rows = [
        ("compiled, not run", "registers", "shared KB", "spilled bytes", "warps", "programs", "instructions per logit")
    ]
    of_all = [(f"body, {name}, sm_{card}", r) for card, of in figures["body"].items() for name, r in of.items()]
    of_all += [(f"head, {name}, sm_90", r) for name, r in figures["head"].items()]
    for name, r in of_all:
        numbers = (r["registers"], f"{r['shared'] / 1024:.0f}", r["stack"] + r["local"], r["warps"], r["programs"])
        a_logit = f"{r['instructions_a_logit']:.2f}" if "instructions_a_logit" in r else ""
        rows.append((name, *map(str, numbers), a_logit))
    times = [("body, projected, not measured", "launches now", "µs now", "launches of the design", "µs of the design")]
    for card, of in figures["arithmetic"].items():
        groups = cards[card]["steps"]["diffusion"]["groups"]
        replaced = [groups[name] for name in ("attention", "linear layers", "norms and gate")]
        now = [sum(r[k] for r in replaced) * 1e3 for k in ("ms", "ms_with_floor")]
        spans = (f"{low:,.0f} to {high:,.0f}" for low, high in (now, of["us"]))
        n = str(sum(r["launches"] for r in replaced))
        times.append((f"sm_{card}", n, next(spans), str(of["launches"]), next(spans)))
    return f"{table(*rows)}\n\n{table(*times)}"


def race_tables(races: dict) -> str:
    """A table per op: our time, its share of the limit measured beside it, and peers' times as multiples of ours."""
    ops: dict[str, dict] = {}
    for name, race in races.items():
        op, case = re.fullmatch(r"(\w+)\[(.+)\]", name).groups()
        ops.setdefault(op, {})[case] = cpu.one_name(race["sides"])
    tables = []
    for op, cases in ops.items():
        peers = list(dict.fromkeys(k for sides in cases.values() for k in sides if k != "tdlm_fast"))
        peers = [p for p in peers if any("ms" in sides.get(p, {}) for sides in cases.values())]
        peaks = any(sides["tdlm_fast"].get("peak_mb") is not None for sides in cases.values())
        rows = [(op.replace("_", " "), "ours, µs", "of the limit", *["peak MB"] * peaks, *peers)]
        for case, sides in cases.items():
            ours = sides["tdlm_fast"]
            times = [f"{sides[p]['ms'] / ours['ms']:.2f}" if "ms" in sides.get(p, {}) else "–" for p in peers]
            peak = [f"{ours['peak_mb']:,.0f}"] if peaks else []
            rows.append((case, f"{ours['ms'] * 1e3:,.0f}", f"{ours['share']:.0%}", *peak, *times))
        tables.append(table(*rows))
    return "\n\n".join(tables)


def cpu_ops() -> str:
    """Each op alone on a CPU with AMX, from `make bench`."""
    figures = read("kernels-cpu-amx.json")
    words = (
        f"{figures['device']}, with AMX; PyTorch {figures['torch']}; medians of shuffled rounds. The columns "
        "after “of the limit” hold the times of others as multiples of ours. The limit is the longer of two times: the "
        "products at the rate of a large bf16 product, and the bytes at the rate of a copy, both measured in the same "
        "rounds. An op that mostly reads can be above "
        "it. On a CPU the embedding is PyTorch's own, so its differences are noise."
    )
    return f"{race_tables(figures['races'])}\n\n{words}"


def limit_table(profile: list[dict]) -> str:
    """Where a step spends its time, and the limit of each op: the bytes and products that it cannot avoid."""
    rows = [("op", "µs per step", "share", "its limit, µs", "of the limit")]
    for row in profile:
        limit = row.get("limit_ms")
        of = (f"{limit * 1e3:,.1f}", f"{limit / row['ms']:.0%}") if limit and row["ms"] else ("–", "–")
        rows.append((f"`{row['op'].removeprefix('tdlm::')}`", f"{row['ms'] * 1e3:,.1f}", f"{row['share']:.1%}", *of))
    return table(*rows)


def steps(folder: Path) -> dict | None:
    """{objective: the file of bench.race.step} with the peers, else those of our side only; None without both."""
    for name in ("step-tiny", "step-ours"):
        files = {o: folder / f"{name}-{o}.json" for o in OBJECTIVES}
        if all(map(Path.is_file, files.values())):
            return {o: json.loads(f.read_text()) for o, f in files.items()}
    return None


def measured(folder: Path = GPU) -> str:
    """The figures of bench/gpu.sh, or a sentence that there are none."""
    runs = steps(folder)
    if runs is None:
        return "No GPU figure has been measured yet."
    parts = [cpu.step_table(runs)]
    for objective, run in runs.items():
        if run.get("profile"):
            parts.append(f"Where the {objective} step, launched op by op, spends its time:")
            parts.append(limit_table(run["profile"]))
    if any(run.get("profile") for run in runs.values()):
        parts.append("![The ops of a step and their limits](step-gpu.svg)")
    if (folder / "kernels.json").is_file():
        figures = json.loads((folder / "kernels.json").read_text())
        times = "peers' times as multiples of ours"
        parts.append(f"Each op alone on {figures['device']}, PyTorch {figures['torch']}; {times}:")
        parts.append(race_tables(figures["races"]))
    return "\n\n".join(parts)


def limits_picture(folder: Path = GPU) -> str:
    """A bar for each op of the step, and in it its limit; "" where there is no profile."""
    groups = {}
    for objective, run in (steps(folder) or {}).items():
        if run.get("profile"):
            names = [row["op"].removeprefix("tdlm::").removeprefix("aten::") for row in run["profile"]]
            groups[objective] = [
                Bar(name, row["ms"], f"{row['ms'] * 1e3:,.0f} µs", 1, row.get("limit_ms", 0.0))
                for name, row in zip(names, run["profile"], strict=True)
            ]
    return bars("Ops of a training step, and inside each bar its limit", groups) if groups else ""


TABLES = {
    "crossovers": crossovers, "registers": registers, "projected-head": projected_head, "launches": launches,
    "projected-step": projected_step, "prototypes": prototypes,
}  # fmt: skip
