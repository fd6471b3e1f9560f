"""Tables and pictures of docs/claims.md, and the curves of README: from claims.json, estimator.json, published.json and
the WikiText-2 runs."""

import functools
import math

from bench.docs_tables.results import OBJECTIVES, read, table
from tdlm_fast.comparison import figures, svg, tables


@functools.cache
def comparison() -> dict:
    """The published experiment: the compare.json of `python -m tdlm_fast.compare`."""
    return read("wikitext-2-compare/compare.json")


def runs(objective: str) -> list[dict]:
    """The comparison's runs of one objective, one per seed."""
    return figures.first_arms(comparison())[objective]["runs"]


def spread_of(values: list[float], form: str, of=lambda v: v) -> str:
    """of(mean), and where there are several values the lowest and highest, in words."""
    mean, low, high = (form.format(of(v)) for v in (sum(values) / len(values), min(values), max(values)))
    return f"{mean} ({low} to {high})" if len(values) > 1 else mean


def test_cells(objective: str) -> list[str]:
    """Nats per token, perplexity and bits per byte on the test split, over the seeds; a bound is marked."""
    tests = [r["summary"]["test"] for r in runs(objective)]
    bound = "≤ " if tests[0]["samples"] else ""
    nats, bits = ([t[key] for t in tests] for key in ("nats_per_token", "bits_per_byte"))
    ppl = spread_of(nats, "{:.1f}", math.exp)
    return [bound + cell for cell in (spread_of(nats, "{:.3f}"), ppl, spread_of(bits, "{:.3f}"))]


def factor() -> str:
    """The published metric's factor at the lengths of WikiText-2's paragraphs."""
    result = read("claims.json")["factor"]
    rows = [("long sequences, exact", f"{5 / 6:.4f}")]
    return table(("rows of WikiText-2", "factor"), *rows, *[(k, f"{v:.4f}") for k, v in result.items()])


def by_published_settings() -> str:
    """The comparison by configs/published.yaml, which trains on the raw valid split, and what still departs."""
    result = read("published-raw-valid/compare.json")
    test = tables.main_claim(result["claims"])
    d, a = ([r["summary"] for r in figures.first_arms(result)[o]["runs"]] for o in OBJECTIVES)
    bound, exact, later = (
        spread_of([s["test"][key] for s in runs], "{:.3f}")
        for runs, key in ((d, "nats_per_token"), (a, "nats_per_token"), (a, "after_first"))
    )
    rows = [
        ("raw WikiText-2, test", "nats per token"), ("diffusion", f"≤ {bound}"), ("autoregressive", exact),
        ("autoregressive, without the first token of each row", later),
    ]  # fmt: skip
    ways = [("diffusion's advantage", "ratio of perplexities", "nats per token")]
    for name, key in (("computed as published", "as_published"), ("published metric for both", "one_scale"),
                      ("on likelihood", "right")):  # fmt: skip
        ways.append((name, tables.ratio(test[key]), tables.nats(test[key])))
    ways.append(("as the publication reports it", f"{math.exp(test['claimed']):.2f}×", f"{test['claimed']:+.3f}"))
    tokens, steps = d[0]["test"]["tokens"], d[0]["steps"]
    words = (
        f"Means of {tables.seeds_of(result)}, in brackets the lowest and the highest, and 95 % intervals, after "
        f"{steps:,} steps instead of 1,370. All {tokens:,} tokens of the published test rows are scored. The verdict "
        f"on the test perplexity: **{test['verdict']}**, as {test['reason']}. {steps:,} steps are few, so the "
        "perplexities themselves say nothing about the published ones. These runs still depart from the published "
        "experiment in this:"
    )
    left = "\n".join(f"- {line}" for line in result["departures"])
    return f"{table(*rows)}\n\n{table(*ways)}\n\n{words}\n\n{left}"


