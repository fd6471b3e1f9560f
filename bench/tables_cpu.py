"""Tables of docs/performance.md from bench/results/step-cpu-*.json, head-cpu.json and precision-cpu.json."""

import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
OBJECTIVES = ("diffusion", "autoregressive")


def _read(name: str) -> dict:
    return json.loads((RESULTS / name).read_text())


def cpu_step() -> str:
    """The whole training step, ours and plain PyTorch's, both objectives."""
    runs = {o: _read(f"step-cpu-{o}.json") for o in OBJECTIVES}
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
            cells += [f"{s['step_ms']:,.0f}", f"{s['tokens_per_s']:,.0f}", f"{s['step_ms'] / ours['step_ms']:.1f}"]
            memory.append(s["peak_mb"] or 0)
        rows.append(f"| {side} | " + " | ".join(cells) + f" | {max(memory):,.0f} |")
    absent = "; ".join(f"{k}: {v}" for k, v in first["absent"].items())
    words = (
        f"B {shape['B']}, T {shape['T']}, D {shape['D']}, V {shape['V']:,}, {shape['layers']} layers, rows without "
        f"padding; {first['device']}; PyTorch {first['versions']['torch']}; medians of {first['rounds']} rounds, all "
        f"sides in one process in turns. Ratio: this side's time over ours. Absent: {absent}."
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


def precision() -> str:
    """bf16 against fp32 products over the same steps."""
    found = _read("precision-cpu.json")
    rows = ["| | largest difference of bf16 and fp32 | in the last window | largest difference of two seeds |"]
    rows.append("|---|---|---|---|")
    for objective, o in found["objectives"].items():
        keys = ("largest_difference_of_precisions", "last_difference_of_precisions", "largest_difference_of_seeds")
        rows.append(f"| {objective} | " + " | ".join(f"{o[k]:.4f}" for k in keys) + " |")
    words = (
        f"Nats per token, means over windows of {found['window']} steps of {found['steps']} in all, batches of "
        f"{found['batch_size']}, {found['corpus']}; {found['device']}."
    )
    return "\n".join(rows) + "\n\n" + words


TABLES = {"cpu-step": cpu_step, "cpu-profile": cpu_profile, "cpu-precision": precision}
