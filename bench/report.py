"""Draw the tables and plots of README and docs from bench/results: `python -m bench.report`.

A table stands between <!-- begin NAME --> and <!-- end NAME -->; what is between the two marks is replaced.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
OBJECTIVES = ("diffusion", "autoregressive")


def run(objective: str) -> dict:
    """The published experiment of one objective: its summary.json."""
    return json.loads((RESULTS / f"wikitext-2-{objective}" / "summary.json").read_text())


def curve(objective: str) -> list[tuple[int, float, float]]:
    """(step, seconds of training, validation nats per token) of every evaluation."""
    lines = (RESULTS / f"wikitext-2-{objective}" / "metrics.jsonl").read_text().splitlines()
    found = [e for e in map(json.loads, lines) if "valid" in e]
    return [(e["step"], e["seconds"], e["valid"]["nats_per_token"]) for e in found]


def experiment() -> str:
    """The published experiment as we measure it, and the difference in words."""
    published = json.loads((RESULTS / "published.json").read_text())
    rows = ["| | diffusion | autoregressive |", "|---|---|---|"]
    runs = {o: run(o) for o in OBJECTIVES}

    def row(name, cell):
        rows.append(f"| {name} | " + " | ".join(cell(o) for o in OBJECTIVES) + " |")

    def nats(o):
        t = runs[o]["test"]
        return f"≤ {t['nats_per_token']:.3f} ± {t['stderr']:.3f}" if t["samples"] else f"{t['nats_per_token']:.3f}"

    row("test, nats per token", nats)
    row("test perplexity", lambda o: f"{'≤ ' if runs[o]['test']['samples'] else ''}{runs[o]['test']['ppl']:.1f}")
    row("test, bits per byte", lambda o: f"{runs[o]['test']['bits_per_byte']:.3f}")
    row("published test perplexity", lambda o: f"{published[o]['test_ppl']:.2f} ({published[o]['bound']})")
    row("training, minutes", lambda o: f"{runs[o]['seconds'] / 60:.1f}")
    row("published, minutes", lambda o: f"{published[o]['minutes']}")
    row("tokens/s", lambda o: f"{runs[o]['tokens_per_s']:,.0f}")
    row("loss-bearing tokens/s", lambda o: f"{runs[o]['loss_tokens_per_s']:,.0f}")
    row("peak memory, MB", lambda o: f"{runs[o]['peak_memory_mb']:,.0f}")
    a, d = (runs[o]["test"] for o in ("autoregressive", "diffusion"))
    gap = d["nats_per_token"] - a["nats_per_token"]
    side = "autoregressive" if gap > 0 else "diffusion"
    words = (
        f"{runs['diffusion']['steps']:,} steps of {runs['diffusion']['parameters']:,} parameters, one seed, on "
        f"{runs['diffusion']['device']}. On the same tokens {side} is {abs(gap):.3f} nats per token ahead; ± is the "
        "standard error of estimating the bound, not of training again with another seed, and a bound may lie above "
        "the likelihood it bounds."
    )
    return "\n".join(rows) + "\n\n" + words


def make_train() -> str:
    """What `make train` printed in a clean clone with no network but PyPI, lines of progress left out."""
    return "```\n" + (RESULTS / "make-train.txt").read_text() + "```"




def sampling_about(found: dict) -> str:
    """What the figures of sampling are of, in words."""
    models = " and ".join(
        f"{m['objective']} ({m['parameters']:,} parameters, {m['steps']:,} steps, test {m['test']:.3f} nats per token)"
        for m in found["models"]
    )
    toy = "Toy models of bytes, trained for a minute: the figures show the method, not good text. "
    return f"{toy if found['toy'] else ''}{models}, on {found['corpus']}; texts of {found['tokens_a_text']} tokens."


def sampling_texts() -> str:
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
        f"{cell(found['autoregressive_samples'])}. {sampling_about(found)}"
    )
    return "\n".join(rows) + "\n\n" + words


def sampling_steps() -> str:
    """How unequal the steps of a schedule are, and what parallel writing costs."""
    found = json.loads((RESULTS / "samplers.json").read_text())
    rows = ["| steps | schedule | Fisher-Rao length | nats written | excess | excess, nats a text |"]
    rows.append("|---|---|---|---|---|---|")

    def interval(x, digits=2):
        return f"{x[0]:.{digits}f} ({x[1]:.{digits}f} to {x[2]:.{digits}f})"

    for e in found["difficulty"]:
        spreads = f"{interval(e['spread_of_pays'])} | {interval(e['spread_of_excess'])}"
        total = interval(e["excess_nats_a_text"])
        rows.append(f"| {e['steps']} | {e['unmasking']} | {e['spread_of_length']:.2f} | {spreads} | {total} |")
    named = [e for e in found["difficulty"] if e["unmasking"] != "best"]
    words = [
        "The three columns in the middle are coefficients of variation over the steps, 0 where all are equal; in "
        f"brackets the 95 % interval over {found['held_out_texts']} held-out texts. {sampling_about(found)}"
    ]
    for steps in dict.fromkeys(e["steps"] for e in named):
        each = [e for e in named if e["steps"] == steps]
        least = {
            of: min(each, key=lambda e, of=of: e[of][0])["unmasking"]
            for of in ("spread_of_pays", "spread_of_excess", "excess_nats_a_text")
        }
        words.append(
            f"- {steps} steps: the most equal nats written has {least['spread_of_pays']}, the most equal excess "
            f"{least['spread_of_excess']}, the least excess {least['excess_nats_a_text']}."
        )
    return "\n".join(rows) + "\n\n" + words[0] + "\n\n" + "\n".join(words[1:])


TABLES = {
    "README.md": {"experiment": experiment, "make-train": make_train},
}


def filled(text: str, tables: dict) -> str:
    """The text with every table drawn afresh. Raises ValueError where a mark is missing."""
    for name, table in tables.items():
        marks = re.compile(f"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        if not marks.search(text):
            raise ValueError(f"no <!-- begin {name} --> … <!-- end {name} --> in the text")
        text = marks.sub(lambda m, table=table: m[1] + table() + "\n" + m[2], text)
    return text


def plot_curves(path: Path) -> None:
    """Validation curves of both objectives, by step and by time."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "tdlm_fast"  # the same file from the same figures
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for objective, colour in zip(OBJECTIVES, ("#d95f02", "#1b6ca8"), strict=True):
        steps, seconds, nats = zip(*curve(objective), strict=True)
        label = "diffusion (upper bound)" if objective == "diffusion" else "autoregressive (exact)"
        for axis, x in zip(axes, (steps, [s / 60 for s in seconds]), strict=True):
            axis.plot(x, nats, "o-", color=colour, markersize=3, label=label)
    axes[0].set(xlabel="optimizer step", ylabel="validation, nats per token")
    axes[1].set_xlabel("minutes of training")
    axes[0].legend(frameon=False)
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110)
    plt.close(figure)


def main() -> int:
    for name, tables in TABLES.items():
        path = ROOT / name
        path.write_text(filled(path.read_text(), tables))
        print(f"{name}: {', '.join(tables)}")
    plot_curves(ROOT / "docs" / "curves.svg")
    print("docs/curves.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