def untrained() -> str:
    """The model of configs/tiny.yaml before its first step, under every metric."""
    result = read("claims.json")["untrained"]
    rows = [("", "diffusion", "autoregressive", "ratio of the exponentials")]

    def row(name, d, a):
        rows.append((name, f"{d:.3f} ({math.exp(d):,.0f})", f"{a:.3f} ({math.exp(a):,.0f})", f"{math.exp(a - d):.2f}"))

    bound, exact = (result["likelihood"][o]["nats_per_token"] for o in OBJECTIVES)
    metric, twin = (result[k]["reweighted_loss"] for k in ("published", "published_autoregressive_same_draws"))
    row("likelihood: bound and exact, nats per token (ppl)", bound, exact)
    row("published metric for both, on the same masks", metric, twin)
    row("as published: the metric for diffusion, the likelihood for autoregressive", metric, exact)
    words = (
        f"Measured on {result['rows']} rows ({result['tokens']:,} tokens) of the raw test set. The metric has a "
        f"standard error of {result['published']['stderr']:.2f} here. The last row makes the published comparison "
        "before any training."
    )
    return f"{table(*rows)}\n\n{words}"


def _descaled() -> tuple[float, float, float]:
    """(382.74 in nats, the raw test set's factor, their quotient)."""
    published = math.log(read("published.json")["diffusion"]["test_ppl"])
    share = read("claims.json")["factor"]["raw test"]
    return published, share, published / share


def unigram() -> str:
    """The published figure without its factor, beside unigram models."""
    result, (published, share, nats) = read("claims.json")["unigram"], _descaled()
    other = math.log(read("published.json")["autoregressive"]["test_ppl"])
    rows_of = {x: result[f"entropy_of_raw_test_{x}"] for x in ("published", "paragraphs", "packed")}
    entropy, stripped, whole = (x["nats_per_token"] for x in rows_of.values())
    own, tables = result["tokenised_test"]["nats_per_token"], [r["table"] for r in runs("diffusion")]
    own_descaled = figures.mean(t["published"]["reweighted_loss"] / t["uniform_factor"] for t in tables)
    own_bound = figures.mean(t["rows"][0]["nats_per_token"] for t in tables)
    rows = [("", "nats per token", "perplexity", "on the published scale")]
    for name, value in (
        ("published diffusion, divided by the factor", nats),
        ("unigram entropy of the raw test set, the published rows", entropy),
        ("unigram entropy of the raw test set, its paragraphs", stripped),
        ("unigram entropy of the raw test set, the whole text", whole),
        ("unigram model of tokenised WikiText-2, on its test set", own),
        ("published autoregressive, without the first token of each row", other),
    ):
        rows.append((name, f"{value:.3f}", f"{math.exp(value):,.0f}", f"{math.exp(share * value):,.1f}"))
    words = (
        f"ln 382.74 is {published:.3f}. Divided by the factor {share:.3f} it is {nats:.3f} nats, a perplexity of about "
        f"{math.exp(nats):,.0f}. The division is exact only for a model whose loss does not depend on how much is "
        "masked, such as a unigram model. For our own diffusion runs the same division gives "
        f"{own_descaled:.3f}, and their bound is {own_bound:.3f}. So {nats:.3f} is more likely too "
        f"{'low' if own_descaled < own_bound else 'high'} than too {'high' if own_descaled < own_bound else 'low'}. "
        "The unigram entropy comes from the test set's own frequencies; no unigram model can score less there. The "
        f"published figure lies {abs(entropy - nats):.3f} nats {'below' if nats < entropy else 'above'} the entropy of "
        f"the published rows ({rows_of['published']['tokens']:,} tokens in {rows_of['published']['rows']:,} rows). "
        "Paragraphs are these rows without the white space around them, which is easy to predict. The whole text also "
        "holds the headings and what is past token 128 of a row. "
        "The tokenised text contains `<unk>`, which GPT-2's vocabulary spells with three tokens that are easy to "
        "predict. So its figures cannot be compared with those of the raw text."
    )
    return f"{table(*rows)}\n\n{words}"


def spread() -> str:
    """How much one draw of the metric, and the smallest of several, varies."""
    result, loss = read("claims.json")["single_draw"], _descaled()[0]
    sd, gap = result["sd_share"] * loss, loss - 5.583
    return (
        "The best published validation loss, 5.583, is the smallest of at most 27 single draws of the metric: one "
        "every 50 of 1,370 steps, of which only those near the end have a low loss. On the "
        f"{result['rows']:,} published rows of the raw validation set one draw has a standard deviation of "
        f"{result['sd_share']:.2%} of the reweighted loss, for a model whose loss is alike at every token: {sd:.3f} at "
        f"ln 382.74 = {loss:.3f}. The smallest of 27 normal draws lies about two standard deviations below their mean, "
        f"here {2 * sd:.2f}. The published best lies {gap:.2f} below the published test loss, which is of another "
        f"split. So the choice of the smallest draw can explain up to {2 * sd / gap:.0%} of the distance, and not all."
    )


