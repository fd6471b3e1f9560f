"""Draw the tables and pictures of README, docs and configs from bench/results: `python -m bench.report`.

A table stands between <!-- begin NAME --> and <!-- end NAME -->; the text between the two marks is replaced. Each
config of the published experiment carries a comment with the loss that it was measured to end with. The report of the
published experiment is drawn from its compare.json.
"""

import math
import re
import sys
from pathlib import Path

from bench.docs_tables import bits_per_byte, claims, cpu, gpu, harness, markov, reliability, samplers, sweeps
from bench.docs_tables.results import OBJECTIVES, RESULTS, read, table
from tdlm_fast import config as settings
from tdlm_fast.comparison import figures, report, tables
from tdlm_fast.comparison.arms import label

ROOT = Path(__file__).parent.parent
KEPT = RESULTS / "wikitext-2-compare" / "report.md"
RUN = ("tiny.yaml", "markov.yaml")
CONFIGS = (*(ROOT / "configs" / name for name in RUN), *sorted((ROOT / "configs" / "controls").iterdir()))


def experiment() -> str:
    """The published experiment as we measured it, and the difference in words."""
    published = read("published.json")
    result = claims.comparison()
    names = ("test, nats per token", "test perplexity", "test, bits per byte")
    tests = zip(*map(claims.test_cells, OBJECTIVES), strict=True)
    rows = [("", *OBJECTIVES), *((name, *cells) for name, cells in zip(names, tests, strict=True))]
    later = [r["summary"]["test"].get("after_first") for r in claims.runs("autoregressive")]
    if None not in later:  # runs from before it was recorded
        rows.append(("test without first tokens, nats per token", "–", claims.spread_of(later, "{:.3f}")))
    theirs = [published[o] for o in OBJECTIVES]
    rows.append(("published test perplexity", *(f"{p['test_ppl']:.2f} ({p['bound']})" for p in theirs)))
    runs = {o: [r["summary"] for r in claims.runs(o)] for o in OBJECTIVES}

    def row(name, of, form):
        rows.append((name, *(claims.spread_of([of(r) for r in runs[o]], form) for o in OBJECTIVES)))

    row("training, minutes", lambda r: r["seconds"] / 60, "{:.1f}")
    rows.append(("published, minutes", *(str(p["minutes"]) for p in theirs)))
    row("tokens/s", lambda r: r["tokens_per_s"], "{:,.0f}")
    row("loss-bearing tokens/s", lambda r: r["loss_tokens_per_s"], "{:,.0f}")
    row("peak memory, MB", lambda r: r["peak_memory_mb"], "{:,.0f}")
    one = runs["diffusion"][0]
    words = (
        f"{one['steps']:,} steps of {one['parameters']:,} parameters on {one['device']}. Means of "
        f"{tables.seeds_of(result)}, in brackets the lowest and the highest. A bound may lie above the likelihood it "
        "bounds. "
        f"[{len(result['departures'])} departures](docs/claims.md#departures) from the published experiment are listed."
    )
    for arm in result["controls"]:
        if arm["label"] == "diffusion loss_weight=published":
            test = next(c for c in arm["claims"] if c["id"] == "test")
            other, theirs = test["right"], test["as_published"]
            words += (
                f" These runs train on the bound. Trained with the published weight ({tables.seeds_of(arm)}), "
                f"diffusion's advantage on likelihood is {other['mean']:+.3f} nats, with a 95 % interval of "
                f"[{other['low']:+.3f}, {other['high']:+.3f}]. The published computation shows those runs better by a "
                f"factor in perplexity of {tables.ratio(theirs)} (published: {math.exp(test['claimed']):.2f}×)."
            )
    return f"{table(*rows)}\n\n{words}"


def finding() -> str:
    """Return the difference of both objectives on the test split, in words."""
    test = next(c for c in claims.comparison()["claims"] if c["id"] == "test")
    mean, low, high = (-test["right"][k] for k in ("mean", "high", "low"))
    best = claims.comparison()["headline"]
    ahead, least, most = (-best["claim"]["right"][k] for k in ("mean", "high", "low"))
    gram, ours = read("claims.json")["five_gram"]["tokenised_test"]["nats_per_token"], min(best["nats"].values())
    return (
        "**The finding.** We trained the models of a [published experiment](#the-published-experiment), with "
        "[departures](docs/claims.md#departures) that are listed. The best autoregressive [arm](#arm) predicts the "
        f"test text **{ahead:.3f} nats per token better** (95 % interval {least:.3f} to {most:.3f}, "
        f"{tables.seeds_of(best)}) than the bound of the best diffusion arm. In the pair whose settings are alike, it "
        f"is {mean:.3f} ({low:.3f} to {high:.3f}, {tables.seeds_of(claims.comparison())}). The published metric, "
        "which is not a likelihood, shows diffusion ahead in that pair. Its factor in perplexity is "
        f"{tables.times(test['as_published']['mean'])} in our runs and {math.exp(test['claimed']):.2f} as published."
        + f" A 5-gram model, which only counts short phrases, is ahead of both, at {gram:.3f}."
        * (gram < ours)
    )


