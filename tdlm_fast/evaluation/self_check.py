"""Prove the instrument on the spot: `python -m tdlm_fast.check RUN`. Exit code 0 where everything passes.

Every line is a quantity whose answer is known, computed by the code that scores the run, on the run's own text and
weights: ln V for a uniform predictor, the counted nats of a unigram, the enumeration of all masks of short sequences,
plain log-softmax over all logits, and the masks and tokens that the run's metrics recorded. Our kernels run the run's
model in its precision, plain PyTorch in fp32. The stored test figure of a finished run is computed again over the whole
test split, which takes what it took at the end of training.
"""

import itertools
import math
from dataclasses import dataclass, replace
from pathlib import Path

# Nats a token by which our figures in a precision may lie off those of plain fp32
ROUNDING = {"fp32": 1e-4, "bf16": 0.03}
SHORT = 6  # tokens of the sequences whose 2^SHORT - 1 masks are enumerated


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


def _enumerated(model, x0) -> float:
    """The bound in nats of rows x0 (R, n) over every mask, from plain logits."""
    import torch.nn.functional as F

    n, total = x0.shape[1], 0.0
    for size in range(1, n + 1):
        for places in itertools.combinations(range(n), size):
            xt = x0.clone()
            xt[:, places] = model.mask_token_id
            logits = (model(xt, causal=False)[:, places] @ model.head.T).flatten(0, 1)
            nll = F.cross_entropy(logits, x0[:, places].flatten(), reduction="sum")
            total += nll.item() / size / math.comb(n, size)
    return total


def checks(folder: Path, *, rows: int = 32, steps: int = 200, device: str = "auto"):
    """Yield a Result for each check of a run; raises ConfigError where there is no run."""
    import numpy as np
    import torch
    import torch.nn.functional as F

    from ..data import dataset
    from ..kernels import corrupt, linear_cross_entropy
    from ..runs.load import load_run
    from ..runs.metrics import finished
    from .exact_likelihood import subset
    from .likelihood import likelihood, scoring
    from .published_metric import published_metric, uniform_factor
    from .unigram import Unigram, log_probabilities, scored_tokens

    config, tokenizer, model, state = load_run(folder, None, device)
    where = next(model.parameters()).device
    corpus = dataset.load(config.data, config.model.seq_len, state.get("corpus"))
    yield Result("the text is the one trained on", float(corpus.hash == state["corpus_hash"]), 1.0, 0.0)
    few = subset(corpus.splits["test"], rows, tokenizer)
    precision, rounding = config.precision, ROUNDING[config.precision]
    start, objectives = dict(start_token_id=tokenizer.start_token_id), ("diffusion", "autoregressive")

    uniform = Unigram(torch.zeros(tokenizer.vocab)).to(where)
    log_p = log_probabilities(corpus.splits["train"], tokenizer.vocab)
    counted = -log_p[torch.from_numpy(scored_tokens(few))].mean().item()
    single = Unigram(log_p).to(where)
    for objective in objectives:
        found = likelihood(uniform, few, objective, max_samples=16, **start)
        error = 4.5 * found.stderr + 1e-4
        yield Result(f"uniform predictor, {objective}: ln V", found.nats_per_token, math.log(tokenizer.vocab), error)
        found = likelihood(single, few, objective, max_samples=32, **start)
        error = 4.5 * found.stderr + 1e-4
        yield Result(f"unigram predictor, {objective}: counted nats", found.nats_per_token, counted, error)
    twin, metric = (published_metric(uniform, few, objective, draws=4, **start) for objective in objectives[::-1])
    name = "published metric of both objectives, the same draws"
    yield Result(name, metric.reweighted_loss, twin.reweighted_loss, 1e-4)
    metric = published_metric(uniform, few, "autoregressive", draws=400, **start)
    expected = uniform_factor(few.lengths) * math.log(tokenizer.vocab)
    error = 4.5 * metric.stderr + 1e-4
    yield Result("uniform predictor, published metric: ln V times its factor", metric.reweighted_loss, expected, error)

    with torch.no_grad():
        long = [i for i in range(len(few)) if few.lengths[i] >= SHORT]
        if long:
            index = np.array(long[:4])
            short = replace(few, lengths=np.full(len(index), SHORT), starts=few.starts[index], seq_len=SHORT)
            x0 = short.rows(np.arange(len(short)), where)[0]
            exact = _enumerated(model, x0) / x0.numel()
            draws = dict(min_samples=256, max_samples=256, precision=precision)
            found = likelihood(model, short, "diffusion", **draws, **start)
            name = f"the bound against all {2**SHORT - 1} masks of {SHORT} tokens"
            yield Result(name, found.nats_per_token, exact, 4.5 * found.stderr + rounding)
        x0, valid = few.rows(np.arange(min(4, len(few))), where)
        real = torch.ones_like(x0, dtype=torch.bool) if valid is None else valid
        total = 0.0
        for row, n in zip(x0, real.sum(1).tolist(), strict=True):
            read = torch.cat([row.new_tensor([tokenizer.start_token_id]), row[: n - 1]])[None]
            logits = model(read, causal=True)[0] @ model.head.T
            total -= logits.double().log_softmax(-1).gather(1, row[:n, None]).sum().item()
        some = replace(few, lengths=few.lengths[: len(x0)], starts=few.starts[: len(x0)])
        found = likelihood(model, some, "autoregressive", precision=precision, **start)
        yield Result("next token against plain log-softmax", found.nats_per_token, total / some.scored, rounding)

        c = corrupt(x0, seed=config.seed, step=7, mask_token_id=model.mask_token_id, valid=valid)
        logits = model(c.xt, causal=False, valid=valid) @ model.head.T
        plain = F.cross_entropy(logits[c.masked].double(), x0[c.masked]).item()
        with scoring(model, precision):
            h = model(c.xt, causal=False, valid=valid).flatten(0, 1)[c.rows]
            fused = linear_cross_entropy(h, model.head, c.targets, n_rows=c.n_masked, reduction="none").sum()
        yield Result("fused head against plain cross-entropy", (fused / c.n_masked).item(), plain, rounding)
    summary = finished(folder)
    if summary is not None:
        found = likelihood(
            model, corpus.splits["test"], config.objective, seed=config.seed, batch_size=config.eval.batch_size,
            target_stderr=config.eval.target_stderr, max_samples=config.eval.max_samples, precision=precision, **start,
        )  # fmt: skip
        stored = summary["test"]["nats_per_token"]
        yield Result("the stored test figure, computed again", found.nats_per_token, stored, 1e-4)
    yield from _replay(folder, config, corpus, steps)


