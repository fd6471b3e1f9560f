"""Check the code that scores a run against quantities whose answer is known.

Each check uses the run's own text and weights: ln V for a uniform predictor, the counted nats of a unigram, the
enumeration of all masks of short sequences, plain log-softmax over all logits, and the masks and tokens that the run's
metrics recorded. The run's model is run by our kernels in its precision, and by plain PyTorch in fp32. The stored test
figure of a finished run is computed again over the whole test split, which takes as long as at the end of training.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from .. import kernels
from ..config import ConfigError
from ..data import batches, dataset
from ..model import resolved
from ..runs.folder import checkpoint_of
from ..runs.load import load_run, source_of
from ..runs.metrics import as_written, entries, summary_of
from . import exact_likelihood, published_metric, unigram
from .exact_likelihood import subset
from .likelihood import final_scoring, likelihood, scoring

# By how many nats per token our figures in a precision may differ from those of plain fp32
ROUNDING = {"fp32": 1e-4, "bf16": 0.03}
SHORT = 6  # tokens of the sequences whose 2^SHORT - 1 masks are enumerated
ONE = ("left-to-right", "confidence", "margin", "entropy")  # the orders of one token a step
OBJECTIVES = ("diffusion", "autoregressive")


@dataclass(frozen=True)
class Result:
    name: str
    value: float
    expected: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return abs(self.value - self.expected) <= self.tolerance

    def __str__(self) -> str:
        figures = f"{self.value:.6f}, expected {self.expected:.6f} ± {self.tolerance:.1e}"
        return f"{'pass' if self.passed else 'FAIL'}  {self.name:58} {figures}"


def checks(folder: Path, *, rows: int = 32, steps: int = 200, device: str = "auto") -> Iterator[Result]:
    """Yield a Result for each check of a run. Raises ConfigError where the folder is not a run."""
    summary = summary_of(folder, as_written=False)
    which = "best" if summary.get("finished") else checkpoint_of(folder, None)
    config, tokenizer, model, state = load_run(folder, which, device)
    if summary:
        yield Result("summary.json is as it was written", float(_as_written(folder)), 1.0, 0.0)
        yield Result("metrics.jsonl is as it was written", float(as_written(folder, summary)), 1.0, 0.0)
    corpus = dataset.load(source_of(folder, config, state), config.model.seq_len, state.get("corpus"), tokenizer)
    yield Result("the text is the one trained on", float(corpus.hash == state["corpus_hash"]), 1.0, 0.0)
    few = subset(corpus.splits["test"], rows, tokenizer)
    start = dict(start_token_id=tokenizer.start_token_id)
    yield from _known_predictors(corpus.splits["train"], few, tokenizer, next(model.parameters()).device)
    with torch.no_grad():
        precision = resolved(next(model.parameters()).device, config.precision)
        yield from _short_sequences(model, few, precision, start)
        yield from _plain_pytorch(model, few, config, start)
    if summary.get("finished"):
        recomputed = likelihood(model, corpus.splits["test"], config.objective, **final_scoring(config, tokenizer))
        stored = summary["test"]["nats_per_token"]
        yield Result("the stored test figure, computed again", recomputed.nats_per_token, stored, 1e-4)
    yield from _replay(folder, config, corpus, steps)


def _as_written(folder: Path) -> bool:
    try:
        return bool(summary_of(folder))
    except ConfigError:
        return False


def _known_predictors(train: dataset.Split, few: dataset.Split, tokenizer, device) -> Iterator[Result]:
    """Yield the checks of the likelihood and the published metric on uniform and unigram predictors."""
    start, uniform_nats = dict(start_token_id=tokenizer.start_token_id), math.log(tokenizer.vocab)
    uniform = unigram.Unigram(torch.zeros(tokenizer.vocab)).to(device)
    log_p = unigram.log_probabilities(train, tokenizer.vocab)
    counted = -log_p[torch.from_numpy(unigram.scored_tokens(few))].mean().item()
    single = unigram.Unigram(log_p).to(device)
    for objective in OBJECTIVES:
        for predictor, name, draws, expected in (
            (uniform, f"uniform predictor, {objective}: ln V", 16, uniform_nats),
            (single, f"unigram predictor, {objective}: counted nats", 32, counted),
        ):
            score = likelihood(predictor, few, objective, max_samples=draws, **start)
            yield Result(name, score.nats_per_token, expected, 4.5 * score.stderr + 1e-4)

    def metric(objective: str, draws: int):
        return published_metric.published_metric(uniform, few, objective, draws=draws, **start)

    try:
        twin, ours = metric("autoregressive", 4), metric("diffusion", 4)
    except published_metric.NoMetric:  # rows of one token have none
        return
    name = "published metric of both objectives, the same draws"
    yield Result(name, ours.reweighted_loss, twin.reweighted_loss, 1e-4)
    many, expected = metric("autoregressive", 400), published_metric.uniform_factor(few.lengths) * uniform_nats
    name = "uniform predictor, published metric: ln V times its factor"
    yield Result(name, many.reweighted_loss, expected, 4.5 * many.stderr + 1e-4)


def _short_sequences(model, few: dataset.Split, precision: str, start: dict) -> Iterator[Result]:
    """Yield the check of the bound against the enumeration of all masks, where sequences are long enough to be cut."""
    index = np.flatnonzero(few.lengths >= SHORT)[:4]
    if not len(index):
        return
    short = replace(few, lengths=np.full(len(index), SHORT), starts=few.starts[index], seq_len=SHORT)
    x0 = short.rows(np.arange(len(short)), next(model.parameters()).device)[0]
    exact = enumerated_bound(model, x0) / x0.numel()
    draws = dict(min_samples=256, max_samples=256, precision=precision)
    score = likelihood(model, short, "diffusion", **draws, **start)
    name = f"the bound against all {2**SHORT - 1} masks of {SHORT} tokens"
    yield Result(name, score.nats_per_token, exact, 4.5 * score.stderr + ROUNDING[precision])
    best = exact_likelihood.oracle(model, short, precision=precision) - SHORT * ROUNDING[precision]
    below = sum(float((exact_likelihood.ORDERS[name](model, short, precision=precision) < best).sum()) for name in ONE)
    yield Result(f"orders of {SHORT} tokens that score less than the best of all", below, 0.0, 0.0)


def enumerated_bound(model, x0: torch.Tensor) -> float:
    """Return the bound in nats of rows x0 (R, n) over every mask, from plain logits."""
    n, total = x0.shape[1], 0.0
    for size in range(1, n + 1):
        for places in itertools.combinations(range(n), size):
            xt = x0.clone()
            xt[:, places] = model.mask_token_id
            logits = (model(xt, causal=False)[:, places] @ model.head.T).flatten(0, 1)
            nll = F.cross_entropy(logits, x0[:, places].flatten(), reduction="sum")
            total += nll.item() / size / math.comb(n, size)
    return total


def _plain_pytorch(model, few: dataset.Split, config, start: dict) -> Iterator[Result]:
    """Yield the checks of the autoregressive likelihood and of the fused head against all logits."""
    device = next(model.parameters()).device
    rounding = ROUNDING[resolved(device, config.precision)]
    x0, valid = few.rows(np.arange(min(4, len(few))), device)
    real = torch.ones_like(x0, dtype=torch.bool) if valid is None else valid
    total = 0.0
    for row, n in zip(x0, real.sum(1).tolist(), strict=True):
        read = torch.cat([row.new_tensor([start["start_token_id"]]), row[: n - 1]])[None]
        logits = model(read, causal=True)[0] @ model.head.T
        total -= logits.double().log_softmax(-1).gather(1, row[:n, None]).sum().item()
    some = replace(few, lengths=few.lengths[: len(x0)], starts=few.starts[: len(x0)])
    score = likelihood(model, some, "autoregressive", precision=config.precision, **start)
    yield Result("autoregressive against plain log-softmax", score.nats_per_token, total / some.scored, rounding)

    c = kernels.corrupt(x0, seed=config.seed, step=7, mask_token_id=model.mask_token_id, valid=valid)
    logits = model(c.xt, causal=False, valid=valid) @ model.head.T
    plain = F.cross_entropy(logits[c.masked].double(), x0[c.masked]).item()
    with scoring(model, config.precision):
        h = model(c.xt, causal=False, valid=valid).flatten(0, 1)[c.rows]
        fused = kernels.linear_cross_entropy(h, model.head, c.targets, n_rows=c.n_masked, reduction="none").sum()
    yield Result("fused head against plain cross-entropy", (fused / c.n_masked).item(), plain, rounding)


def _replay(folder: Path, config, corpus: dataset.Corpus, steps: int) -> Iterator[Result]:
    """Yield the checks that draw the masks and tokens of the first steps again, against metrics.jsonl.

    They reach to the step of its last line within `steps`, and at least to that of its first line.
    """

    def batch(step: int):
        size = config.train.batch_size
        return batches.batch(corpus.splits["train"], seed=config.seed, step=step, batch_size=size)

    def masks(x0, valid, step, **part):
        noise = dict(schedule=config.noise.schedule, sampling=config.noise.sampling)
        kw = dict(seed=config.seed, step=step, mask_token_id=corpus.tokenizer.vocab, valid=valid)
        return kernels.corrupt(x0, **kw, **noise, **part)

    x0, valid = batch(0)
    whole, half = masks(x0, valid, 0).masked, len(x0) // 2
    parts = masks(x0, valid, 0).masked
    if len(x0) > 1 and half % 2 == 0:
        a = masks(x0[:half], None if valid is None else valid[:half], 0, batch_rows=len(x0)).masked
        b = masks(x0[half:], None if valid is None else valid[half:], 0, batch_rows=len(x0), row_offset=half).masked
        parts = torch.cat([a, b])
    yield Result("the masks of a step, whole and in two parts, differ in", float((whole != parts).sum()), 0.0, 0.0)
    lines = (e for e in entries(folder / "metrics.jsonl")[0] if "loss" in e and "loss_tokens" in e)
    counts = {e["step"]: (e["tokens"], e["loss_tokens"]) for e in lines}
    if not counts:
        yield Result("metrics.jsonl counts the tokens of training steps: lines", 0.0, 1.0, 0.0)
        return
    recorded = {step: n for step, n in counts.items() if step <= max(steps, min(counts))}
    tokens = loss_tokens = wrong = 0
    for step in range(max(recorded)):
        x0, valid = batch(step)
        n = x0.numel() if valid is None else int(valid.sum())
        tokens += n
        loss_tokens += int(masks(x0, valid, step).n_masked) if config.objective == "diffusion" else n
        wrong += recorded.get(step + 1, (tokens, loss_tokens)) != (tokens, loss_tokens)
    yield Result(f"tokens and masks of {max(recorded)} steps, replayed: lines that differ", float(wrong), 0.0, 0.0)
