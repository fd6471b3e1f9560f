"""Draw curves and heat maps of a comparison (compare.json) as SVG: a series for each arm, a band over its seeds."""

import math
import operator
from dataclasses import replace

from . import svg
from .svg import Series

NAMES = {"diffusion": "Diffusion", "autoregressive": "Autoregressive"}


def first_arms(result: dict) -> dict[str, dict]:
    """Return the first arm of each objective."""
    arms: dict[str, dict] = {}
    for arm in result["arms"]:
        arms.setdefault(arm["objective"], arm)
    return arms


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def by_step(arm: dict) -> dict[int, list[dict]]:
    """Return the evaluations of an arm at each step at which all its runs were evaluated."""
    out: dict[int, list[dict]] = {}
    for run in arm["runs"]:
        for e in run["evaluations"]:
            out.setdefault(e["step"], []).append(e)
    return {step: es for step, es in out.items() if len(es) == len(arm["runs"])}


def levels(run: dict) -> dict | None:
    """Return a run's diagnostics by noise level: of its table, else of its last evaluation."""
    return run["table"]["levels"] if run["table"] else run["evaluations"][-1].get("diagnostics")


def over_runs(arm: dict, colour: int, xs: list[float], values: list, **kw) -> Series:
    """Return a series through the mean of each of the values, a list over runs, with the lowest and highest as band."""
    means, low, high = ([f(v) for v in values] for f in (mean, min, max))
    return Series(arm["label"], xs, means, low, high, colour % svg.COLOURS, **kw)


def band(arm: dict, colour: int, x, y, **kw) -> Series:
    """Return a series over evaluations with the lowest and highest seed as its band."""
    points = [([x(e) for e in seen], [y(e) for e in seen]) for _, seen in sorted(by_step(arm).items())]
    points = [(across, up) for across, up in points if None not in across + up]
    return over_runs(arm, colour, [mean(across) for across, _ in points], [up for _, up in points], **kw)


def _since(s: Series, share: float) -> Series:
    """Cut a series off before that share of its last x."""
    first = sum(x < share * max(s.x, default=0) for x in s.x)
    return replace(s, **{k: getattr(s, k)[first:] for k in ("x", "y", "low", "high")})


STEP = operator.itemgetter("step")


def _valid(e):
    return e["valid"]["nats_per_token"]


def curve_charts(result: dict) -> dict[str, str]:
    arms = list(enumerate(result["arms"]))
    out = {}
    for name, title, x, label, log in (
        ("by-step", "Validation, nats per token, by step", STEP, "optimizer step", True),
        ("by-time", "Validation, nats per token, by time", lambda e: e["seconds"] / 60, "minutes of training", False),
        ("by-loss-token", "Validation, nats per token, by loss token", lambda e: e["loss_tokens"],
         "tokens that bore loss", False),
    ):  # fmt: skip
        shown = arms[:2] if name == "by-time" else arms
        out[name] = svg.lines(title, [band(a, i, x, _valid) for i, a in shown], label, xlog=log)
    late = [_since(band(a, i, STEP, _valid), 0.2) for i, a in arms]
    out["by-step-late"] = svg.lines("The last four fifths of the steps", late, "optimizer step")
    curves = []
    for i, arm in arms[:2]:
        curves.append(band(arm, i, STEP, lambda e: e["valid"]["ppl"]))
        metric = band(arm, i, STEP, lambda e: e.get("published", {}).get("published_metric"), dashed=True)
        metric.label = f"{arm['objective']}, published metric"
        curves.append(metric)
    out["perplexity"] = svg.lines("Perplexity progression", curves, "optimizer step", xlog=True, ylog=True)
    for name, title, k, scale, label in (
        ("training-loss", "Training loss, as weighted in training", 0, 1, "optimizer step"),
        ("training-loss-by-time", "Training loss by time", 3, 60, "minutes of training"),
        ("training-loss-by-loss-token", "Training loss by loss token", 4, 1, "tokens that bore loss"),
    ):
        weight = arms[0][1]["runs"][0]["config"]["loss_weight"]
        same = [(i, a) for i, a in arms if a["runs"][0]["config"]["loss_weight"] == weight]
        series = [training_loss(arm, i, k, scale) for i, arm in (same[:2] if k == 3 else same)]
        out[name] = svg.lines(title, [one for one in series if one.x], label)
    return out


