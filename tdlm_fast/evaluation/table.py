"""Compute several likelihoods of one run, to set them side by side.

    autoregressive  exact
    diffusion       the bound; exact left to right; exact by several policies (exact_likelihood.py)
    both            the unigram and the 5-gram baseline, and the published metric, which is not a likelihood;
                    of a Markov source also its own likelihood and its entropy

Where no sequence has more than exact_likelihood.LONGEST_ORACLE tokens, the table also holds the nats along the best
order of all, which is not a likelihood either.

A likelihood that needs a forward pass for each token is computed on a subset of the sequences, beside the bound or the
autoregressive likelihood of the same sequences; its interval is over sequences. RUN/likelihoods.json keeps the figures
of whole rows.
"""

import math
from pathlib import Path

from torch import Tensor

from ..data.dataset import Split
from ..runs.files import figures, write_figures
from ..runs.load import load_run, trained_text
from ..statistics import t_975
from . import exact_likelihood, likelihood, published_metric
from .diagnostics import diagnose
from .kneser_ney import kneser_ney
from .source_entropy import source
from .unigram import unigram

ORACLE = "best order of all, seeing the row"


def _row(name: str, kind: str, nats: float, low: float | None, high: float | None, split: Split, of: str) -> dict:
    bits = nats * split.scored / split.bytes / math.log(2) if split.bytes else None  # no bytes: not text
    return {
        "name": name, "kind": kind, "interval_of": of, "sequences": len(split), "tokens": split.scored,
        "nats_per_token": nats, "low": low, "high": high, "ppl": math.exp(min(nats, 700)), "bits_per_byte": bits,
    }  # fmt: skip


def _nats_by_order(config, model, few: Split, start_token_id: int, draws: int) -> dict[str, Tensor]:
    """Return {name: nats (R,) of each row} of every likelihood that is computed on a subset of the sequences."""
    kw = dict(batch_size=config.eval.batch_size, precision=config.precision)
    if config.objective == "autoregressive":
        nll = likelihood.autoregressive_nll(model, few, start_token_id=start_token_id, **kw)
        return {"next token": nll.double().sum(1).cpu()}
    with likelihood.scoring(model, config.precision) as device:
        draw = dict(seed=config.seed, batch_size=config.eval.batch_size, device=device)
        bounds = [likelihood.diffusion_draw(model, few, draw=i, **draw) for i in range(draws)]
    nats = {name: order(model, few, **kw) for name, order in exact_likelihood.ORDERS.items()}
    if few.lengths.max() <= exact_likelihood.LONGEST_ORACLE:
        nats[ORACLE] = exact_likelihood.oracle(model, few, **kw)
    return {"bound": sum(bounds[1:], bounds[0]) / draws} | nats


def _kind(order: str) -> str:
    return {"bound": "upper bound", ORACLE: "not a likelihood"}.get(order, "exact")


def measured(config, model, score: likelihood.Likelihood, whole: Split, few: Split, start_token_id: int, draws: int):
    """Return the rows of a model, and {name: nats (R,) of each row of few}: its score on whole, then those of few.

    config: its objective, precision, seed and eval.batch_size count.
    """
    name = "next token" if config.objective == "autoregressive" else "bound"
    rows = [_row(name, score.bound, score.nats_per_token, *score.interval, whole, "estimate" if score.samples else "")]
    each = _nats_by_order(config, model, few, start_token_id, draws)
    for order, nats in each.items():
        mean, stderr = exact_likelihood.mean_and_stderr(nats, likelihood.row_lengths(few))
        half = stderr * t_975(len(few) - 1) if len(few) > 1 else None  # one sequence shows no spread
        ends = (None, None) if half is None else (mean - half, mean + half)
        rows.append(_row(order, _kind(order), mean, *ends, few, "sequences"))
    return rows, each


def likelihoods(
    folder: Path, *, sequences: int = 64, draws: int = 8, device: str = "auto", split: str = "test", cut: int = 0
) -> dict:
    """Return the table of a run's best checkpoint, from likelihoods.json where it holds these settings.

    cut: score only the first tokens of each row, that many at most; such a table is not kept.
    {"key", "rows": […], "published", "uniform_factor", "per_sequence": {name: nats of each}, "levels"}; intervals are
    95 %. Raises ConfigError where the folder is not a run or its text has changed.
    """
    config, tokenizer, model, state = load_run(folder, None, device)
    key = {name: state[name] for name in ("step", "weights")} | {"corpus": state["corpus_hash"]}
    key |= {"sequences": sequences, "draws": draws, "split": split, "orders": list(exact_likelihood.ORDERS)}
    file = folder / "likelihoods.json"
    if not cut and (stored := figures(file)).get("key") == key:
        return stored
    splits, scoring = trained_text(folder, config, state).splits, likelihood.final_scoring(config, tokenizer)
    whole = exact_likelihood.cut(splits[split], cut, tokenizer) if cut else splits[split]
    few = exact_likelihood.subset(whole, sequences, tokenizer, seed=config.seed)
    score, metric = published_metric.both(model, whole, config.objective, draws=draws, **scoring)
    rows, each = measured(config, model, score, whole, few, tokenizer.start_token_id, draws)
    for name, baseline in (("5-gram baseline", kneser_ney), ("unigram baseline", unigram)):
        base = baseline(splits["train"], whole, tokenizer.vocab).nats_per_token
        rows.append(_row(name, "exact", base, base, base, whole, ""))
    own = [(part, s) for part in (whole, few) if (s := source(config.data, part))]
    known = [("the source itself", "exact", s.nats_per_token, part) for part, s in own]
    known += [("entropy of the source", "expected", s.entropy, part) for part, s in own[:1]]
    rows += [_row(name, kind, nats, nats, nats, part, "") for name, kind, nats, part in known]
    factor = published_metric.uniform_factor(whole.lengths) if metric else None
    kw = {k: scoring[k] for k in ("start_token_id", "precision")}
    table = {
        "key": key, "objective": config.objective, "rows": rows, "published": metric and metric.asdict(),
        "uniform_factor": factor, "unigram_train_tokens": splits["train"].scored,
        "per_sequence": {k: v.tolist() for k, v in each.items() if k != ORACLE},
        "tokens_per_sequence": few.lengths.tolist(),
        "levels": diagnose(model, whole, config.objective, rows=64, loss_weight=config.loss_weight, **kw),
    }  # fmt: skip
    if not cut:
        write_figures(file, table)
    return table
