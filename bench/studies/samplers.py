"""Compare unmasking schedules at equal network evaluations: `python -m bench.studies.samplers --runs … …`.

Samples: texts of seq_len tokens, written by each schedule in S steps. Measured are their nats per token under the
autoregressive run (lower is likelier) and the entropy of their own tokens (too low is repetition), both also for
held-out text.

Steps: how unequal the S steps are, on held-out text x0 whose places are masked in a random order. C(l) is the mean
-log p(x0_i | the rest) over l masked tokens. A step from l to l' masked tokens

    pays     (l - l') C(l)                        for all of them at once, none seeing the others
    excess   (l - l') C(l) - sum_{l' < j <= l} C(j)   over writing them one by one, the cost of parallel writing: the KL
             divergence of the step where the model's conditionals are the true ones
    length   2 sqrt(T) |asin sqrt(l/T) - asin sqrt(l'/T)|   in Fisher-Rao distance (Zhang & Syed 2025, arXiv 2508.04884)

Fisher-Rao length counts masks, not words: it is equal in each step of the cosine schedule, whatever the model is.
Whether the steps are equally hard for a model is another question, so pays and excess are measured. Reported are the
coefficient of variation over the steps, 0 where all are equal, and the sum of the excess: the nats per text that S
steps lose. `best` is the schedule of least excess for the C of as many other held-out texts, so it is scored on texts
that did not choose it. Intervals are bootstrapped over the texts. Nothing is timed.

--toy FILE first trains two small byte models on FILE, 600 steps each; the results record that.
"""

import argparse
import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tdlm_fast import train
from tdlm_fast.data import dataset
from tdlm_fast.kernels import linear_cross_entropy
from tdlm_fast.objective import next_token_nll
from tdlm_fast.runs.load import load_run
from tdlm_fast.sampling.diffusion import masked_counts
from tdlm_fast.sampling.generate import generate_batch
from tdlm_fast.sampling.options import UNMASKING, SamplerOptions

TOY = (
    "data.tokenizer=bytes data.layout=packed model.width=64 model.heads=4 model.seq_len=64 train.batch_size=64 "
    "train.max_steps=600 optim.lr=3e-3 optim.min_lr=3e-4 optim.warmup=0.05 precision=fp32 model.dropout=0.0 "
    "eval.every=600 eval.samples=2 eval.max_samples=2 eval.published=0 eval.probe=0 eval.text=0"
).split()


def toys(text: Path, folder: Path) -> list[Path]:
    """Train both objectives on the file and return their run folders."""
    runs = []
    for objective in ("diffusion", "autoregressive"):
        runs.append(folder / objective)
        keys = [f"data.path={text}", f"data.cache={folder / 'cache'}", f"run.dir={runs[-1]}", f"objective={objective}"]
        if train.main(["configs/tiny.yaml", *TOY, *keys]):
            raise SystemExit("training the toy models failed")
    return runs


def entropy(ids: torch.Tensor) -> torch.Tensor:
    """(N,) nats: the entropy of the tokens of each text (N, T), by their frequencies in it."""
    p = torch.stack([row.bincount(minlength=int(ids.max()) + 1) for row in ids]).double() / ids.shape[1]
    return -(p * p.clamp(min=1e-300).log()).sum(-1)


def mean_stderr(x: torch.Tensor) -> list[float]:
    return [x.double().mean().item(), x.double().std().item() / len(x) ** 0.5]


@torch.no_grad()
def judged(judge, ids: torch.Tensor, start: int, batch: int = 32) -> dict:
    """nats per token under the judge, and entropy, of texts ids (N, T): mean and standard error over the texts."""
    nll = torch.cat([next_token_nll(judge, x, start_token_id=start).double().mean(1) for x in ids.split(batch)])
    return {"nats": mean_stderr(nll), "entropy": mean_stderr(entropy(ids))}


def written(model, objective: str, number: int, *, T: int, start: int, batch: int = 32, **kw) -> tuple:
    """(ids (number, T), network evaluations per text) of texts without a prompt, text i with seed i."""
    limits = dict(seq_len=T, start_token_id=start, forbidden=start)
    parts = [
        generate_batch(
            model, objective, [], [], SamplerOptions(tokens=T, number=min(batch, number - i), seed=i, **kw), **limits
        )
        for i in range(0, number, batch)
    ]
    return torch.cat([p.ids for p in parts]), sum(p.rows for p in parts) / number


