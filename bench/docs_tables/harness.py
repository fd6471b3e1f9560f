"""Tables of docs/evaluation.md, from harness.json and the published experiment's runs."""

from bench.docs_tables import claims
from bench.docs_tables.results import read, table
from tdlm_fast.comparison import tables

NAMES = {
    "hellaswag": "HellaSwag", "mmlu": "MMLU, letters", "mmlu_text": "MMLU, texts", "arc_easy": "ARC-easy",
    "piqa": "PIQA", "lambada": "LAMBADA", "blimp": "BLiMP",
}  # fmt: skip
SIDES = ("acc %: harness, ours", "acc_norm %: harness, ours", "differ: acc, acc_norm")


def _both(figures: dict | None) -> str:
    """Percent, the harness's first."""
    return f"{100 * figures['harness']:.2f}, {100 * figures['ours']:.2f}" if figures else "–"


def _sides(rule: dict) -> tuple[str, ...]:
    """The cells of SIDES."""
    differ = (f"{rule[name]['differ']:,}" if name in rule else "–" for name in ("acc", "acc_norm"))
    return _both(rule["acc"]), _both(rule.get("acc_norm")), ", ".join(differ)


def _tasks(cut: bool):
    """(name, task, its figures), in the order of NAMES: as both sides cut alike, or as the harness's HF model cuts."""
    figures = read("harness.json")["tasks"]
    for name in (name for name in NAMES if name in figures):
        e = figures[name]
        if not cut or "kept" in e:
            yield NAMES[name], e, e["cut"] if cut else e.get("kept", e["cut"])


def _asked(e: dict) -> str:
    """Which questions of a set, where it is not all of them."""
    each = f" of each of {e['tasks']}" if e["tasks"] > 1 else ""
    limit = f"the first {e['limit']:,}{each}" if e["limit"] else ""
    left_out = f"{e['left_out']:,} left out for an ending longer than the model" if e["left_out"] else ""
    return " and ".join(filter(None, (limit, left_out)))


def agreement() -> str:
    """Accuracy by the harness and by us, and on how many questions they decide differently."""
    figures = read("harness.json")
    rows = [("set", "questions", *SIDES, "tied", "nats")]
    texts = sum(e[rule]["texts"] for e in figures["tasks"].values() for rule in ("cut", "kept") if rule in e)
    words = [
        f"lm_eval {figures['lm_eval']}, without examples; an autoregressive run on {figures['corpus']} (config "
        f"{figures['config']}, step {figures['step']:,}, {figures['seq_len']} tokens), both sides in fp32.",
        f"Requests whose text differs: {texts:,}. Differ: questions that one side has right and the other wrong. Tied: "
        "questions whose equal endings share our credit. Nats: the largest difference in the log-likelihood of an "
        "ending. A text longer than the model keeps its start token on both sides here.",
    ]
    for name, e, rule in _tasks(cut=False):
        nats = max(rule["nats"], rule.get("nats_of_cut", 0.0))
        tied = max(rule[k]["tied"] for k in ("acc", "acc_norm") if k in rule)
        rows.append((name, f"{e['n']:,}", *_sides(rule), f"{tied:,}", f"{nats:.2g}"))
        if "perplexity" in rule:
            a, b = (f"{rule['perplexity'][k]:,.0f}" for k in ("harness", "ours"))
            words.append(f"Perplexity of {name}'s word: harness {a}, ours {b}.")
        if _asked(e):
            words.append(f"{name}: {_asked(e)}.")
    return f"{table(*rows)}\n\n{' '.join(words)}"


def cut() -> str:
    """The same with the harness's own rule for texts longer than the model."""
    rows = [("set", "questions cut", *SIDES, "nats")]
    for name, e, rule in _tasks(cut=True):
        of_all = f"{e['cut_questions']:,} of {e['n']:,}"
        rows.append((name, of_all, *_sides(rule), f"{rule['nats_of_cut']:.2g}"))
    return table(*rows)


def departures() -> str:
    """Where we do something else on purpose."""
    return "\n".join(f"- **{name}**: {text}" for name, text in read("harness.json")["departures"].items())


def accuracies() -> str:
    """Both objectives of the published experiment on the evaluation sets."""
    return table(*tables.task_table(claims.comparison()))


TABLES = {"accuracies": accuracies, "agreement": agreement, "cut": cut, "departures": departures}
