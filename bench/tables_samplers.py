"""Tables of docs/sampling.md from bench/results/samplers.json."""

import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def about(found: dict) -> str:
    """What the figures of sampling are of, in words."""
    models = " and ".join(
        f"{m['objective']} ({m['parameters']:,} parameters, {m['steps']:,} steps, test {m['test']:.3f} nats per token)"
        for m in found["models"]
    )
    toy = "Toy models of bytes, trained for a minute: the figures show the method, not good text. "
    return f"{toy if found['toy'] else ''}{models}, on {found['corpus']}; texts of {found['tokens_a_text']} tokens."


def texts() -> str:
    """Nats under the autoregressive run and entropy of texts by schedule, method and number of steps."""
    found = json.loads((RESULTS / "samplers.json").read_text())
    by = {(e["method"], e["steps"], e["unmasking"]): e for e in found["samples"]}
    schedules = list(dict.fromkeys(e["unmasking"] for e in found["samples"]))
    rows = ["| method | steps | evaluations a text | " + " | ".join(schedules) + " |"]
    rows.append("|---|---|---|" + "---|" * len(schedules))

    def cell(e):
        return f"{e['nats'][0]:.3f} ± {e['nats'][1]:.3f}, {e['entropy'][0]:.2f}"

    for method, steps in dict.fromkeys((e["method"], e["steps"]) for e in found["samples"]):
        each = [by[method, steps, u] for u in schedules]
        evaluations = list(dict.fromkeys(f"{e['evaluations_a_text']:.1f}" for e in each))
        rows.append(f"| {method} | {steps} | {', '.join(evaluations)} | {' | '.join(map(cell, each))} |")
    words = (
        f"Nats per token under the autoregressive run ± standard error, and entropy of a text's own tokens in nats; "
        f"{found['texts']} texts each. Held-out text: {cell(found['held_out'])}; the autoregressive run's own texts: "
        f"{cell(found['autoregressive_samples'])}. {about(found)}"
    )
    return "\n".join(rows) + "\n\n" + words


def steps() -> str:
    """How unequal the steps of a schedule are, and what parallel writing costs."""
    found = json.loads((RESULTS / "samplers.json").read_text())
    rows = ["| steps | schedule | Fisher-Rao length | nats written | excess | excess, nats a text |"]
    rows.append("|---|---|---|---|---|---|")

    def interval(x, digits=2):
        return f"{x[0]:.{digits}f} ({x[1]:.{digits}f} to {x[2]:.{digits}f})"

    for e in found["difficulty"]:
        some = e["excess_nats_a_text"][1] > 0  # else a spread of it is one of noise
        spreads = f"{interval(e['spread_of_pays'])} | {interval(e['spread_of_excess']) if some else '–'}"
        total = interval(e["excess_nats_a_text"])
        rows.append(f"| {e['steps']} | {e['unmasking']} | {e['spread_of_length']:.2f} | {spreads} | {total} |")
    named = [e for e in found["difficulty"] if e["unmasking"] != "best"]
    words = [
        "The three columns in the middle are coefficients of variation over the steps, 0 where all are equal; in "
        f"brackets the 95 % interval over {found['held_out_texts']} held-out texts; – where the excess is not told "
        f"from 0. {about(found)}"
    ]

    def least(each, of):
        best = min(each, key=lambda e: e[of][0])
        apart = all(best[of][2] < e[of][1] for e in each if e is not best)
        return best["unmasking"] if apart else "none for certain"

    for S in dict.fromkeys(e["steps"] for e in named):
        each = [e for e in named if e["steps"] == S]
        words.append(
            f"- {S} steps: the most equal nats written has {least(each, 'spread_of_pays')}, the most equal excess "
            f"{least(each, 'spread_of_excess')}, the least excess {least(each, 'excess_nats_a_text')}."
        )
    words[1:1] = ["A schedule is named where its interval lies below those of the other two."]
    return "\n".join(rows) + "\n\n" + "\n\n".join(words[:2]) + "\n\n" + "\n".join(words[2:])


TABLES = {"texts": texts, "steps": steps}