def _replay(folder: Path, config, corpus, steps: int):
    """The masks and tokens of the first steps, drawn again, against what metrics.jsonl counted while training."""
    import torch

    from ..data import batches
    from ..kernels import corrupt
    from ..runs import metrics

    x0, valid = batches.batch(corpus.splits["train"], seed=config.seed, step=0, batch_size=config.train.batch_size)
    kw = dict(mask_token_id=corpus.tokenizer.vocab, schedule=config.noise.schedule, sampling=config.noise.sampling)

    def masks(x0, valid, step, **part):
        return corrupt(x0, seed=config.seed, step=step, valid=valid, **kw, **part)

    whole, half = masks(x0, valid, 0).masked, len(x0) // 2
    again = masks(x0, valid, 0).masked
    if len(x0) > 1 and half % 2 == 0:
        a = masks(x0[:half], None if valid is None else valid[:half], 0, batch_rows=len(x0)).masked
        b = masks(x0[half:], None if valid is None else valid[half:], 0, batch_rows=len(x0), row_offset=half).masked
        again = torch.cat([a, b])
    yield Result("the masks of a step, whole and in two parts, differ in", float((whole != again).sum()), 0.0, 0.0)
    entries = [e for e in metrics.entries(folder / "metrics.jsonl")[0] if "loss" in e and "loss_tokens" in e]
    entries = [e for e in entries if e["step"] <= steps]
    if not entries:
        yield Result(f"metrics.jsonl counts the tokens of steps up to {steps}: lines", 0.0, 1.0, 0.0)
        return
    at = {e["step"]: e for e in entries}
    tokens = loss_tokens = wrong = 0
    for step in range(max(at)):
        x0, valid = batches.batch(
            corpus.splits["train"], seed=config.seed, step=step, batch_size=config.train.batch_size
        )
        n = x0.numel() if valid is None else int(valid.sum())
        tokens += n
        loss_tokens += int(masks(x0, valid, step).n_masked) if config.objective == "diffusion" else n
        if step + 1 in at:
            wrong += (at[step + 1]["tokens"], at[step + 1]["loss_tokens"]) != (tokens, loss_tokens)
    name = f"tokens and masks of {max(at)} steps, replayed: lines that differ"
    yield Result(name, float(wrong), 0.0, 0.0)
