"""Measure the figures of docs/claims.md that need no training: `python -m bench.studies.claims --raw … --tokenised …`.

Both options take a folder that holds WikiText-2 as train.txt, valid.txt, test.txt; train.txt may be missing from the
raw one. Measured are the published metric's factor at the lengths of the published rows, an untrained model under every
metric, and the unigram and the 5-gram baseline. The raw text is read as published rows; the tokenised one as
paragraphs, as our runs read it. Nothing is timed.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch

from tdlm_fast import config as settings
from tdlm_fast.config import LAYOUTS
from tdlm_fast.data import dataset, token_cache
from tdlm_fast.data.tokenizer import GPT2
from tdlm_fast.evaluation.exact_likelihood import subset
from tdlm_fast.evaluation.kneser_ney import kneser_ney
from tdlm_fast.evaluation.likelihood import autoregressive_nll, likelihood
from tdlm_fast.evaluation.published_metric import published_metric, uniform_factor
from tdlm_fast.evaluation.unigram import Unigram, scored_tokens, unigram
from tdlm_fast.model import build_model


def split_of(file: Path, layout: str, tokenizer) -> dataset.Split:
    text = file.read_text(encoding="utf-8")
    return dataset.split_rows(token_cache.tokenize(text, layout, tokenizer), text, layout, 128, tokenizer)


def untrained(test: dataset.Split, tokenizer, rows: int) -> dict:
    """configs/tiny.yaml's model before its first step, on some test rows."""
    config = settings.load("configs/tiny.yaml")
    model, few = build_model(config, tokenizer), subset(test, rows, tokenizer)
    kw = dict(start_token_id=tokenizer.start_token_id)
    nll = autoregressive_nll(model, few, batch_size=64, precision="fp32", **kw)
    figures = {o: likelihood(model, few, o, max_samples=4, **kw).asdict() for o in ("diffusion", "autoregressive")}
    metric = published_metric(model, few, "diffusion", draws=48, **kw)
    same = published_metric(model, few, "autoregressive", draws=48, nll=nll, **kw)
    return {
        "rows": rows, "tokens": few.scored, "likelihood": figures, "published": metric.asdict(),
        "published_autoregressive_same_draws": same.asdict(),
    }  # fmt: skip


def measure(raw: Path, tokenised: Path, rows: int) -> dict:
    tokenizer, out = GPT2(), {}
    splits = {(name, s, layout): split_of(folder / f"{s}.txt", layout, tokenizer)
              for name, folder in (("raw", raw), ("tokenised", tokenised)) for s in ("valid", "test")
              for layout in LAYOUTS}  # fmt: skip
    read_as = {"raw": "published", "tokenised": "paragraphs"}
    out["factor"] = {f"{n} {s}": uniform_factor(x.lengths) for (n, s, form), x in splits.items() if form == read_as[n]}
    out["unigram"] = {}
    for layout in LAYOUTS:
        test = splits["raw", "test", layout]
        counts = np.bincount(scored_tokens(test))
        p = counts[counts > 0] / counts.sum()
        figures = {"nats_per_token": float(-(p * np.log(p)).sum()), "tokens": test.scored, "rows": len(test)}
        out["unigram"][f"entropy_of_raw_test_{layout}"] = figures
    train = split_of(tokenised / "train.txt", "paragraphs", tokenizer)
    for s in ("valid", "test"):
        out["unigram"][f"tokenised_{s}"] = unigram(
            train, splits["tokenised", s, "paragraphs"], tokenizer.vocab
        ).asdict()
    out["unigram"]["train_tokens"] = train.scored
    test = splits["tokenised", "test", "paragraphs"]
    out["five_gram"] = {"tokenised_test": kneser_ney(train, test, tokenizer.vocab).asdict()}
    out["untrained"] = untrained(splits["raw", "test", "published"], tokenizer, rows)
    valid = splits["raw", "valid", "published"]
    ones = torch.ones(len(valid), valid.seq_len)
    even = published_metric(
        Unigram(torch.zeros(1)), valid, "autoregressive", start_token_id=0, draws=200, nll=ones
    )  # a loss of 1 at every token leaves only the spread of the draws
    out["single_draw"] = {"rows": len(valid), "sd_share": even.single_draw_sd / even.reweighted_loss}
    out["ln_vocab"] = math.log(tokenizer.vocab)
    return out


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--raw", type=Path, required=True)
    p.add_argument("--tokenised", type=Path, required=True)
    p.add_argument("--rows", type=int, default=300, help="test rows of the untrained model")
    p.add_argument("--json", type=Path, default=Path("bench/results/claims.json"))
    a = p.parse_args()
    figures = measure(a.raw, a.tokenised, a.rows)
    a.json.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps({k: figures[k] for k in ("factor", "unigram")}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