def samples(model, judge, *, T: int, start: int, steps, methods, number: int) -> list:
    """One entry per method, schedule and number of steps: how likely and how varied `number` texts of T tokens are."""
    out = []
    for method in methods:
        for S in (s for s in steps if s <= T):
            for unmasking in UNMASKING:
                kw = dict(steps=S, method=method, unmasking=unmasking)
                ids, evaluations = written(model, "diffusion", number, T=T, start=start, **kw)
                out.append(kw | judged(judge, ids, start) | {"evaluations_a_text": evaluations})
    return out


@torch.no_grad()
def curves(model, x0: torch.Tensor, *, orders: int, seed: int, levels: int, batch: int = 64) -> np.ndarray:
    """(rows, T + 1) fp64: C(l) of each row of x0 (R, T), mean over random orders; levels between are interpolated."""
    R, T = x0.shape
    at = np.unique(np.round(np.linspace(1, T, min(levels, T))).astype(int))
    total, g = torch.zeros(R, len(at), dtype=torch.float64), torch.Generator().manual_seed(seed)
    for _ in range(orders):
        rank = torch.rand(R, T, generator=g).argsort(1).argsort(1).to(x0.device)
        for k, count in enumerate(at.tolist()):
            for i in range(0, R, batch):
                rows, masked = x0[i : i + batch], rank[i : i + batch] < count
                h = model(torch.where(masked, model.mask_token_id, rows), causal=False)
                nll = linear_cross_entropy(h[masked], model.head, rows[masked], reduction="none")
                total[i : i + batch, k] += nll.double().view(len(rows), count).mean(1).cpu() / orders
    inside = np.arange(1, T + 1)
    return np.stack([np.concatenate([[0.0], np.interp(inside, at, row)]) for row in total.numpy()])


def best_counts(curve: np.ndarray, steps: int) -> list[int]:
    """Tokens left after each step with the least sum of (l - l') C(l), by dynamic programming; curve is C (T + 1,)."""
    T = len(curve) - 1
    left = np.arange(T + 1)
    pay = np.where(left[:, None] > left, (left[:, None] - left) * curve[:, None], np.inf)  # from row to column
    cost, path = np.where(left == 0, 0.0, np.inf), []
    for _ in range(steps):  # cost[l]: the least from l masked tokens to none in the steps so far
        through = pay + cost
        path.append(through.argmin(1))
        cost = through.min(1)
    counts, at = [], T
    for to in reversed(path):
        at = int(to[at])
        counts.append(at)
    return counts


def steps_of(curve: np.ndarray, counts: list[int]) -> dict[str, np.ndarray]:
    """pays, excess and length, each (..., S), of the steps of a schedule, for curves C (..., T + 1)."""
    T = curve.shape[-1] - 1
    before, after = np.array([T, *counts[:-1]]), np.array(counts)
    summed = curve.cumsum(-1)
    pays = (before - after) * curve[..., before]
    angle = np.arcsin(np.sqrt(np.array([T, *counts]) / T))
    return {
        "pays": pays, "excess": pays - (summed[..., before] - summed[..., after]),
        "length": 2 * math.sqrt(T) * (angle[:-1] - angle[1:]),
    }  # fmt: skip


def spread(x: np.ndarray) -> np.ndarray:
    """Coefficient of variation over the last axis."""
    return x.std(-1) / x.mean(-1)


