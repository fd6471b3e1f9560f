"""The table of docs/scaling.md about sweeps whose workers were killed, from sweep-kills.json."""

from bench.docs_tables.results import read, table


def kills() -> str:
    """How many kills of each kind the reports survived, in the last long form that is kept."""
    held = read("sweep-kills.json")
    rows = table(("kill", "times"), *((kind, f"{n:,}") for kind, n in held["cases"].items()))
    return f"{rows}\n\nTDLM_FAULTS_SEED={held['seed']} draws the same cases again; moments also depend on the machine."


TABLES = {"sweep-kills": kills}
