"""Compare training with bf16 products, and with fp16 sums, to training with fp32 products.

    python -m bench.studies.precision [--steps 200] [--seeds 2] [--fp16-sums 1] [--json FILE]

The tiny model trains on the packaged corpus. All runs see the same batches, masks and dropout, so their losses are
compared step by step, as means over windows of 20 steps. Beside them stands the difference between two seeds of the
same precision, which is the noise of a training run. "fp16 sums" is bf16 with the head of a GeForce card that adds
products in fp16, rounding for rounding (fp16_sums.py). It takes seconds per step, so --fp16-sums sets its number of
seeds.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from unittest import mock

import torch

from bench.studies import fp16_sums
from tdlm_fast import config as settings
from tdlm_fast import objective
from tdlm_fast.data import dataset
from tdlm_fast.model import build_model
from tdlm_fast.runs.device import versions
from tdlm_fast.training import step
from tdlm_fast.training.optimizer import adamw

WINDOW, BATCH = 20, 16


def losses(of: str, precision: str, seed: int, steps: int) -> list[float]:
    """The training loss of every step of an objective, nats per token."""
    if precision == "fp16 sums":
        with mock.patch.object(objective, "linear_cross_entropy", fp16_sums.linear_cross_entropy):
            return losses(of, "bf16", seed, steps)
    keys = [f"objective={of}", f"precision={precision}", f"seed={seed}", "data.corpus=sotu"]
    keys.append(f"train.batch_size={BATCH}")
    config = settings.load(Path(__file__).parent.parent.parent / "configs" / "tiny.yaml", keys)
    corpus = dataset.load(config.data, config.model.seq_len)
    model = build_model(config, corpus.tokenizer).train()
    optimizer, loss_of = adamw(model, config.optim), step.objective(config, corpus.tokenizer)
    out = []
    for i in range(steps):
        done = step.train_step(model, optimizer, loss_of, corpus.splits["train"], config, step=i, steps=steps)
        out.append(float(done["loss"]))
    return out


def windows(a: list[float]) -> list[float]:
    return [statistics.fmean(a[i : i + WINDOW]) for i in range(0, len(a), WINDOW)]


def differences(a: list[float], b: list[float]) -> list[float]:
    return [y - x for x, y in zip(a, b, strict=True)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--fp16-sums", type=int, default=0, help="number of seeds that also train with fp16 sums")
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args()
    result = {**versions(torch.device("cpu")), "steps": args.steps, "batch_size": BATCH, "window": WINDOW}
    result |= {"corpus": "sotu", "objectives": {}}
    for of in ("diffusion", "autoregressive"):
        started, curves = time.monotonic(), {}
        for precision, seeds in (("fp32", args.seeds), ("bf16", args.seeds), ("fp16 sums", args.fp16_sums)):
            if seeds:
                curves[precision] = [windows(losses(of, precision, s, args.steps)) for s in range(1, seeds + 1)]
        truth, figures = curves["fp32"], {}
        for name in curves.keys() - {"fp32"}:
            pairs = list(map(differences, truth, curves[name]))
            figures[name] = {
                "largest": max(abs(d) for pair in pairs for d in pair), "last": max(abs(pair[-1]) for pair in pairs),
            }  # fmt: skip
        others = [differences(truth[0], other) for other in truth[1:]]
        result["objectives"][of] = {
            "curves": {k: [[round(x, 5) for x in c] for c in cs] for k, cs in curves.items()},
            "differences_from_fp32": dict(sorted(figures.items())),
            "largest_difference_of_seeds": max((abs(d) for other in others for d in other), default=None),
        }
        shown = {k: v for k, v in result["objectives"][of].items() if k != "curves"}
        print(f"{of}: {time.monotonic() - started:.0f} s", shown, flush=True)
        if args.json:
            Path(args.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