def config_note(file: Path) -> str:
    """Return the comment line with the measured losses of a config that was run."""
    if file.stem == "markov":
        return markov.config_note()
    arms = claims.comparison()["arms"]
    base = arms[0]["runs"][0]["config"]

    def ends(**changed) -> str:
        config = settings.flatten(settings.load(file)) | {
            k: v for k, v in base.items() if k.startswith(("eval.", "data.", "precision"))
        }
        name = label(config | changed, base)
        runs = [r["summary"] for arm in arms if arm["label"] == name for r in arm["runs"]]
        minutes = f", {figures.mean(s['seconds'] for s in runs) / 60:.1f} minutes" if changed else ""
        bound = "<= " if runs[0]["test"]["samples"] else ""
        return f"test {bound}{figures.mean(s['test']['nats_per_token'] for s in runs):.3f} nats per token{minutes}"

    if file.parent.name == "controls":  # no minutes: these runs shared their machine
        return f"#   measured: {ends()} (bench/results/wikitext-2-compare)"
    each = "; ".join(f"{o} {ends(objective=o)}" for o in OBJECTIVES)
    return f"#   measured on two CPU cores with AVX-512 BF16: {each}"


def noted(file: Path) -> str:
    """The config's text with its measured losses below the command it opens with."""
    other = [line for line in file.read_text().splitlines() if not line.startswith("#   measured")]
    return "\n".join([*other[:2], config_note(file), *other[2:]]) + "\n"


def make_train() -> str:
    """The output of `make train` in a clean clone with no network but PyPI, most lines of progress left out."""
    return "```\n" + (RESULTS / "make-train.txt").read_text() + "```"


def demo() -> str:
    """The output of `tdlm-fast demo`, without the progress of training."""
    return "```\n" + (RESULTS / "demo.txt").read_text() + "```"


def kept_report() -> str:
    """The report of the published experiment; its charts are not kept, so a line says how to draw them."""
    text = report.markdown(claims.comparison(), "Diffusion against autoregressive")
    command = "python -m tdlm_fast.compare --from bench/results/wikitext-2-compare/compare.json"
    return re.sub(r"(!\[.*\]\(figures/.*\)\n?)+", f"The charts are drawn by `{command}`.\n", text)


TABLES = {
    "README.md": {
        "demo": demo,
        "headline": cpu.headline,
        "finding": finding,
        "experiment": experiment,
        "make-train": make_train,
    },  # fmt: skip
    "docs/performance.md": cpu.TABLES | {"cpu-ops": gpu.cpu_ops, "gpu-measured": gpu.measured},
    "docs/claims.md": claims.TABLES,
    "docs/claims-bits-per-byte.md": bits_per_byte.TABLES,
    "docs/sampling.md": samplers.TABLES,
    "docs/evaluation.md": harness.TABLES | markov.TABLES,
    "docs/gpu.md": gpu.TABLES,
    "docs/reliability.md": reliability.TABLES,
    "docs/scaling.md": sweeps.TABLES,
}
PICTURES = claims.PICTURES | {"docs/step.svg": cpu.step_picture, "docs/step-gpu.svg": gpu.limits_picture}


def filled(text: str, tables: dict) -> str:
    """The text with every table drawn again. Raises ValueError where a mark is missing."""
    for name, draw in tables.items():
        marks = re.compile(f"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        if not marks.search(text):
            raise ValueError(f"no <!-- begin {name} --> … <!-- end {name} --> in the text")
        text = marks.sub(lambda m, draw=draw: m[1] + draw() + "\n" + m[2], text)
    return text


def sized(svg: str) -> str:
    """The picture with a size of its own: without one it is stretched to the width of the page."""
    return re.sub(r'viewBox="0 0 (\S+) (\S+)"', r'width="\1" height="\2" \g<0>', svg, count=1)


def main() -> int:
    for name, drawn in TABLES.items():
        path = ROOT / name
        path.write_text(filled(path.read_text(), drawn))
        print(f"{name}: {', '.join(drawn)}")
    for file in CONFIGS:
        file.write_text(noted(file))
    print(f"configs: {', '.join(file.stem for file in CONFIGS)}")
    KEPT.write_text(kept_report())
    pictures = {name: svg for name, draw in PICTURES.items() if (svg := draw())}
    for name, svg in pictures.items():
        (ROOT / name).write_text(sized(svg))
    print(f"{KEPT.relative_to(ROOT)} {' '.join(pictures)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
