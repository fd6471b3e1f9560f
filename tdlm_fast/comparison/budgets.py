"""Compare both objectives at equal budgets: steps, training FLOPs, loss-bearing tokens, seconds."""

import math

from ..statistics import over_seeds
from .arms import OBJECTIVES

LEDGERS = {
    "optimizer steps": lambda run, e: e["step"],
    "training FLOPs": lambda run, e: flops(run, e["step"], e["loss_tokens"]),
    "loss-bearing tokens": lambda run, e: e["loss_tokens"],
    "seconds of training": lambda run, e: e["seconds"],
}


def flops(run: dict, step: int, loss_tokens: int | None) -> float | None:
    """Count the floating-point operations of training up to a step: three times those of the forward pass.

    Blocks take 6 P a token and attention 12 L D T, over all B T places (padding is computed too); the head takes 6 D V
    for each token that bears loss. Chowdhery et al. 2022, appendix B, with the head counted where it runs.
    """
    c, parts = run["config"], run["summary"]["parameters_by_part"]
    if loss_tokens is None:
        return None
    places = step * c["train.batch_size"] * c["model.seq_len"]
    attention = 12 * c["model.layers"] * c["model.width"] * c["model.seq_len"]
    head = parts["head"] or parts["embedding"]  # a tied head has the embedding's rows
    return float(places * (6 * parts["blocks"] + attention) + 6 * head * loss_tokens)


def _at(run: dict, value, budget: float) -> tuple[float, float] | None:
    """Interpolate (validation nats, their standard error) of a run where value(run, evaluation) is the budget."""
    points = [(value(run, e), e["valid"]) for e in run["evaluations"]]
    for (x0, e0), (x1, e1) in zip(points, points[1:], strict=False):
        if x0 <= budget <= x1 and x1 > x0:
            y0, y1 = e0["nats_per_token"], e1["nats_per_token"]
            return y0 + (y1 - y0) * (budget - x0) / (x1 - x0), max(e0["stderr"], e1["stderr"])
    return None


def ledgers(pairs: list[tuple[dict, dict]]) -> list[dict]:
    """Compare both objectives at the largest budget that all runs reached, for each way of counting it.

    [{"ledger", "budget", "diffusion", "autoregressive", "difference"}]: validation nats per token; the difference is
    diffusion's advantage.
    """
    out = []
    for name, value in LEDGERS.items() if pairs else ():
        ends = [value(run, run["evaluations"][-1]) for pair in pairs for run in pair]
        if any(v is None for pair in pairs for run in pair for v in (value(run, e) for e in run["evaluations"])):
            continue
        reached = [[at for run in pair if (at := _at(run, value, min(ends)))] for pair in pairs]
        if any(len(both) < 2 for both in reached):
            continue
        row = {"ledger": name, "budget": min(ends)}
        row |= {o: sum(both[i][0] for both in reached) / len(reached) for i, o in enumerate(OBJECTIVES)}
        errors = [math.hypot(d[1], a[1]) for d, a in reached]
        out.append(row | {"difference": over_seeds([a[0] - d[0] for d, a in reached], errors)})
    return out
