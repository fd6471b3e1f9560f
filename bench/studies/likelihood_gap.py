"""The published likelihood gap and multiple choice, on our models: `python -m bench.studies.likelihood_gap …`.

    score(text) = mean over i of log p(x_{i+1} | logits at place i),   the input whole, nothing masked
    gap         = score(context + right ending) - mean of score(context + wrong ending)

The published code computes this for both objectives, context and ending together, over four questions, and takes the
ending of the largest score as the model's answer. An autoregressive model's logits at place i predict the next token. A
diffusion model is trained to predict the masked token at place i itself, from both sides. At a place that is not masked
its logits are trained on nothing, and it sees the token that it is scored on. So the same score is computed in the
other direction too, against the token before, and against the token at the place itself. None of the three is a
likelihood of the diffusion model.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from torch import Tensor

import tdlm_fast
from tdlm_fast.data import dataset
from tdlm_fast.evaluation.likelihood import likelihood, scoring
from tdlm_fast.evaluation.tasks import Question, first, load
from tdlm_fast.kernels import linear_cross_entropy
from tdlm_fast.model import build_model
from tdlm_fast.runs.load import source_of
from tdlm_fast.statistics import wilson

SHIFTS = {"next token": 1, "token before": -1, "same token": 0}


@torch.no_grad()
def scores(model, texts: list[list[int]], *, causal: bool) -> Tensor:
    """Return the mean log p per token of each text of token ids for every shift, (shifts, texts) fp64 nats."""
    T, device = max(map(len, texts)), next(model.parameters()).device
    x0 = torch.zeros(len(texts), T, dtype=torch.int64, device=device)
    for row, text in zip(x0, texts, strict=True):
        row[: len(text)] = torch.tensor(text, device=device)
    lengths = torch.tensor([len(text) for text in texts], device=device)
    place = torch.arange(T, device=device)
    h = model(x0, causal=causal, valid=place < lengths[:, None])
    out = []
    for shift in SHIFTS.values():
        other = place + shift
        here = (other >= 0) & (other < lengths[:, None]) & (place < lengths[:, None])
        targets = x0[:, other.clamp(0, T - 1)]
        nll = linear_cross_entropy(h[here], model.head, targets[here], reduction="none").double()
        row = torch.arange(len(texts), device=device)[:, None].expand_as(here)[here]
        total = torch.zeros(len(texts), dtype=torch.float64, device=device).index_add_(0, row, nll)
        out.append(-total / here.sum(1))
    return torch.stack(out).cpu()


def gaps(model, questions: list[Question], tokenizer, *, causal: bool, precision: str, batch: int = 16) -> dict:
    """Return {shift: {"score", "gap", "gap_interval", "accuracy", "accuracy_interval"}} over the questions.

    score is the mean log p per token of the texts with the right ending; intervals are 95 %, over questions.
    """
    each: dict[str, list[Tensor]] = {name: [] for name in SHIFTS}
    with scoring(model, precision):
        for i in range(0, len(questions), batch):
            part = questions[i : i + batch]
            texts = [tokenizer.encode(q.context + ending) for q in part for ending in q.endings]
            found = scores(model, texts, causal=causal)
            for name, values in zip(SHIFTS, found, strict=True):
                each[name] += values.split([len(q.endings) for q in part])
    out = {}
    for name, values in each.items():
        right = torch.stack([v[q.gold] for v, q in zip(values, questions, strict=True)])
        wrong = [(v.sum() - v[q.gold]) / (len(v) - 1) for v, q in zip(values, questions, strict=True)]
        gap = right - torch.stack(wrong)
        half = 1.96 * gap.std().item() / math.sqrt(len(gap))
        correct = sum(v.argmax().item() == q.gold for v, q in zip(values, questions, strict=True)) / len(questions)
        out[name] = {
            "score": right.mean().item(), "gap": gap.mean().item(),
            "gap_interval": [gap.mean().item() - half, gap.mean().item() + half], "accuracy": correct,
            "accuracy_interval": list(wilson(correct, len(questions))),
        }  # fmt: skip
    return out


def measure(folder: Path, questions: list[Question]) -> dict:
    """Return the figures of a run before its first step and with its best weights."""
    config, tokenizer, model, state = tdlm_fast.load_run(folder)
    kw = dict(causal=config.objective == "autoregressive", precision=config.precision)
    out = {"objective": config.objective, "steps": state["step"], "ln_vocab": math.log(tokenizer.vocab)}
    before = build_model(config, tokenizer).to(next(model.parameters()).device)
    for name, weights in (("untrained", before), ("trained", model)):
        out[name] = gaps(weights, questions, tokenizer, **kw)
    if config.objective == "autoregressive":
        corpus = dataset.load(source_of(folder, config, state), config.model.seq_len, state.get("corpus"), tokenizer)
        start = dict(start_token_id=tokenizer.start_token_id, precision=config.precision)
        test = likelihood(model, corpus.splits["test"], config.objective, **start)
        out["test"] = {"nats_per_token": test.nats_per_token, "after_first": test.after_first, "corpus": corpus.hash}
    return out


def main(argv=None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("runs", nargs=2, metavar="RUN", type=Path, help="a diffusion and an autoregressive run")
    p.add_argument("--data", type=Path, help="folder with hellaswag_val.jsonl (default: the Hub)")
    p.add_argument("--limit", type=int, default=200, help="questions")
    p.add_argument("--json", type=Path, default=Path("bench/results/likelihood-gap.json"))
    a = p.parse_args(argv)
    questions = first(load("hellaswag", a.data)[1], a.limit)
    figures = {"task": "hellaswag", "questions": len(questions), "chance": 1 / len(questions[0].endings)}
    figures |= {run["objective"]: run for run in (measure(folder, questions) for folder in a.runs)}
    a.json.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"{a.json}: python -m bench.report draws it into docs/claims.md")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
