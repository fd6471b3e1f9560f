"""The table of docs/evaluation.md about a source of known entropy, and the note of configs/markov.yaml."""

from bench.docs_tables.results import read, table

ORDERS = ("bound", "left-to-right", "confidence", "next token")


def _signed(above: list[float]) -> str:
    mean, stderr = above
    return f"{mean:+.4f} ± {stderr:.4f}"


def _order(order: int, runs: list[dict]) -> list[tuple]:
    """Return the rows of one source: each objective, then the models that count."""
    name, own = f"`markov-{order}`", runs[0]["source"]["nats_per_token"]
    tests = [(r["objective"], r["test"]["nats_per_token"], r["test"]["stderr"]) for r in runs]
    tests += [(base, nats, 0.0) for base, nats in runs[0]["baselines"].items()]
    return [
        (name, model, f"≤ {nats:.4f} ± {error:.4f}" if error else f"{nats:.4f}", f"{own:.4f}", f"{nats - own:+.4f}")
        for model, nats, error in tests
    ]


def markov() -> str:
    """How far both objectives end from the source, on the whole test split and by order on a part of its rows."""
    runs, parts = read("markov.json")["runs"], []
    rows = [("source", "model", "test, nats per token", "the source itself", "above it")]
    for order in dict.fromkeys(r["order"] for r in runs):
        rows += _order(order, [r for r in runs if r["order"] == order])
    for r in runs:
        above = r["above_source"]
        each = ", ".join(f"{name} {_signed(above[name])}" for name in ORDERS if name in above)
        parts.append(f"{r['objective']} on `markov-{r['order']}`: {each}")
    one = runs[0]
    words = (
        f"{one['steps']:,} steps of {one['parameters']:,} parameters; ± is a standard error. The source is scored on "
        "the same rows, so a difference varies less than its two sides. These are the nats per token above the source "
        f"on {one['rows']:,} rows of the test split, with errors over rows. {'; '.join(parts)}."
    )
    return f"{table(*rows)}\n\n{words}"


def config_note() -> str:
    """The comment line with the measured losses of configs/markov.yaml."""
    ends = []
    for r in read("markov.json")["runs"]:
        if r["order"] == 1:
            bound, own = "<= " * bool(r["test"]["stderr"]), r["source"]["nats_per_token"]
            ends.append(
                f"{r['objective']} test {bound}{r['test']['nats_per_token']:.3f} nats per token, the source {own:.3f}"
            )
    return f"#   measured: {'; '.join(ends)} (bench/results/markov.json)"


TABLES = {"markov": markov}
