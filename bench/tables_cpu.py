"""Tables of docs/performance.md from bench/results: step-cpu-*.json, kernels-cpu.json and precision-cpu.json."""

import json
import re
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
OBJECTIVES = ("diffusion", "autoregressive")
HEAD_CASES = {"diffusion": "tiny, masked half", "autoregressive": "tiny"}


def _read(name: str) -> dict:
    return json.loads((RESULTS / name).read_text())


def ms(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def cpu_step() -> str:
    """The whole training step, ours and plain PyTorch's, both objectives."""
    return step_table({o: _read(f"step-cpu-{o}.json") for o in OBJECTIVES})


def step_table(runs: dict) -> str:
    """What bench_step wrote of both objectives, side by side."""
    shape, first = runs["diffusion"]["shape"], runs["diffusion"]
    rows = ["| whole step | diffusion, ms | tokens/s | ratio | AR, ms | tokens/s | ratio | peak memory, MB |"]
    rows.append("|---|---|---|---|---|---|---|---|")
    for side in first["sides"]:
        cells, memory = [], []
        for run in runs.values():
            s, ours = run["sides"].get(side), run["sides"]["ours"]
            if s is None:
                cells += ["–"] * 3
                continue
            time = f"{ms(s['step_ms'])} ({ms(s['fastest_ms'])} to {ms(s['slowest_ms'])})"
            cells += [time, f"{s['tokens_per_s']:,.0f}", f"{s['step_ms'] / ours['step_ms']:.1f}"]
            memory.append(s["peak_mb"] or 0)
        rows.append(f"| {side} | " + " | ".join(cells) + f" | {max(memory):,.0f} |")
    absent = "; ".join(f"{k}: {v}" for k, v in first["absent"].items())
    words = (
        f"B {shape['B']}, T {shape['T']}, D {shape['D']}, V {shape['V']:,}, {shape['layers']} layers, rows without "
        f"padding; {first['device']}; PyTorch {first['versions']['torch']}; medians, and fastest to slowest, of "
        f"{first['rounds']} rounds, all sides in one process in turns. Ratio: this side's time over ours. "
        f"Absent: {absent}."
    )
    return "\n".join(rows) + "\n\n" + words


def cpu_profile() -> str:
    """Where our step spends its time."""
    rows = ["| operation | diffusion | AR |", "|---|---|---|"]
    shares = {o: {r["op"]: r["share"] for r in _read(f"step-cpu-{o}.json")["profile"]} for o in OBJECTIVES}
    for op in list(shares["diffusion"])[:10]:
        name = op.replace("GeneratedBackwardFor_", "").replace("_default", "")
        rows.append(f"| `{name}` | " + " | ".join(f"{shares[o].get(op, 0):.1%}" for o in OBJECTIVES) + " |")
    return "\n".join(rows)


def cpu_head() -> str:
    """The head alone, forward and both gradients, and its share of what a large bf16 product reaches."""
    races = _read("kernels-cpu.json")["races"]
    found = {o: races[f"linear_cross_entropy[{case}]"] for o, case in HEAD_CASES.items()}
    for race in found.values():  # the best chunk is another in either case
        race["sides"] = {re.sub(r"(chunks|budget) of \d+", r"tuned \1", k): s for k, s in race["sides"].items()}
    rows = ["| head alone | half of 8,192 rows, ms | ratio | all rows, ms | ratio |", "|---|---|---|---|---|"]
    for side, first in found["diffusion"]["sides"].items():
        cells = []
        for race in found.values():
            s, ours = race["sides"].get(side, {}), race["sides"]["tdlm_fast"]
            cells += [f"{s['ms']:,.0f}", f"{s['ms'] / ours['ms']:.1f}"] if "ms" in s else ["–"] * 2
        if "ms" in first:
            rows.append(f"| {side} | " + " | ".join(cells) + " |")
    words = []
    for o, race in found.items():
        # TFLOP/s count the three products that a head needs, and it makes no more.
        rate, made = race["limits"]["flops"] / 1e12, race["sides"]["tdlm_fast"]["tflop_per_s"]
        four = 4 / 3 * made / rate
        words.append(f"{o}: {made:.3f} of {rate:.3f} TFLOP/s, {made / rate:.0%}, or {four:.0%} counted on four")
    return (
        "\n".join(rows)
        + f"""

D 64, V 50,257, bf16 products; medians in turns. Share of the rate of a large bf16 product measured in the same rounds,
on the three products that are made: {"; ".join(words)}."""
    )


def precision() -> str:
    """Training with bf16 products, and with fp16 sums, against fp32 ones over the same steps."""
    found = _read("precision-cpu.json")
    rows = ["| | compared with fp32 | largest difference | in the last window | largest difference of two seeds |"]
    rows.append("|---|---|---|---|---|")
    for objective, o in found["objectives"].items():
        for name, d in o["differences_from_fp32"].items():
            cells = f"{d['largest']:.4f} | {d['last']:.4f} | {o['largest_difference_of_seeds']:.4f}"
            rows.append(f"| {objective} | {name} | {cells} |")
    words = (
        f"Nats per token, means over windows of {found['window']} steps of {found['steps']} in all, batches of "
        f"{found['batch_size']}, {found['corpus']}; {found['device']}."
    )
    return "\n".join(rows) + "\n\n" + words


TABLES = {"cpu-step": cpu_step, "cpu-head": cpu_head, "cpu-profile": cpu_profile, "cpu-precision": precision}
