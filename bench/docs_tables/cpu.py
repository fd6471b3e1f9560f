"""Tables of docs/performance.md and the first figures of README, from step-cpu-*.json, kernels-cpu.json and
precision-cpu.json."""

import re

from bench.docs_tables.bars import Bar, bars
from bench.docs_tables.results import OBJECTIVES, read, table

HEAD_CASES = {"diffusion": "tiny, masked half", "autoregressive": "tiny"}
PEERS = {"torch.compile": "plain, compiled, bf16", "plain PyTorch": "plain, bf16"}  # of README, names and sides


def ms(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def _steps(kind: str = "cpu") -> dict[str, dict]:
    return {o: read(f"step-{kind}-{o}.json") for o in OBJECTIVES}


def _machine(run: dict) -> str:
    """The processor of a run, in words."""
    kind, threads, best = re.match(r"cpu \((\w+), (\d+) threads, (\w+)", run["device"]).groups()
    names = {"avx512_bf16": "AVX-512 BF16", "avx512": "AVX-512", "avx2": "AVX2"}
    return f"{threads} {kind} threads with {names.get(best, best)}"


def headline() -> str:
    """Three figures of the whole training step for README's first screen."""
    runs, lines = _steps(), []
    for peer, key, won in (
        ("plain PyTorch", "step_ms", "{:.1f} times as fast as plain PyTorch"),
        ("torch.compile", "step_ms", "{:.1f} times as fast as `torch.compile` of plain PyTorch"),
        ("plain PyTorch", "peak_mb", "plain PyTorch needs {:.1f} times the memory"),
    ):
        d, a = (run["sides"][PEERS[peer]][key] / run["sides"]["ours"][key] for run in runs.values())
        lines.append(f"- **{won.format(d)}** for diffusion, {a:.1f} times for autoregressive")
    first = runs["diffusion"]
    with_amx = (
        run["sides"][PEERS[peer]]["step_ms"] / run["sides"]["ours"]["step_ms"]
        for peer in ("plain PyTorch", "torch.compile") for run in _steps("cpu-amx").values()
    )  # fmt: skip
    plain_d, plain_a, compiled_d, compiled_a = (f"{ratio:.1f}" for ratio in with_amx)
    return "\n".join([
        f"A whole training step of `{first['config']}`, measured on {_machine(first)}:\n", *lines,
        "\nOn a processor with AMX, which PyTorch uses and these kernels do not, the factors of time are "
        f"{plain_d} and {plain_a} against plain PyTorch, {compiled_d} and {compiled_a} against `torch.compile`: "
        "[docs/performance.md](docs/performance.md#cpu-the-whole-step).\n",
        "![Time and memory of one training step: tdlm_fast, torch.compile, plain PyTorch](docs/step.svg)",
    ])  # fmt: skip


def step_picture() -> str:
    """Time of a training step of both objectives and its peak memory, each beside the peers of README."""
    runs, groups = _steps(), {}
    for heading, objective, key, unit in (
        ("diffusion, time", "diffusion", "step_ms", "ms"),
        ("autoregressive, time", "autoregressive", "step_ms", "ms"),
        ("diffusion, peak memory of the process", "diffusion", "peak_mb", "MB"),
    ):
        sides = runs[objective]["sides"]
        ours = sides["ours"][key]
        groups[heading] = [Bar("tdlm_fast", ours, f"{ours:,.0f} {unit}", 1)]
        for peer, side in PEERS.items():
            value = sides[side][key]
            groups[heading].append(Bar(peer, value, f"{value:,.0f} {unit}, {value / ours:.1f}×", 7))
    return bars(f"One training step on {_machine(runs['diffusion'])}", groups)


def cpu_step() -> str:
    """The whole training step, ours and plain PyTorch's, both objectives."""
    return step_table(_steps())


def cpu_step_amx() -> str:
    """The whole training step on a processor with AMX."""
    return step_table(_steps("cpu-amx"))


def rows_of_text(runs: dict) -> str:
    """How full the rows of a race of steps were, in words. Raises ValueError where the files do not say it, or differ.

    Files without tokens_per_step counted every place of a batch as a token, which is right only for packed rows.
    """
    words = set()
    for run in runs.values():
        layout = next((o.partition("=")[2] for o in run["overrides"] if o.startswith("data.layout=")), "")
        layout = run.get("layout", layout)
        if layout == "packed":
            words.add("packed rows, without padding")
            continue
        tokens = run["sides"]["ours"].get("tokens_per_step")
        if layout not in ("paragraphs", "published") or tokens is None:
            raise ValueError(
                f"the rows of {run['objective']} may be padded, and its file counts no tokens: measure again"
            )
        words.add(
            f"a paragraph a row: {tokens:,.0f} tokens of {run['shape']['B'] * run['shape']['T']:,} places on average"
        )
    if len(words) > 1 and not all("paragraph" in w for w in words):
        raise ValueError("one objective was measured on packed rows, the other on padded ones")
    return sorted(words)[0]


def step_table(runs: dict) -> str:
    """The figures that bench.race.step wrote of both objectives, side by side."""
    shape, first = runs["diffusion"]["shape"], runs["diffusion"]
    reserved = any(s.get("reserved_mb") for run in runs.values() for s in run["sides"].values())
    rows = [("whole step", "diffusion, ms", "tokens/s", "ratio", "autoregressive, ms", "tokens/s", "ratio",
             "peak memory, MB", *["reserved, MB"] * reserved)]  # fmt: skip
    for side in first["sides"]:
        cells, memory, held = [], [], [0.0]
        for run in runs.values():
            s, ours = run["sides"].get(side), run["sides"]["ours"]
            if s is None:
                cells += ["–"] * 3
                continue
            time = f"{ms(s['step_ms'])} ({ms(s['fastest_ms'])} to {ms(s['slowest_ms'])})"
            cells += [time, f"{s['tokens_per_s']:,.0f}", f"{s['step_ms'] / ours['step_ms']:.1f}"]
            memory.append(s["peak_mb"] or 0)
            held.append(s.get("reserved_mb") or 0)
        peaks = [max(memory)] + [max(held)] * reserved
        rows.append((side, *cells, *(f"{peak:,.0f}" if peak else "–" for peak in peaks)))
    absent = "; ".join(f"{k}: {v}" for k, v in first["absent"].items())
    words = (
        f"B {shape['B']}, T {shape['T']}, D {shape['D']}, V {shape['V']:,}, {shape['layers']} layers, "
        f"{rows_of_text(runs)}. {first['device']}; PyTorch {first['versions']['torch']}. "
        f"Medians of {first['rounds']} rounds, in brackets the fastest and the slowest; all sides take turns in one "
        "process. Ratio: this side's time over ours. "
        + ("Peak memory: that of the objective that needs more. " if any(memory) else "")
        + ("Reserved: with what PyTorch's allocator keeps for later, the pool of the graph included. " * reserved)
        + (f"Not installed: {absent}." if absent else "")
    )
    return f"{table(*rows)}\n\n{words.strip()}"


def cpu_profile() -> str:
    """Where our step spends its time."""
    shares = {o: {r["op"]: r["share"] for r in run["profile"]} for o, run in _steps().items()}
    rows = [("operation", *OBJECTIVES)]
    for op in list(shares["diffusion"])[:10]:
        name = op.replace("GeneratedBackwardFor_", "").replace("_default", "")
        rows.append((f"`{name}`", *(f"{shares[o].get(op, 0):.1%}" for o in OBJECTIVES)))
    return table(*rows)


def one_name(sides: dict) -> dict:
    """The sides of a race; those that were tuned are called so, whatever their best setting was."""
    return {re.sub(r"(chunks|budget) of \d+", r"tuned \1", name): side for name, side in sides.items()}


def cpu_head() -> str:
    """The head only, forward and both gradients, and its share of the rate of a large bf16 product."""
    races = read("kernels-cpu.json")["races"]
    figures = {o: races[f"linear_cross_entropy[{case}]"] for o, case in HEAD_CASES.items()}
    sides = [one_name(race["sides"]) for race in figures.values()]
    rows = [("head only", "half of 8,192 rows, ms", "ratio", "all rows, ms", "ratio")]
    for name, first in sides[0].items():
        cells = []
        for each in sides:
            s, ours = each.get(name, {}), each["tdlm_fast"]
            cells += [f"{s['ms']:,.0f}", f"{s['ms'] / ours['ms']:.1f}"] if "ms" in s else ["–"] * 2
        if "ms" in first:
            rows.append((name, *cells))
    words = []
    for o, race in figures.items():  # TFLOP/s count the three products that a head needs; ours makes no more
        rate, made = race["limits"]["flops"] / 1e12, race["sides"]["tdlm_fast"]["tflop_per_s"]
        words.append(
            f"{o} {made:.3f} of {rate:.3f} TFLOP/s, which is {made / rate:.0%}, or {4 / 3 * made / rate:.0%} counted "
            "as four products"
        )
    return f"""{table(*rows)}

D 64, V 50,257, bf16 products; medians, all sides in turns. Our share of the rate of a large bf16 product, measured in
the same rounds and counting the three products that are made: {"; ".join(words)}."""


def precision() -> str:
    """Training with bf16 products, and with fp16 sums, against fp32 products over the same steps."""
    figures = read("precision-cpu.json")
    rows = [("", "compared with fp32", "largest difference", "in the last window",
             "largest difference of two seeds")]  # fmt: skip
    for objective, o in figures["objectives"].items():
        for name, d in o["differences_from_fp32"].items():
            cells = (d["largest"], d["last"], o["largest_difference_of_seeds"])
            rows.append((objective, name, *(f"{v:.4f}" for v in cells)))
    words = (
        f"Nats per token, means over windows of {figures['window']} steps, {figures['steps']} steps in all, batches of "
        f"{figures['batch_size']}, {figures['corpus']}; {figures['device']}."
    )
    return f"{table(*rows)}\n\n{words}"


TABLES = {
    "cpu-step": cpu_step,
    "cpu-step-amx": cpu_step_amx,
    "cpu-head": cpu_head,
    "cpu-profile": cpu_profile,
    "cpu-precision": precision,
}
