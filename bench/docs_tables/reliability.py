"""Tables of docs/reliability.md, from faults.json, fuzz.json and long-run.json."""

from bench.docs_tables.results import read, table


def faults() -> str:
    """How many cases of each fault passed, in the last run of `make test-faults` that is kept."""
    held = read("faults.json")
    rows = table(("fault", "cases that passed"), *((kind, f"{n:,}") for kind, n in held["cases"].items()))
    note = f" {held['note']}" if "note" in held else ""
    again = f"TDLM_FAULTS_SEED={held['seed']} draws the same cases again; moments also depend on the machine."
    return f"{rows}\n\n{again}{note}"


def fuzz() -> str:
    """How many inputs of each kind were tried, in the last run of `make test-fuzz` that is kept."""
    held = read("fuzz.json")
    lines = [
        (name, f"{e['inputs']:,}", f"{e['slowest_s']:.2f}", f"{e['added_mb']:.0f}")
        for name, e in held["targets"].items()
    ]
    total = sum(e["inputs"] for e in held["targets"].values())
    head = ("input", "tried, all passed", "slowest, CPU seconds", "memory added, MB")
    note = f" {held['note']}" if "note" in held else ""
    return f"{table(head, *lines)}\n\n{total:,} inputs in all, drawn from seed {held['seed']}.{note}"


def long_run() -> str:
    """Memory and the time of a step early and late in a long run."""
    held = read("long-run.json")
    head = (
        "objective", "steps", "resident MB, early", "late", "late / early",
        "CPU ms a step, early", "late", "late / early, clock taken out (95 %)",
    )  # fmt: skip
    lines = []
    for objective, e in held["runs"].items():
        mb, ms = e["resident_mb"], e["cpu_ms_per_step"]
        interval = f"{ms['ratio']:.3f} ({ms['low']:.3f} to {ms['high']:.3f})"
        memory = (f"{mb['early']:.1f}", f"{mb['late']:.1f}", f"{mb['ratio']:.4f}")
        lines.append((objective, f"{e['steps']:,}", *memory, f"{ms['early']:.2f}", f"{ms['late']:.2f}", interval))
    return f"{table(head, *lines)}\n\nProcessor: {held['cpu']}, one thread."


TABLES = {"faults": faults, "fuzz": fuzz, "long-run": long_run}
