"""Several likelihoods of one run, side by side: `python -m tdlm_fast.table RUN [--sequences 64]`.

    autoregressive  exact
    diffusion       the bound; exact left to right; exact, most certain first (exact_likelihood.py)
    both            the unigram baseline, and the published metric, which is no likelihood

What needs a forward pass a token is computed on a subset of the sequences, beside the bound or the next-token
likelihood of the very same sequences; its interval is over sequences. The figures are kept in RUN/likelihoods.json.
"""

import math
from pathlib import Path

from .. import config as settings


def _row(name: str, kind: str, nats: float, low: float | None, high: float | None, split, of: str) -> dict:
    bits = split.scored / split.bytes / math.log(2)
    return {
        "name": name, "kind": kind, "interval_of": of, "sequences": len(split), "tokens": split.scored,
        "nats_per_token": nats, "low": low, "high": high, "ppl": math.exp(min(nats, 700)), "bits_per_byte": nats * bits,
    }  # fmt: skip


def likelihoods(
    folder: Path, *, sequences: int = 64, draws: int = 8, device: str = "auto", split: str = "test"
) -> dict:
    """The table of a run's best checkpoint, from likelihoods.json where it holds these very settings.

    {"key", "rows": […], "published", "uniform_factor", "per_sequence": {name: nats of each}, "levels"}; intervals are
    95 %. Raises ConfigError where there is no run or its text has changed.
    """
    import torch

    from .. import statistics
    from ..data import dataset
    from ..runs.files import figures, write_json
    from ..runs.load import load_run
    from . import exact_likelihood, likelihood
    from .diagnostics import diagnose
    from .published_metric import both, uniform_factor
    from .unigram import unigram

    config, tokenizer, model, state = load_run(folder, None, device)
    key = {name: state[name] for name in ("step", "weights")} | {"corpus": state["corpus_hash"]}
    key |= {"sequences": sequences, "draws": draws, "split": split}
    file = folder / "likelihoods.json"
    if (kept := figures(file)).get("key") == key:
        return kept
    corpus = dataset.load(config.data, config.model.seq_len, state.get("corpus"))
    if corpus.hash != state["corpus_hash"]:
        raise settings.ConfigError(f"the text is not what {folder} was trained on; restore it")
    whole, few = (
        corpus.splits[split],
        exact_likelihood.subset(corpus.splits[split], sequences, tokenizer, seed=config.seed),
    )
    kw = dict(start_token_id=tokenizer.start_token_id, precision=config.precision)
    found, metric = both(
        model, whole, config.objective, draws=draws, seed=config.seed, batch_size=config.eval.batch_size,
        target_stderr=config.eval.target_stderr, max_samples=config.eval.max_samples, **kw,
    )  # fmt: skip
    name = "next token" if config.objective == "autoregressive" else "bound"
    rows = [_row(name, found.bound, found.nats_per_token, *found.interval, whole, "estimate" if found.samples else "")]
    each = {}
    with likelihood.scoring(model, config.precision) as where:
        size = dict(batch_size=config.eval.batch_size, device=where)
        if config.objective == "autoregressive":
            nll = likelihood.autoregressive_nll(model, few, start_token_id=tokenizer.start_token_id, **size)
            each["next token"] = nll.double().sum(1).cpu()
        else:
            lengths = likelihood.row_lengths(few)
            total = torch.zeros(len(few), dtype=torch.float64)
            for draw in range(draws):
                counts = likelihood.draw_counts(lengths, seed=config.seed, draw=draw)
                sums = likelihood.masked_sums(model, few, counts, seed=config.seed, draw=draw, **size)
                total += sums.cpu() * lengths / counts
            each["bound"] = total / draws
            for order, exact in exact_likelihood.ORDERS.items():
                each[order] = exact(model, few, batch_size=config.eval.batch_size, precision=config.precision)
    for order, nats in each.items():
        mean, stderr = exact_likelihood.mean_and_stderr(nats, likelihood.row_lengths(few))
        half = stderr * statistics.t_975(len(few) - 1) if len(few) > 1 else None  # one sequence shows no spread
        kind = "upper bound" if order == "bound" else "exact"
        ends = (None, None) if half is None else (mean - half, mean + half)
        rows.append(_row(order, kind, mean, *ends, few, "sequences"))
    base = unigram(corpus.splits["train"], whole, tokenizer.vocab).nats_per_token
    rows.append(_row("unigram baseline", "exact", base, base, base, whole, ""))
    table = {
        "key": key, "objective": config.objective, "rows": rows, "published": metric.asdict(),
        "uniform_factor": uniform_factor(whole.lengths), "unigram_train_tokens": corpus.splits["train"].scored,
        "per_sequence": {k: v.tolist() for k, v in each.items()}, "tokens_per_sequence": few.lengths.tolist(),
        "levels": diagnose(model, whole, config.objective, rows=64, loss_weight=config.loss_weight, **kw),
    }  # fmt: skip
    write_json(file, table)
    return table


def cell(row: dict) -> str:
    """Nats per token with their interval, as tables show them; one sequence has none."""
    known = None not in (row["low"], row["high"]) and row["high"] > row["low"]
    interval = f" [{row['low']:.3f}, {row['high']:.3f}]" if known else ""
    return f"{'≤ ' if row['kind'] == 'upper bound' else ''}{row['nats_per_token']:.3f}{interval}"


def lines(table: dict) -> list[list[str]]:
    """Heading and rows of the table as text: what, kind, tokens, nats per token, ppl, bits per byte."""
    out = [["likelihood", "kind", "sequences", "tokens", "nats per token", "ppl", "bits/byte"]]
    whole = table["rows"][0]
    for r in table["rows"]:
        name = f"{r['name']} of {r['sequences']:,} sequences" if r["sequences"] < whole["sequences"] else r["name"]
        numbers = [f"{r['sequences']:,}", f"{r['tokens']:,}", cell(r), f"{r['ppl']:,.2f}", f"{r['bits_per_byte']:.4f}"]
        out.append([name, r["kind"], *numbers])
    p = table["published"]
    value = f"({p['reweighted_loss']:.3f} [{p['interval'][0]:.3f}, {p['interval'][1]:.3f}])"
    numbers = [f"{whole['sequences']:,}", f"{whole['tokens']:,}", value, f"({p['published_metric']:,.2f})", "none"]
    return [*out, ["published metric", "not a likelihood", *numbers]]