def difficulty(rows: np.ndarray, other: np.ndarray, steps, *, seed: int = 0, draws: int = 400) -> list:
    """One entry per schedule and number of steps: spreads and sum of the excess, each [value, low, high] (95 %).

    rows and other (texts, T + 1): C of each text. other chooses the schedule `best`; all are scored on rows.
    """
    T, rng, out = rows.shape[1] - 1, np.random.default_rng(seed), []
    resampled = np.stack([rows[rng.integers(0, len(rows), len(rows))].mean(0) for _ in range(draws)])
    for S in (s for s in steps if s < T):
        schedules = {u: masked_counts(T, S, u) for u in UNMASKING} | {"best": best_counts(other.mean(0), S)}
        for name, counts in schedules.items():
            one, many = steps_of(rows.mean(0), counts), steps_of(resampled, counts)

            def interval(of, one=one, many=many):
                return [float(of(one)), *map(float, np.quantile(of(many), (0.025, 0.975)))]

            out.append({
                "steps": S, "unmasking": name, "counts": counts,
                "spread_of_pays": interval(lambda q: spread(q["pays"])),
                "spread_of_excess": interval(lambda q: spread(q["excess"])),
                "spread_of_length": float(spread(one["length"])),
                "excess_nats_a_text": interval(lambda q: q["excess"].sum(-1)),
            })  # fmt: skip
    return out


def measure(diffusion: Path, autoregressive: Path, *, number: int, rows: int, orders: int, levels: int, device: str):
    config, tokenizer, model, state = load_run(diffusion, "best", device)
    judging, their, judge, _ = load_run(autoregressive, "best", device)
    if (config.objective, judging.objective) != ("diffusion", "autoregressive"):
        raise SystemExit(f"--runs takes diffusion, autoregressive; these are {config.objective}, {judging.objective}")
    if (config.data.tokenizer, config.model.seq_len) != (judging.data.tokenizer, judging.model.seq_len):
        raise SystemExit("the two runs differ in data.tokenizer or model.seq_len")
    T, start = config.model.seq_len, tokenizer.start_token_id
    corpus = dataset.load(replace(config.data, layout="packed"), T, state.get("corpus"), tokenizer)
    test = corpus.splits["test"]
    full = np.flatnonzero(test.lengths == T)
    pick = np.random.default_rng(0).permutation(full)[: 2 * rows]
    x0, others = test.rows(pick, next(model.parameters()).device)[0].chunk(2)
    own = written(judge, "autoregressive", number, T=T, start=start)[0]
    steps = (4, 8, 16, 32, 64)
    curve, other = (curves(model, x, orders=orders, seed=0, levels=levels) for x in (x0, others))
    summaries = [json.loads((r / "summary.json").read_text()) for r in (diffusion, autoregressive)]
    return {
        "corpus": corpus.name, "tokens_a_text": T, "texts": number, "held_out_texts": len(x0), "orders": orders,
        "models": [
            {k: s[k] for k in ("objective", "parameters", "steps", "device")} | {"test": s["test"]["nats_per_token"]}
            for s in summaries
        ],
        "held_out": judged(judge, x0, start), "autoregressive_samples": judged(judge, own, start),
        "samples": samples(model, judge, T=T, start=start, steps=steps, methods=("random", "ancestral"), number=number),
        "curve": curve.mean(0)[1:].tolist(), "difficulty": difficulty(curve, other, steps[:-1]),
    }  # fmt: skip


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--runs", nargs=2, type=Path, metavar=("DIFFUSION", "AUTOREGRESSIVE"), help="finished run folders")
    p.add_argument("--toy", type=Path, metavar="FILE", help="train two small byte models on this text instead")
    p.add_argument("--json", type=Path, default=Path("bench/results/samplers.json"))
    p.add_argument("--number", type=int, default=256, help="texts sampled per setting")
    p.add_argument("--rows", type=int, default=256, help="held-out texts to score steps on; as many choose `best`")
    p.add_argument("--orders", type=int, default=2, help="random orders of masking per held-out text")
    p.add_argument("--levels", type=int, default=64, help="numbers of masked tokens measured, the rest interpolated")
    p.add_argument("--device", default="auto")
    a = p.parse_args()
    if (a.runs is None) == (a.toy is None):
        p.error("give either --runs or --toy")
    with tempfile.TemporaryDirectory() as folder:
        runs = a.runs or toys(a.toy, Path(folder))
        sizes = {k: getattr(a, k) for k in ("number", "rows", "orders", "levels", "device")}
        figures = measure(*runs, **sizes)
    figures["toy"] = a.toy is not None
    a.json.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"{a.json}: python -m bench.report draws it into docs/sampling.md")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