def training_loss(arm: dict, colour: int, k: int, scale: float) -> Series:
    """Return the loss of an arm against entry k of its log over scale, in about sixty means, with a band over seeds."""
    parts = []
    for run in arm["runs"]:
        points = [p for p in run["losses"] if len(p) > k and p[k] is not None]
        size = max(1, len(points) // 60)
        groups = [points[i : i + size] for i in range(0, len(points), size)]
        parts.append([(g[-1][k] / scale, mean(p[1] for p in g)) for g in groups])
    points = list(zip(*parts, strict=False))
    ys = [[y for _, y in seen] for seen in points]
    return over_runs(arm, colour, [mean(x for x, _ in seen) for seen in points], ys, points=False)


def diagnostic_charts(result: dict) -> dict[str, str]:
    out, profiles = {}, {"loss": [], "accuracy": [], "grad_norm": []}
    for i, arm in enumerate(result["arms"]):
        probes = [f for f in map(levels, arm["runs"]) if f]
        for key, series in profiles.items():
            if probes:
                n = len(probes[0][key])
                some = [k for k in range(n) if all(f[key][k] is not None for f in probes)]
                values = [[f[key][k] for f in probes] for k in some]
                series.append(over_runs(arm, i, [100 * (k + 0.5) / n for k in some], values))
    titles = {"loss": "Loss by noise level, nats", "accuracy": "Prediction accuracy by noise level",
              "grad_norm": "Gradient norm by noise level"}  # fmt: skip
    for key, series in profiles.items():
        name = f"level-{key.replace('_', '-')}"
        out[name] = svg.lines(titles[key], series, "% of the tokens hidden", zero=key == "accuracy")
    for arm in first_arms(result).values():
        out |= heat_maps(arm)
    effect = [band(arm, i, STEP, lambda e: e.get("diagnostics", {}).get("weight_difficulty"))
              for i, arm in enumerate(result["arms"]) if arm["objective"] == "diffusion"]  # fmt: skip
    title = "Correlation of loss weight and difficulty"
    out["weight-difficulty"] = svg.lines(title, effect, "optimizer step", xlog=True)
    return out


def heat_maps(arm: dict) -> dict[str, str]:
    """Draw noise level by evaluation and attention head by evaluation, of an arm's first run."""
    seen = [e for e in arm["runs"][0]["evaluations"] if "diagnostics" in e]
    if not seen:
        return {}
    out, objective = {}, arm["objective"]
    columns = [svg.number(e["step"]) for e in seen]
    n = len(seen[0]["diagnostics"]["loss"])
    rows = [f"{100 * k // n}–{100 * (k + 1) // n} %" for k in reversed(range(n))]
    for key, what in (("loss", "loss"), ("accuracy", "accuracy"), ("grad_norm", "gradient norm"),
                      ("weighted_variance", "variance of weighted loss")):  # fmt: skip
        if key in seen[0]["diagnostics"]:
            values = [[e["diagnostics"][key][k] for e in seen] for k in reversed(range(n))]
            if key == "weighted_variance":
                values = [[None if v is None else math.log10(max(v, 1e-12)) for v in row] for row in values]
                what += ", log10"
            title = f"{NAMES[objective]}: {what} by noise level"
            out[f"heat-{objective}-{key.replace('_', '-')}"] = svg.heat(title, rows, columns, values, "hidden")
    first = seen[0]["diagnostics"]["attention"]
    heads = [(layer, head) for layer, row in enumerate(first["entropy"]) for head in range(len(row))]
    for key, unit in (("entropy", "nats"), ("distance", "tokens")):
        values = [[e["diagnostics"]["attention"][key][layer][head] for e in seen] for layer, head in heads]
        even = first[f"even_{key}"]
        title = f"{NAMES[objective]}: attention {key}, {unit} (even: {even:.2f})"
        rows = [f"layer {layer + 1} head {head + 1}" for layer, head in heads]
        out[f"heat-{objective}-attention-{key}"] = svg.heat(title, rows, columns, values)
    return out
