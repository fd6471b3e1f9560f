"""Measure the error of four estimators of one bound by their number of samples: `python -m bench.studies.estimator`.

    plain              t ~ U(0, 1) per row, each token masked with probability t, weight 1/t
    t-stratified       the same with t in strata over the rows
    counts             l ~ U{1 .. n} per row, exactly l tokens masked, weight n/l
    counts-stratified  the same with l in strata over the rows: the estimator of `tdlm_fast.evaluate`

The model is trained for a few hundred steps on a Markov chain; the truth is the enumeration of all 255 masks of each
row. A sample is one forward pass of every row. Only the error is measured, no time.
"""

import argparse
import itertools
import json
import math
from pathlib import Path

import numpy as np
import torch

from tdlm_fast.config import Model as Shape
from tdlm_fast.data.dataset import Split
from tdlm_fast.evaluation.likelihood import draw_counts, masked_sums, row_lengths
from tdlm_fast.kernels import linear_cross_entropy
from tdlm_fast.kernels.philox import STREAM_SAMPLE, STREAM_TIME, STREAM_TOKEN, random_words
from tdlm_fast.model import Model
from tdlm_fast.objective import diffusion_loss

T, VOCAB, ROWS = 8, 8, 64


def chain(g: torch.Generator, rows: int) -> torch.Tensor:
    """(rows, T) of a Markov chain over VOCAB states that mostly moves to the next state."""
    step = torch.full((VOCAB,), 0.02)
    step[1], step[2] = 0.7, 0.18
    step /= step.sum()
    x = [torch.randint(0, VOCAB, (rows,), generator=g)]
    while len(x) < T:
        x.append((x[-1] + torch.multinomial(step, rows, True, generator=g)) % VOCAB)
    return torch.stack(x, 1)


def trained(steps: int) -> Model:
    g = torch.Generator().manual_seed(0)
    model = Model(Shape(width=32, layers=2, heads=2, inner=64, dropout=0.0), vocab=VOCAB)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(steps):
        loss, _ = diffusion_loss(model, chain(g, 64), seed=0, step=step, start_token_id=0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def enumeration(model: Model, x0: torch.Tensor) -> float:
    """The bound in nats per token over every mask of rows x0 (R, T)."""
    n, total = x0.shape[1], 0.0
    for size in range(1, n + 1):
        for places in itertools.combinations(range(n), size):
            xt = x0.clone()
            xt[:, places] = model.mask_token_id
            h = model(xt, causal=False)[:, places].flatten(0, 1)
            nll = linear_cross_entropy(h, model.head, x0[:, places].flatten(), reduction="none")
            total += nll.double().sum().item() / size / math.comb(n, size)
    return total / x0.numel()


@torch.no_grad()
def estimate(model: Model, split: Split, name: str, *, seed: int, draw: int) -> float:
    """One sample of the bound in nats per token by the named estimator."""
    lengths = row_lengths(split)
    u = random_words(torch.arange(len(split)), seed=seed, step=draw, stream=STREAM_TIME)
    if name.startswith("counts"):
        counts = draw_counts(lengths, seed=seed, draw=draw) if name == "counts-stratified" else lengths * u // 2**32 + 1
        sums = masked_sums(model, split, counts, seed=seed, draw=draw, batch_size=len(split), device="cpu")
        return (sums * lengths / counts).sum().item() / split.scored
    t = (u.double() + 0.5) / 2**32
    if name == "t-stratified":
        order = random_words(torch.arange(len(split)), seed=seed, step=draw, stream=STREAM_SAMPLE)
        t = (torch.argsort(torch.argsort(order)) + t) / len(split)  # every row meets every stratum in the long run
    x0, valid = split.rows(np.arange(len(split)))
    words = random_words(torch.arange(x0.numel()).view_as(x0), seed=seed, step=draw, stream=STREAM_TOKEN)
    masked = words < (t * 2**32)[:, None]
    masked = masked if valid is None else masked & valid
    h = model(torch.where(masked, model.mask_token_id, x0), causal=False, valid=valid)[masked]
    nll = linear_cross_entropy(h, model.head, x0[masked], reduction="none")
    return (nll.double() / t[:, None].expand_as(masked)[masked]).sum().item() / split.scored


ESTIMATORS = ("plain", "t-stratified", "counts", "counts-stratified")


def measure(steps: int, repeats: int, samples: tuple[int, ...]) -> dict:
    model, x0 = trained(steps), chain(torch.Generator().manual_seed(1), ROWS)
    tokens = x0.numpy().astype(np.uint16).ravel()
    starts = np.arange(0, tokens.size, T)
    split = Split(tokens, np.full(ROWS, T), T, False, starts, tokens.size, None)
    truth, out = enumeration(model, x0), {}
    for name in ESTIMATORS:
        draws = np.array([estimate(model, split, name, seed=1, draw=d) for d in range(repeats * max(samples))])
        draws = draws.reshape(repeats, max(samples))
        errors = [float(np.sqrt(((draws[:, :k].mean(1) - truth) ** 2).mean())) for k in samples]
        out[name] = {
            "rmse": errors, "mean": float(draws.mean()), "stderr": float(draws.std(ddof=1) / draws.size**0.5),
            "variance_of_a_sample": float(draws.var(ddof=1)),
        }  # fmt: skip
    return {
        "what": "root mean square error, nats per token, of the bound estimated with that many samples",
        "truth": truth, "rows": ROWS, "tokens_a_row": T, "repeats": repeats, "samples": list(samples),
        "training_steps": steps, "estimators": out,
    }  # fmt: skip


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--json", type=Path, default=Path("bench/results/estimator.json"))
    p.add_argument("--repeats", type=int, default=200)
    a = p.parse_args()
    figures = measure(400, a.repeats, (1, 2, 4, 8, 16, 32))
    a.json.write_text(json.dumps(figures, indent=1) + "\n")
    plain = figures["estimators"]["plain"]["variance_of_a_sample"]
    for name, e in figures["estimators"].items():
        gain = plain / e["variance_of_a_sample"]
        print(f"{name:18} rmse of one sample {e['rmse'][0]:.4f}, samples of plain for the same error: x {gain:.1f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
