"""Tables of docs/reliability.md, from faults.json and fuzz.json."""

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
    return f"{table(head, *lines)}\n\n{total:,} inputs in all, drawn from seed {held['seed']}."


TABLES = {"faults": faults, "fuzz": fuzz}
