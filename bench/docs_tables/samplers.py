"""Tables of docs/sampling.md, from samplers.json."""

from bench.docs_tables.results import read, table


def about(found: dict) -> str:
    """The models and the text that the figures of sampling are of, in words."""
    models = " and ".join(
        f"{m['objective']} ({m['parameters']:,} parameters, {m['steps']:,} steps, test {m['test']:.3f} nats per token)"
        for m in found["models"]
    )
    toy = "Toy models of bytes, trained for a minute: the figures show the method, not good text. "
    size = f"texts of {found['tokens_a_text']} tokens"
    return f"{toy if found['toy'] else ''}The runs: {models}, on {found['corpus']}; {size}."


def texts() -> str:
    """Nats under the autoregressive run and entropy of texts by schedule, method and number of steps."""
    figures = read("samplers.json")
    by = {(e["method"], e["steps"], e["unmasking"]): e for e in figures["samples"]}
    schedules = list(dict.fromkeys(e["unmasking"] for e in figures["samples"]))
    rows = [("method", "steps", "evaluations per text", *schedules)]

    def cell(e):
        return f"{e['nats'][0]:.3f} ± {e['nats'][1]:.3f}, {e['entropy'][0]:.2f}"

    for method, steps in dict.fromkeys((e["method"], e["steps"]) for e in figures["samples"]):
        each = [by[method, steps, u] for u in schedules]
        evaluations = dict.fromkeys(f"{e['evaluations_a_text']:.1f}" for e in each)
        rows.append((method, str(steps), ", ".join(evaluations), *map(cell, each)))
    words = (
        "Each cell: nats per token under the autoregressive run ± standard error, then the entropy of a text's own "
        f"tokens in nats; {figures['texts']} texts each. Held-out text: {cell(figures['held_out'])}; the "
        f"autoregressive run's own texts: {cell(figures['autoregressive_samples'])}. {about(figures)}"
    )
    return f"{table(*rows)}\n\n{words}"


def steps() -> str:
    """How unequal the steps of a schedule are, and what parallel writing costs."""
    figures = read("samplers.json")
    rows = [("steps", "schedule", "Fisher-Rao length", "nats written", "excess", "excess, nats per text")]

    def interval(x):
        return "{:.2f} ({:.2f} to {:.2f})".format(*x)

    for e in figures["difficulty"]:
        some = e["excess_nats_a_text"][1] > 0  # otherwise its spread is one of noise
        spreads = interval(e["spread_of_pays"]), interval(e["spread_of_excess"]) if some else "–"
        total = interval(e["excess_nats_a_text"])
        rows.append((str(e["steps"]), e["unmasking"], f"{e['spread_of_length']:.2f}", *spreads, total))
    words = (
        "The three columns in the middle are coefficients of variation over the steps, 0 where all are equal. "
        f"Brackets hold the 95 % interval over {figures['held_out_texts']} held-out texts. A – marks an excess whose "
        f"interval contains 0. {about(figures)}\n\n"
        "Below, a schedule is named where its interval lies below those of the other two."
    )

    def least(each, of):
        best = min(each, key=lambda e: e[of][0])
        apart = all(best[of][2] < e[of][1] for e in each if e is not best)
        return best["unmasking"] if apart else "none for certain"

    named, lines = [e for e in figures["difficulty"] if e["unmasking"] != "best"], []
    for S in dict.fromkeys(e["steps"] for e in named):
        each = [e for e in named if e["steps"] == S]
        lines.append(
            f"- {S} steps: nats written most equal: {least(each, 'spread_of_pays')}; excess most equal: "
            f"{least(each, 'spread_of_excess')}; least excess: {least(each, 'excess_nats_a_text')}."
        )
    return f"{table(*rows)}\n\n{words}\n\n" + "\n".join(lines)


TABLES = {"texts": texts, "steps": steps}