def standing() -> str:
    """Our runs of the published settings, on the tokenised text, beside the unigram model of the same text."""
    base = read("claims.json")["unigram"]["tokenised_test"]
    rows = [("tokenised WikiText-2, test", "nats per token", "perplexity", "bits per byte")]
    rows += [(o, *test_cells(o)) for o in OBJECTIVES]
    cells = (f"{base['nats_per_token']:.3f}", f"{base['ppl']:.1f}", f"{base['bits_per_byte']:.3f}")
    gram = read("claims.json")["five_gram"]["tokenised_test"]
    rows.append(("5-gram, Kneser-Ney", f"{gram['nats_per_token']:.3f}", f"{gram['ppl']:.1f}",
                 f"{gram['bits_per_byte']:.3f}"))  # fmt: skip
    rows.append(("unigram, add-one", *cells))
    d, a = (figures.mean(r["summary"]["test"]["nats_per_token"] for r in runs(o)) for o in OBJECTIVES)
    side = "ahead of" if a > d else "behind"
    margins = [f"{abs(v - gram['nats_per_token']):.3f} {'behind' if v > gram['nats_per_token'] else 'ahead of'}"
               for v in (d, a)]  # fmt: skip
    best = comparison()["headline"]
    right = best["claim"]["right"]
    words = (
        f"Means of {tables.seeds_of(comparison())}, in brackets the lowest and the highest. These runs use the "
        "tokenised WikiText-2 (`wikitext-2-v1`, rare words replaced by `<unk>`), because the raw training set could "
        "not be obtained. The publication used the raw one. So the two objectives can be compared with each other "
        f"here, but not with 382.74 and 611.01. Diffusion's bound is {abs(a - d):.3f} nats per token {side} the exact "
        f"value of the autoregressive model, and {base['nats_per_token'] - d:.3f} better than the unigram "
        f"model. The bound is {margins[0]} the 5-gram model, and the autoregressive model is {margins[1]} it. A bound "
        f"may lie above the likelihood it bounds.\n\nOf the {len(best['valid'])} arms trained on this text, the "
        f"best of each objective by validation are *{best['arms']['diffusion']}* and "
        f"*{best['arms']['autoregressive']}*. On the test split they reach at most {best['nats']['diffusion']:.3f} and "
        f"{best['nats']['autoregressive']:.3f} nats per token: diffusion's advantage is {right['mean']:+.3f} "
        f"[{right['low']:+.3f}, {right['high']:+.3f}], {tables.seeds_of(best)}. The objectives were not tuned with "
        "equal effort. The rest of this page is about the pair in the table, whose settings are alike."
    )
    return f"{table(*rows)}\n\n{words}"


def gap() -> str:
    """The published score of multiple choice on our models, before and after training, in both directions."""
    result = read("likelihood-gap.json")
    rows = [("model", "scored against", "log p per token", "gap, nats per token", "accuracy, %")]
    for o in OBJECTIVES:
        for state in ("untrained", "trained"):
            for name, e in result[o][state].items():
                low, high = e["gap_interval"]
                least, most = (100 * v for v in e["accuracy_interval"])
                cells = (f"{e['score']:.2f}", f"{e['gap']:+.3f} [{low:+.3f}, {high:+.3f}]")
                rows.append((f"{o}, {state}", name, *cells, f"{100 * e['accuracy']:.1f} [{least:.1f}, {most:.1f}]"))
    d, test = result["diffusion"], result["autoregressive"]["test"]
    every = [e for o in OBJECTIVES for state in ("untrained", "trained") for e in result[o][state].values()]
    none = sum(e["gap_interval"][0] <= 0 <= e["gap_interval"][1] for e in every)
    directions = [e["gap"] for e in d["trained"].values()]
    words = (
        f"The first {result['questions']} questions of HellaSwag, of which a guess answers {result['chance']:.0%}, "
        "with 95 % intervals. The models are those of `configs/tiny.yaml` on the tokenised WikiText-2: "
        f"{d['steps']} steps of diffusion, {result['autoregressive']['steps']} autoregressive. A uniform predictor's "
        f"log p per token is {-d['ln_vocab']:.2f}. The gap is above 0 where the text with the right ending scores "
        f"higher. The intervals of {none} of the {len(every)} gaps contain 0. The trained diffusion model's gaps in "
        f"the three directions lie within {max(directions) - min(directions):.3f} nats of each other.\n\n"
        "The autoregressive model of this table scores "
        f"{test['nats_per_token']:.3f} nats per token on its test split, and {test['after_first']:.3f} without the "
        "first token of each row, as the published figure leaves it out."
    )
    return f"{table(*rows)}\n\n{words}"


