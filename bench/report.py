"""Draw the tables and plots of README, docs and configs from bench/results: `python -m bench.report`.

A table stands between <!-- begin NAME --> and <!-- end NAME -->; what is between the two marks is replaced. Configs of
the published experiment say what they were measured to end with.
"""

import json
import math
import re
import sys
from pathlib import Path

from bench import tables_claims, tables_cpu, tables_gpu, tables_harness, tables_samplers
from tdlm_fast import config as settings
from tdlm_fast.comparison import figures, report

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
OBJECTIVES = ("diffusion", "autoregressive")
CONFIGS = (ROOT / "configs" / "tiny.yaml", *sorted((ROOT / "configs" / "controls").iterdir()))


def curve(objective: str) -> list[tuple[int, float, float]]:
    """(step, seconds of training, validation nats per token) of every evaluation, means over the seeds."""
    points = figures.by_step(figures.first_arms(tables_claims.comparison())[objective])
    return [
        (step, figures.mean(e["seconds"] for e in es), figures.mean(e["valid"]["nats_per_token"] for e in es))
        for step, es in sorted(points.items())
    ]


def experiment() -> str:
    """The published experiment as we measure it, and the difference in words."""
    published = json.loads((RESULTS / "published.json").read_text())
    found = tables_claims.comparison()
    names = ("test, nats per token", "test perplexity", "test, bits per byte")
    tests = zip(*map(tables_claims.test_cells, OBJECTIVES), strict=True)
    rows = [("", *OBJECTIVES), *((name, *cells) for name, cells in zip(names, tests, strict=True))]
    theirs = [published[o] for o in OBJECTIVES]
    rows.append(("published test perplexity", *(f"{p['test_ppl']:.2f} ({p['bound']})" for p in theirs)))
    runs = {o: [r["summary"] for r in tables_claims.runs(o)] for o in OBJECTIVES}

    def row(name, of, form):
        rows.append((name, *(tables_claims.spread_of([of(r) for r in runs[o]], form) for o in OBJECTIVES)))

    row("training, minutes", lambda r: r["seconds"] / 60, "{:.1f}")
    rows.append(("published, minutes", *(str(p["minutes"]) for p in theirs)))
    row("tokens/s", lambda r: r["tokens_per_s"], "{:,.0f}")
    row("loss-bearing tokens/s", lambda r: r["loss_tokens_per_s"], "{:,.0f}")
    row("peak memory, MB", lambda r: r["peak_memory_mb"], "{:,.0f}")
    right = next(c for c in found["claims"] if c["id"] == "test")["right"]
    sign = -1 if right["mean"] < 0 else 1
    low, high = sorted(sign * right[k] for k in ("low", "high"))
    one = runs["diffusion"][0]
    words = (
        f"{one['steps']:,} steps of {one['parameters']:,} parameters on {one['device']}; means of "
        f"{report.seeds_of(found)}, in brackets the lowest and the highest. On the same tokens "
        f"{'autoregressive' if sign < 0 else 'diffusion'} is {abs(right['mean']):.3f} nats per token ahead "
        f"(95 % interval over seeds and the bound's own error: {low:.3f} to {high:.3f}). A bound may lie above the "
        f"likelihood it bounds. {tables_claims.departures()}"
    )
    for arm in found["controls"]:
        if arm["label"] == "diffusion loss_weight=published":
            test = next(c for c in arm["claims"] if c["id"] == "test")
            other, theirs = test["right"], test["as_published"]
            words += (
                f" Trained with the published weight ({report.seeds_of(arm)}) diffusion is {abs(other['mean']):.3f} "
                f"nats {'behind' if other['mean'] < 0 else 'ahead'} [{other['low']:+.3f}, {other['high']:+.3f}], where "
                f"the published computation shows it {report.ratio(theirs)} ahead, against the published "
                f"{math.exp(test['claimed']):.2f}×."
            )
    return tables_claims.table(*rows) + "\n\n" + words


def config_note(file: Path) -> str:
    """What a config of the published experiment was measured to end with, the comment line that it opens with."""
    arms = tables_claims.comparison()["arms"]
    base = arms[0]["runs"][0]["config"]

    def ends(**changed) -> str:
        config = settings.flatten(settings.load(file)) | {k: v for k, v in base.items() if k[:5] in ("eval.", "data.")}
        label = arms.label(config | changed, base)
        runs = [r["summary"] for arm in arms if arm["label"] == label for r in arm["runs"]]
        minutes = f", {figures.mean(s['seconds'] for s in runs) / 60:.1f} minutes" if changed else ""
        bound = "<= " if runs[0]["test"]["samples"] else ""
        return f"test {bound}{figures.mean(s['test']['nats_per_token'] for s in runs):.3f} nats per token{minutes}"

    if file.parent.name == "controls":  # whose minutes were taken beside other work
        return f"#   measured: {ends()} (bench/results/wikitext-2-compare)"
    each = "; ".join(f"{o} {ends(objective=o)}" for o in OBJECTIVES)
    return f"#   measured on two CPU cores with AVX-512 BF16: {each}"


def noted(file: Path) -> str:
    """The config's text with that line below the command it opens with."""
    kept = [line for line in file.read_text().splitlines() if not line.startswith("#   measured")]
    return "\n".join([*kept[:2], config_note(file), *kept[2:]]) + "\n"


def make_train() -> str:
    """What `make train` printed in a clean clone with no network but PyPI, lines of progress left out."""
    return "```\n" + (RESULTS / "make-train.txt").read_text() + "```"


TABLES = {
    "README.md": {"experiment": experiment, "make-train": make_train},
    "docs/performance.md": tables_cpu.TABLES
    | {
        "cpu-ops": tables_gpu.cpu_ops,
        "gpu-measured": tables_gpu.measured,
    },
    "docs/claims.md": tables_claims.TABLES,
    "docs/sampling.md": tables_samplers.TABLES,
    "docs/evaluation.md": tables_harness.TABLES,
    "docs/gpu.md": tables_gpu.TABLES,
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
    for file in CONFIGS:
        file.write_text(noted(file))
    print(f"configs: {', '.join(file.stem for file in CONFIGS)}")
    plot_curves(ROOT / "docs" / "curves.svg")
    tables_claims.plot_estimator(ROOT / "docs" / "estimator.svg")
    print("docs/curves.svg docs/estimator.svg", end="")
    print(" docs/step-gpu.svg" if tables_gpu.plot_limits(ROOT / "docs" / "step-gpu.svg") else "")
    return 0


if __name__ == "__main__":
    sys.exit(main())