def estimator() -> str:
    result = read("estimator.json")
    plain = result["estimators"]["plain"]["variance_of_a_sample"]
    rows = [("estimator", "error of 1 sample", f"of {result['samples'][-1]}", "samples for plain's error of one")]
    for name, e in result["estimators"].items():
        cells = (f"{e['rmse'][0]:.3f}", f"{e['rmse'][-1]:.4f}", f"1 / {plain / e['variance_of_a_sample']:.1f}")
        rows.append((name, *cells))
    words = (
        f"Root mean square error in nats per token over {result['repeats']} repeats, {result['rows']} sequences of "
        f"{result['tokens_a_row']} tokens, against the enumeration of every mask ({result['truth']:.4f})."
    )
    return f"{table(*rows)}\n\n{words}"


def estimator_picture() -> str:
    """Error against samples of the four estimators."""
    result = read("estimator.json")
    series = [
        svg.Series(name, result["samples"], e["rmse"], colour=i)
        for i, (name, e) in enumerate(result["estimators"].items())
    ]
    title = "Error of the bound, nats per token"
    return svg.standalone(svg.lines(title, series, "samples per sequence", xlog=True, ylog=True))


def curve(name: str) -> str:
    """A chart of the comparison's report, of its first two arms alone."""
    d, a = comparison()["arms"][:2]
    first = comparison() | {"arms": [d | {"label": "diffusion (upper bound)"}, a | {"label": "autoregressive (exact)"}]}
    return svg.standalone((figures.curve_charts(first) | figures.diagnostic_charts(first))[name])


def verdicts() -> str:
    result = comparison()
    rules = "\n".join(f"- {rule}" for rule in result["rules"])
    words = (
        f"Ratios of perplexities, above 1 where diffusion is better, with 95 % intervals, over "
        f"{tables.seeds_of(result)} on the tokenised text; nats is the advantage on likelihood. The "
        "rules, whose intervals are those of the advantage in nats (the logarithm of the ratio):"
    )
    return table(*tables.claims_table(result)) + f"\n\n{words}\n\n{rules}"


def tuning() -> str:
    """What a whole tuning would take, from the minutes of the runs that were measured."""
    minutes = {o: figures.mean(r["summary"]["seconds"] / 60 for r in runs(o)) for o in OBJECTIVES}
    steps = runs("diffusion")[0]["summary"]["steps"]
    whole = 16 * sum(minutes.values()) / 60
    return (
        f"Computed, not measured: 16 trials of {steps:,} steps for each objective of `configs/tiny.yaml` take "
        f"{whole:.1f} hours of training on the machine of the compared runs ({minutes['diffusion']:.1f} and "
        f"{minutes['autoregressive']:.1f} minutes a run), and with `--steps 274`, one epoch, {whole * 274 / steps:.1f} "
        "hours. The evaluations come on top."
    )


def departures() -> str:
    return "\n".join(f"- {line}" for line in comparison()["departures"])


def controls() -> str:
    """The test perplexity with every control arm."""
    return table(*tables.control_table(comparison()))


def progress() -> str:
    return table(*tables.early_table(comparison()))


TABLES = {
    "by-published-settings": by_published_settings, "factor": factor,
    "untrained": untrained, "unigram": unigram, "spread": spread, "standing": standing,
    "progress": progress, "verdicts": verdicts, "estimator": estimator, "controls": controls, "departures": departures,
    "gap": gap, "tuning": tuning,
}  # fmt: skip
PICTURES = {
    "docs/curves.svg": functools.partial(curve, "by-step"),
    "docs/curves-by-time.svg": functools.partial(curve, "by-time"),
    "docs/perplexity.svg": functools.partial(curve, "perplexity"),
    "docs/loss-tokens.svg": functools.partial(curve, "by-loss-token"),
    "docs/noise-levels.svg": functools.partial(curve, "level-loss"),
    "docs/estimator.svg": estimator_picture,
}
